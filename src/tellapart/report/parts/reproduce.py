"""What it takes to do the run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tellapart.files import read_json
from tellapart.report.part import Examination, Part
from tellapart.run_folder import RunFolder, RunRecord
from tellapart.settings import saved_values


def _compute(e: Examination) -> dict[str, Any]:
    folder = RunFolder(e.run)
    record = folder.record()
    return {
        "commands": [made_by(e.run, record), f"tellapart evaluate {e.run}"],
        "recipe": json.dumps(saved_values(folder.recipe()), indent=1),
        "facts": record.known("commit", "data_sha256", "seed", "processor", "python", "backend", "precision"),
        "packages": record.packages,
    }


def _view(e: Examination, value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "seconds": e.seconds}


def made_by(run: Path, record: RunRecord) -> str:
    """Return the command that makes a run again: an ensemble is combined again, or the race that made it is.

    Args:
        run: a finished run folder.
        record: its own.
    """
    if not record.request.ensemble:
        return f"tellapart reproduce {run}"
    if record.request.race is not None:
        shared = [f"--set {change}" for change in record.request.race]
        # Its time belongs to the command: without it a race takes its ten minutes.
        return " ".join(
            ["tellapart train", record.request.photos, f"--time {record.request.time_budget:.0f}s", *shared]
        )
    standings = read_json(run / "ensemble.json")["standings"]
    # Snapshots of one run are several members with the same run: name it once.
    # Without "run": the ensemble was killed before its result was written, and names are all that there is.
    members = list(dict.fromkeys(standing.get("run", standing["name"]) for standing in standings))
    return " ".join(["tellapart ensemble", *members, *(["--snapshots"] if len(standings) > len(members) else [])])


REPRODUCE = Part("reproduce", "Reproduce", "Reproduce", _compute, "part-reproduce.html", view=_view)
