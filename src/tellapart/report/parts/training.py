"""How the network was trained: what was tried, and its learning curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tellapart.proportions import wilson
from tellapart.records import Interval
from tellapart.report import figures
from tellapart.report.part import Examination, Part, ends
from tellapart.run_folder import RunFolder
from tellapart.training.selection import best_epoch


@dataclass(frozen=True)
class _Training:
    """What is known of the training.

    Attributes:
        curves: a figure for each column of the history; none where the run has none, or a head was fitted at once.
        race: (entry of ``metrics.json``, interval of its validation accuracy or None) of each candidate; none where the
            recipe was given.
    """

    curves: list[str]
    race: list[tuple[dict[str, Any], Interval | None]]


def _compute(e: Examination) -> _Training:
    run = RunFolder(e.run)
    entries = run.metrics().get("race", [])
    count = int((run.readable()["split"] == "validation").sum()) if entries else 0
    race = [(entry, None if entry["correct"] is None else wilson(entry["correct"], count)) for entry in entries]
    if not run.history_path.is_file():
        return _Training([], race)
    history = run.history()
    if len(history) < 2:  # one point is no curve: the figures would be empty
        return _Training([], race)
    best = best_epoch(history.to_dict("records"))
    names = [name for name in ("loss", "accuracy", "learning_rate") if name in history]
    return _Training([figures.learning_curve(history, name, best) for name in names], race)


def _to_json(value: _Training) -> dict[str, Any]:
    if not value.race:
        return {}
    return {"race": [entry | ({"interval": ends(interval)} if interval else {}) for entry, interval in value.race]}


TRAINING = Part("training", "Training", "Learning", _compute, "part-training.html", to_json=_to_json)
