"""The one renderer: a template and values become one HTML file that needs nothing else. Knows no numbers.

All pages share ``base.html`` and ``page.css``; a new page is a template that extends the one and, where it must, adds
to the other under the class of its body.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tellapart.evaluation.wording import duration, p_text, percent, points
from tellapart.files import write_text

_PACKAGES = ("tellapart.report", "tellapart.experiments")
"""Their folders ``page`` hold the templates; names differ."""


def write_page(
    path: Path, template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None
) -> Path:
    """Render a template into a file. Text is escaped, unless the template calls it safe.

    Args:
        path: the file.
        template: its name, "compare.html".
        values: by name; what a template asks for and does not get is an error.
        filters: beside Jinja's own.

    Returns:
        `path`.
    """
    pages = _pages(filters)
    # Its source as it is: braces of a style sheet must not be read as Jinja's.
    css = _loader().get_source(pages, "page.css")[0]
    write_text(path, pages.get_template(template).render(**values, css=css, made=time.strftime("%Y-%m-%d %H:%M")))
    return path


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """Return a fragment of a page: a template without styles of its own, and with text escaped."""
    return str(_pages().get_template(template).render(**values))


def _loader() -> Any:
    from jinja2 import ChoiceLoader, PackageLoader

    return ChoiceLoader([PackageLoader(package, "page") for package in _PACKAGES])


def _pages(filters: Mapping[str, Callable[..., str]] | None = None) -> Any:
    from jinja2 import Environment, StrictUndefined

    # Strict: a missing value is an error, not a hole in the page.
    pages = Environment(
        loader=_loader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters |= {**_FILTERS, **(filters or {})}
    return pages


def source(name: str) -> str:
    """Return the text of a file beside the report's templates, such as its script."""
    from importlib.resources import files

    return (files("tellapart.report") / "page" / name).read_text("utf-8")


_FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "points": points,
    "p_text": p_text,
    "duration": duration,
    "words": lambda name: str(name).replace("_", " "),
}
