"""Lays a search out as one HTML file that needs nothing else. Knows nothing about how its numbers were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tellapart.experiments.tuning import figures
from tellapart.experiments.tuning.result import Tuning
from tellapart.report import html


def write_page(path: Path, found: Tuning) -> None:
    """Write ``tune.html``."""
    values = {
        "found": found,
        "verdict": found.verdict or "The winner is not confirmed yet.",
        "trials": sorted(found.trials, key=_rank),
        "stopped": sum(trial.state == "stopped" for trial in found.trials),
        "front": [trial for number in found.front for trial in found.trials if trial.number == number],
        "figures": _figures(found),
        "slices": figures.slices(found),
    }
    html.write_page(path, "tune.html", values, {"value": _value})


def _figures(tuning: Tuning) -> list[str]:
    drawn = [figures.history(tuning)]
    if any(trial.curve for trial in tuning.trials):
        drawn.append(figures.curves(tuning))
    if tuning.importance:
        drawn.append(figures.importance(tuning))
    return [figures.front(tuning), *drawn] if tuning.front else drawn


def _rank(trial: Any) -> tuple[bool, float]:
    return trial.state != "finished", -(trial.accuracy or 0.0)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
