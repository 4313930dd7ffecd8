"""What a finished run said of its photos, read back from its files. Knows nothing about models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.run_folder import RunFolder


def teacher_for(run: Path, photos: pd.DataFrame, classes: list[str]) -> NDArray[np.float64]:
    """Return what a finished run said of other rows of photos, matched by content: what a student learns.

    Args:
        run: the teacher's folder.
        photos: their ``sha256`` and ``split``.
        classes: of the student.

    Returns:
        (num_photos, num_classes) float64 in the order of `photos`; even rows for photos that are not trained on.

    Raises:
        InputError: the teacher is no finished run, tells other classes apart, does not know a training photo, or has
            learned from a photo that the student is measured on.
    """
    folder = RunFolder(run)
    if not folder.predictions_path.is_file() or not folder.has_photos:
        raise InputError(f"The teacher {run} is not a finished run folder. Expected one with predictions.csv.")
    known, learned, probabilities = folder.predictions()
    if learned != classes:
        raise InputError(
            f"The teacher {run} tells {', '.join(learned)} apart. Expected the student's classes, {', '.join(classes)}."
        )
    refuse_leak(run, photos, "teacher")
    rows = pd.Series(np.arange(len(known)), known["sha256"])
    # Copies of a photo have one digest, and the teacher says the same of each.
    rows_of_photos = rows[~rows.index.duplicated()].reindex(photos["sha256"]).to_numpy()
    unknown = np.isnan(rows_of_photos)
    missing = int((unknown & (photos["split"] == "train").to_numpy()).sum())
    if missing:
        raise InputError(
            f"The teacher {run} said nothing of {missing:,} of the training photos. Expected a teacher that was "
            "measured on all of them: make it from runs of the same photos."
        )
    # Row 0 stands in for what the teacher does not know, and `np.where` takes it out again: those photos are not
    # trained on.
    return np.where(
        unknown[:, None], 1 / len(classes), probabilities[np.where(unknown, 0, rows_of_photos).astype(np.int64)]
    )


def refuse_leak(run: Path, photos: pd.DataFrame, role: str) -> None:
    """Refuse a run that has learned test labels which another is measured on: it would learn them from it, unseen.

    The earlier run's validation photos have chosen its weights and its temperature, so they may not be tested on
    either.

    Args:
        run: the earlier one.
        photos: ``sha256`` and ``split`` of the new one's.
        role: of the earlier run, as the message says it: "teacher".

    Raises:
        InputError: it was trained or validated on some of them.
    """
    known = RunFolder(run).readable()
    trained_on = known.loc[known["split"] == "train", "sha256"]
    validated_on = known.loc[known["split"] == "validation", "sha256"]
    split, digests = photos["split"], photos["sha256"]
    # By content: the same photo may have another path, or stand in a table under another name.
    leaks = (split != "train") & digests.isin(trained_on) | (split == "test") & digests.isin(validated_on)
    if leaks.any():
        raise InputError(
            f"The {role} {run} was trained or validated on {int(leaks.sum()):,} of the photos that the new run is to "
            f"be measured on. Expected the same split: --split-from {run}."
        )
