"""How the network was trained: its learning curves."""

from __future__ import annotations

from typing import Any

from tellapart.report import figures
from tellapart.report.part import Examination, Part
from tellapart.run_folder import RunFolder
from tellapart.training.selection import best_epoch


def _compute(e: Examination) -> list[str]:
    """Draw a figure for each column of the history; none where the run has no history."""
    if not RunFolder(e.run).history_path.is_file():
        return []
    history = RunFolder(e.run).history()
    best = best_epoch(history.to_dict("records"))
    names = [name for name in ("loss", "accuracy", "learning_rate") if name in history]
    return [figures.learning_curve(history, name, best) for name in names]


def _view(e: Examination, value: list[str]) -> dict[str, Any]:
    del e
    return {"curves": value}


TRAINING = Part("training", "Training", "Learning", _compute, "part-training.html", view=_view)
