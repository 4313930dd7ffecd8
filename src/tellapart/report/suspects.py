"""Photos of a run whose label looks wrong, as a table to work through. Knows nothing about pages."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tellapart.errors import InputError
from tellapart.evaluation.labels import out_of_sample, suspected_labels
from tellapart.records import Progress, no_progress
from tellapart.report.subject import Subject


def suspects(subject: Subject, *, own_photos: bool, progress: Progress = no_progress) -> pd.DataFrame:
    """Rank all photos by how likely their label is wrong.

    Args:
        subject: the network and the photos.
        own_photos: whether the network was trained on some of them.
        progress: called with ("checking labels", done, total).

    Returns:
        A row per photo, most suspicious first: ``position`` in the subject, ``path``, ``split``, ``label``,
        ``suggested`` (the class that the network would give), ``quality`` (0 to 1, low is suspicious) and
        ``suspected`` (confident learning counts it among the errors).

    Raises:
        InputError: a class has too few photos for the question.
    """
    frame = subject.frame
    trained_on = (frame["split"] == "train").to_numpy() if own_photos else np.zeros(len(frame), bool)
    probabilities = subject.probabilities
    if trained_on.any():
        if np.bincount(subject.numbers[trained_on], minlength=len(subject.classes)).min() < 2:
            raise InputError("A class has fewer than two training photos.")
        # The network has learned the labels of its training photos, including wrong ones, and would confirm them. Each
        # is therefore judged by a model that has seen neither its label nor that of its copies.
        groups = frame["unit"].to_numpy() if "unit" in frame else np.arange(len(frame))
        probabilities = out_of_sample(
            subject.features,
            subject.numbers,
            probabilities,
            trained_on,
            np.asarray(groups, np.int64),
            progress=progress,
        )
    ranking = suspected_labels(subject.numbers, probabilities)
    rows = frame.iloc[ranking["position"]]
    return pd.DataFrame({
        "position": ranking["position"],
        "path": rows["path"].astype(object).reset_index(drop=True),
        "split": rows["split"].astype(object).reset_index(drop=True),
        "label": rows["label"].astype(object).reset_index(drop=True),
        "suggested": np.asarray(subject.classes, object)[ranking["suggested"]],
        "quality": ranking["quality"],
        "suspected": ranking["suspected"],
    })  # fmt: skip
