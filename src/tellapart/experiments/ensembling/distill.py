"""Trains one student to say what an ensemble says. Knows nothing about how the ensemble was made."""

from __future__ import annotations

import os
from pathlib import Path

from tellapart.errors import RunError
from tellapart.records import Observer
from tellapart.run import Run, parents_of, reopen, run_stages
from tellapart.run_folder import RunFolder, RunRequest, new_folder
from tellapart.settings import Recipe, with_settings
from tellapart.training.environment import environment


def student_recipe(recipe: Recipe, teacher: Path) -> Recipe:
    """Return a recipe that also learns from the run folder `teacher`."""
    return with_settings(recipe, {"distill.teacher": os.path.abspath(teacher)})


def distil(student: Path, recipe: Recipe, teacher: Path, *, cache: Path, observer: Observer) -> Run:
    """Train the student on the teacher's photos and split, or go on where it was interrupted.

    Args:
        student: its run folder.
        recipe: made by `student_recipe`.
        teacher: the run folder of the ensemble.
        cache: the folder for decoded pictures.
        observer: whom to tell.

    Raises:
        RunError: `student` holds something else.
    """
    folder, parent = RunFolder(student), RunFolder(teacher)
    if folder.recipe_path.is_file():
        if folder.recipe() != recipe:
            raise RunError(
                f"{student} holds a run of another recipe. To go on with that: tellapart train --resume {student}. "
                "For another student remove it, or give the ensemble another folder with --out."
            )
        # For its checks: it refuses a folder that is no run.
        reopen(student, None)
    else:
        # For its check alone: it refuses a folder that holds something else.
        new_folder(student, teacher)
        # Should the table below be lost to a kill, the split is the teacher's all the same.
        request = RunRequest(photos=str(parent.root), split_from=os.path.abspath(teacher))
        folder.create(recipe, request, environment(), parents_of(recipe))
    if not folder.has_photos:
        folder.copy_photos_from(parent)
    return run_stages(folder, cache, observer)
