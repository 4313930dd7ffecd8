"""Measures a trained run on all its photos and writes what was found. Knows nothing about training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.cache import Pictures
from tellapart.evaluation.curves import draw_curves
from tellapart.evaluation.metrics import classification_metrics
from tellapart.evaluation.predict import predict_pictures, prediction_table
from tellapart.files import write_text
from tellapart.records import SPLITS, Progress, no_progress
from tellapart.training.selection import best_epoch


def measure(
    run: Path,
    pictures: Pictures,
    frame: pd.DataFrame,
    classes: list[str],
    *,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Predict every photo with the saved ``model.keras`` and measure each side of the split.

    Writes ``predictions.csv`` and ``curves.png`` into the run folder.

    Args:
        run: the run folder.
        pictures: the readable photos.
        frame: their path, label and split, in the same order.
        classes: names in the order of the network's outputs.
        progress: called with ("predicting", done, total).

    Returns:
        ``train``, ``validation`` and ``test``, each as `classification_metrics` gives it, ``train`` without
        intervals; a split without photos is missing.
    """
    model = keras.saving.load_model(run / "model.keras", compile=False)
    probabilities = predict_pictures(model, pictures, progress)
    table = prediction_table(frame, probabilities, classes)
    write_text(run / "predictions.csv", table.to_csv(index=False))
    history = pd.read_csv(run / "history.csv")
    draw_curves(history, best_epoch(history.to_dict("records")), run / "curves.png")
    return measure_sides(frame, probabilities, classes)


def class_numbers(frame: pd.DataFrame, classes: list[str]) -> NDArray[np.int64]:
    """Return (num_images,) the place of each photo's label among `classes`."""
    numbers = {name: index for index, name in enumerate(classes)}
    return np.asarray(frame["label"].map(numbers), np.int64)


def measure_sides(
    frame: pd.DataFrame, probabilities: NDArray[np.float32], classes: list[str], *, trained_on: bool = True
) -> dict[str, Any]:
    """Return `classification_metrics` for each split that has photos.

    Args:
        frame: ``label`` and ``split`` of each photo, and ``unit``, the number of its group, where it is known; in the
            tables of old runs it may be missing, and every photo stands for itself then.
        probabilities: (num_images, num_classes).
        classes: names of the classes.
        trained_on: whether the network was trained on the training photos. They have no intervals then: what it has
            learned by heart is no sample of what it will see.
    """
    numbers, groups = class_numbers(frame, classes), groups_of(frame)
    splits, found = frame["split"].to_numpy(object), {}
    for split in SPLITS:
        inside = splits == split
        if inside.any():
            part = None if groups is None else groups[inside]
            found[split] = classification_metrics(numbers[inside], probabilities[inside], classes, part)
    if trained_on and "train" in found:
        del found["train"]["intervals"]
    return found


def groups_of(frame: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return the number of each photo's group, (num_images,), or None where a table does not say."""
    return frame["unit"].to_numpy(np.int64) if "unit" in frame else None
