"""Writes docs/cli.md, settings.md and python.md from the code. `make docs` runs it; a test notices when it was not."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import tellapart
from tellapart.cli.main import app
from tellapart.conditions import CONDITIONS
from tellapart.settings import Machine, Recipe, section_models

HEAD = "# Commands\n\nMade from the commands' own help by `make docs`; change the code, not this page.\n"


def reference() -> str:
    """Return the whole page."""
    sections = [HEAD, _section("tellapart", [])]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([*sections, *(_section(f"tellapart {name}", [name]) for name in commands)])


def settings() -> str:
    """Return the page of all settings of a recipe, of what they need to act, and of those of the machine."""
    lines = ["# Settings of a recipe", "", "Made from `tellapart.settings` by `make docs`.", ""]
    for section in Recipe.model_fields:
        models = section_models(section)
        lines += [f"## [{section}]", ""]
        for model in models:
            lines += _table(model)
    return "\n".join([
        *lines,
        "A stage in `train.stages` has `image_px` and `share`, its share of the epochs relative to the others.",
        "", "## What a setting needs to act", "",
        "A setting that cannot act beside the others is an error. What `--set` switches off in a recipe goes with it.",
        "",
        "| setting | |", "|---|---|", *(f"| {_names(each.settings)} | {each.rule} |" for each in CONDITIONS), "",
        "## The machine", "",
        "Not in a recipe: `tellapart train --workers N --cache-limit-gb G`, `machine=tellapart.Machine(…)` of",
        "`tellapart.train`, or the environment variables `TELLAPART_WORKERS` and `TELLAPART_CACHE_LIMIT_GB`, which all",
        "commands that train read.", "",
        *_table(Machine),
    ])  # fmt: skip


def _table(model: type[BaseModel]) -> list[str]:
    rows = [f"| `{name}` | {_default(each)} | {each.description} |" for name, each in model.model_fields.items()]
    return [model.__doc__ or "", "", "| setting | default | meaning |", "|---|---|---|", *rows, ""]


def _default(setting: FieldInfo) -> str:
    """Return the default, or the choices of a setting that has none."""
    if setting.is_required():
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(setting.annotation))
    return f"`{json.dumps(setting.default)}`" if setting.default != () else "`[]`"


def _names(settings: tuple[str, ...]) -> str:
    """Return the settings, a section that is mostly among them by what is not."""
    parts = []
    for section in dict.fromkeys(name.partition(".")[0] for name in settings):
        known = dict.fromkeys(f"{section}.{key}" for each in section_models(section) for key in each.model_fields)
        named = [name for name in settings if name in known]
        others = [name for name in known if name not in settings]
        if len(named) > 3 * len(others):
            but = f" but {', '.join(f'`{name}`' for name in others)}" if others else ""
            parts.append(f"all of `{section}`{but}")
        else:
            parts += [f"`{name}`" for name in named]
    return ", ".join(parts)


PYTHON = """# Python

Made from the docstrings by `make docs`; change the code, not this page. Nothing heavy is imported until it is used.
"""


def python() -> str:
    """Return the page of the package's public names."""
    functions, classes = [], []
    for name in sorted(tellapart.__all__, key=str.lower):
        thing = getattr(tellapart, name)
        if isinstance(thing, type):
            methods = [
                _documented(f"{name}.{method}", function, "###")
                for method, function in vars(thing).items()
                if inspect.isfunction(function) and not method.startswith("_") and method not in ("model_dump",)
            ]
            classes.append("\n".join([_documented(name, thing, "##", signature=False), *methods]))
        else:
            functions.append(_documented(name, thing, "##"))
    return "\n".join([PYTHON, *functions, *classes])


def _documented(name: str, thing: Any, level: str, *, signature: bool = True) -> str:
    """Return a heading, the signature and the docstring."""
    lines = [f"{level} {name}", ""]
    if signature:
        shown = re.sub(r"<(?:[^<>]|<[^<>]*>)*>", "…", str(inspect.signature(thing)))  # functions, with their addresses
        shown = shown.replace("self, ", "").replace("(self)", "()").replace("'", "")
        lines += ["```python", f"{name}{shown}", "```", ""]
    text = re.sub(r"``([^`]+)``", r"`\1`", inspect.getdoc(thing) or "")
    first, _, rest = text.partition("\n\n")
    return "\n".join([*lines, first, "", *(["```text", rest.strip(), "```", ""] if rest.strip() else [])])


def _section(title: str, arguments: list[str]) -> str:
    # In this process: thirty starts of the command take ten seconds.
    text = io.StringIO()
    with redirect_stdout(text), patch.dict(os.environ, {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}):
        app([*arguments, "--help"], prog_name="tellapart", standalone_mode=False)
    shown = "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())
    return f"## {title}\n\n```text\n{shown}\n```\n"


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(reference(), encoding="utf-8")
    (Path(__file__).parent / "settings.md").write_text(settings(), encoding="utf-8")
    (Path(__file__).parent / "python.md").write_text(python(), encoding="utf-8")
