"""What a finished run said of its photos, read back from its files. Knows nothing about models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.errors import InputError, RunError
from tellapart.tables import read_csv

_TEXT = ("path", "split", "label", "sha256", "error", "true_label", "predicted_label")


def read_predictions(run: Path) -> tuple[pd.DataFrame, list[str], NDArray[np.float64]]:
    """Return (photos, classes, probabilities) of a run folder.

    Args:
        run: the folder; ``manifest.csv`` and ``predictions.csv`` are read.

    Returns:
        The manifest's rows of readable photos, the names of the classes, and (num_photos, num_classes) probabilities in
        the order of both; rows that were not finite are even.

    Raises:
        RunError: the two files are not of one run.
    """
    manifest, table = _table(run / "manifest.csv"), _table(run / "predictions.csv")
    manifest = manifest[manifest["error"] == ""].reset_index(drop=True)
    columns = [column for column in map(str, table) if column.startswith("p:")]
    same = len(manifest) == len(table) and all(
        manifest[ours].tolist() == table[theirs].tolist()
        for ours, theirs in (("label", "true_label"), ("split", "split"))
    )
    if not same or not columns:
        raise RunError(
            f"{run / 'predictions.csv'} does not speak of the photos in manifest.csv. Expected a row for each "
            "readable photo, in the same order: restore the run's own files, or train again."
        )
    probabilities = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    finite = np.isfinite(probabilities).all(axis=1)
    probabilities = np.where(finite[:, None], probabilities, 1 / len(columns))
    paths = [json.loads(f'"{path}"') for path in manifest["path"]]
    photos = manifest.assign(path=pd.Series(paths, manifest.index, dtype=object))
    classes = [column.removeprefix("p:") for column in columns]
    return photos, classes, probabilities / probabilities.sum(axis=1, keepdims=True)


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
    if not (run / "predictions.csv").is_file() or not (run / "manifest.csv").is_file():
        raise InputError(f"The teacher {run} is no finished run folder. Expected one with predictions.csv.")
    known, theirs, said = read_predictions(run)
    if theirs != classes:
        raise InputError(
            f"The teacher {run} tells {', '.join(theirs)} apart. Expected the student's classes, {', '.join(classes)}."
        )
    _refuse_leak(run, known, photos)
    rows = pd.Series(np.arange(len(known)), known["sha256"])
    at = rows[~rows.index.duplicated()].reindex(photos["sha256"]).to_numpy()
    unknown = np.isnan(at)
    missing = int((unknown & (photos["split"] == "train").to_numpy()).sum())
    if missing:
        raise InputError(
            f"The teacher {run} said nothing of {missing:,} of the training photos. Expected a teacher that was "
            "measured on all of them: make it from runs of the same photos."
        )
    return np.where(unknown[:, None], 1 / len(classes), said[np.where(unknown, 0, at).astype(np.int64)])


def _refuse_leak(run: Path, known: pd.DataFrame, photos: pd.DataFrame) -> None:
    """Refuse a teacher that has learned the student's test labels: the student would learn them from it, unseen.

    A teacher's validation photos have chosen its weights and its temperature, so they may not be tested on either.
    """
    learned = known.loc[known["split"] == "train", "sha256"]
    chosen_by = known.loc[known["split"] == "validation", "sha256"]
    split, digests = photos["split"], photos["sha256"]
    leaks = (split != "train") & digests.isin(learned) | (split == "test") & digests.isin(chosen_by)
    if leaks.any():
        raise InputError(
            f"The teacher {run} was trained or validated on {int(leaks.sum()):,} of the photos that the student is to "
            f"be measured on. Expected the same split: train the student with --split-from {run}."
        )


def _table(path: Path) -> pd.DataFrame:
    """Read a table of a run folder; a class may be called NA, so nothing is taken for missing."""
    return read_csv(path, _TEXT)
