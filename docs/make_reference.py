"""Writes docs/cli.md and docs/settings.md from the code. `make docs` runs it; a test says when it was forgotten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import typer

from tellapart.cli.main import app
from tellapart.settings import Recipe

HEAD = "# Commands\n\nMade from the commands' own help by `make docs`; change the code, not this page.\n"


def reference() -> str:
    """Return the whole page."""
    sections = [HEAD, _section("tellapart", [])]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([*sections, *(_section(f"tellapart {name}", [name]) for name in commands)])


def settings() -> str:
    """Return the page of all settings of a recipe."""
    lines = ["# Settings of a recipe", "", "Made from `tellapart.settings` by `make docs`.", ""]
    for section, field in Recipe.model_fields.items():
        model = type(field.default)
        lines += [f"## [{section}]", "", model.__doc__ or "", "", "| setting | default | meaning |", "|---|---|---|"]
        for name, setting in model.model_fields.items():
            default = json.dumps(setting.default) if setting.default != () else "[]"
            lines.append(f"| `{name}` | `{default}` | {setting.description} |")
        lines.append("")
    lines += [
        "A stage in `train.stages` has `image_px` and `share`, its share of the epochs relative to the others.",
        "",
    ]
    return "\n".join(lines)


def _section(title: str, arguments: list[str]) -> str:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "tellapart", *arguments, "--help"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    text = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
    return f"## {title}\n\n```text\n{text.replace('python -m tellapart', 'tellapart')}\n```\n"


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(reference(), encoding="utf-8")
    (Path(__file__).parent / "settings.md").write_text(settings(), encoding="utf-8")
