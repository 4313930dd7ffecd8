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
        ``train``, ``validation`` and ``test``, each as `classification_metrics` gives it; a side without
        photos is missing.
    """
    model = keras.saving.load_model(run / "model.keras", compile=False)
    probabilities = predict_pictures(model, pictures, progress)
    table = prediction_table(frame, probabilities, classes)
    write_text(run / "predictions.csv", table.to_csv(index=False))
    history = pd.read_csv(run / "history.csv")
    draw_curves(history, best_epoch(history.to_dict("records")), run / "curves.png")
    return measure_sides(frame, probabilities, classes)


def measure_sides(frame: pd.DataFrame, probabilities: NDArray[np.float32], classes: list[str]) -> dict[str, Any]:
    """Return `classification_metrics` for each side of the split that has photos."""
    numbers = frame["label"].map({name: index for index, name in enumerate(classes)}).to_numpy(np.int64)
    sides = frame["split"].to_numpy(object)
    return {
        side: classification_metrics(numbers[sides == side], probabilities[sides == side], classes)
        for side in SPLITS
        if (sides == side).any()
    }
