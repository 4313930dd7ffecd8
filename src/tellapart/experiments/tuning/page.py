"""Lays a search out as one HTML file that needs nothing else. Knows nothing about how its numbers were made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tellapart.experiments.comparison import p_text, points
from tellapart.experiments.tuning import figures
from tellapart.experiments.tuning.result import Tuning
from tellapart.files import write_text


def write_page(path: Path, found: Tuning) -> None:
    """Write ``tune.html``."""
    from importlib.resources import files

    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("tellapart.experiments", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"points": points, "p_text": p_text, "value": _value}
    styles = (("tellapart.report", "page.css"), ("tellapart.experiments", "compare.css"))
    text = templates.get_template("tune.html").render(
        found=found,
        verdict=found.verdict or "The winner is not confirmed yet.",
        trials=sorted(found.trials, key=_rank),
        stopped=sum(trial.state == "stopped" for trial in found.trials),
        front=[trial for number in found.front for trial in found.trials if trial.number == number],
        figures=_figures(found),
        slices=figures.slices(found),
        made=time.strftime("%Y-%m-%d %H:%M"),
        css="".join((files(package) / "page" / name).read_text("utf-8") for package, name in styles),
    )
    write_text(path, text)


def _figures(found: Tuning) -> list[str]:
    drawn = [figures.history(found)]
    if any(trial.curve for trial in found.trials):
        drawn.append(figures.curves(found))
    if found.importance:
        drawn.append(figures.importance(found))
    return [figures.front(found), *drawn] if found.front else drawn


def _rank(trial: Any) -> tuple[bool, float]:
    return trial.state != "finished", -(trial.accuracy or 0.0)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
