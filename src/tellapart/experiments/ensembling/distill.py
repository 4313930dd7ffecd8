"""Trains one student to say what an ensemble says. Knows nothing about how the ensemble was made."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tellapart.errors import RunError
from tellapart.files import read_json
from tellapart.records import Progress
from tellapart.run import Run, run_stages
from tellapart.run_folder import begin, copy_from, new_folder, reopen
from tellapart.settings import Recipe, load_recipe
from tellapart.training.callbacks import Announce


def student_recipe(recipe: Recipe, teacher: Path) -> Recipe:
    """Return a recipe that also learns from the run folder `teacher`."""
    distill = recipe.distill.model_copy(update={"teacher": os.path.abspath(teacher)})
    return Recipe.model_validate(recipe.model_copy(update={"distill": distill}).model_dump())


def distil(student: Path, recipe: Recipe, teacher: Path, *, cache: Path, progress: Progress, announce: Announce) -> Run:
    """Train the student on the teacher's photos and split, or go on where it was interrupted.

    Args:
        student: its run folder.
        recipe: made by `student_recipe`.
        teacher: the run folder of the ensemble.
        cache: the folder for decoded pictures.
        progress: called often with (what, done, total).
        announce: called with single lines.

    Raises:
        RunError: `student` holds something else.
    """
    if (student / "recipe.toml").is_file():
        if load_recipe(student / "recipe.toml") != recipe:
            raise RunError(
                f"{student} holds a run of another recipe. To go on with that: tellapart train --resume {student}. "
                "For another student remove it, or give the ensemble another folder with --out."
            )
        _, order = reopen(student, None)
    else:
        photos = read_json(teacher / "environment.json")["root"]
        # Should the table below be lost to a kill, the split is the teacher's all the same.
        order = {"photos": photos, "time_budget": None, "split_from": os.path.abspath(teacher)}
        begin(new_folder(student, teacher), recipe, order)
    if not (student / "manifest.csv").is_file():
        copy_from(student, teacher)
    return run_stages(student, order, cache, time.time(), progress, announce)
