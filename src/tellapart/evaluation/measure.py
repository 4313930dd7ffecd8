"""Measures a trained run on all its photos and writes what was found. Knows nothing about training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.cache import Pictures
from tellapart.errors import InputError
from tellapart.evaluation.balance import choose_strength, shift_of, shifted
from tellapart.evaluation.calibration import at_temperature, fit_temperature
from tellapart.evaluation.curves import draw_curves
from tellapart.evaluation.features import features_and_probabilities, save_outputs
from tellapart.evaluation.intervals import share_interval
from tellapart.evaluation.metrics import classification_metrics
from tellapart.evaluation.predict import predict_arrays, prediction_table
from tellapart.files import write_text
from tellapart.models.temperature import with_temperature
from tellapart.records import SPLITS, Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.tables import csv_text
from tellapart.training.network import save_network
from tellapart.training.selection import best_epoch
from tellapart.unknown import fit_detector

_SAME = 1e-4
"""Of a probability, between a network and its head on features that were computed before."""


def measure(
    run: RunFolder,
    model: keras.Model,
    pictures: Pictures,
    frame: pd.DataFrame,
    classes: list[str],
    *,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Predict every photo with the network, calibrate it, and measure each split.

    Writes ``predictions.csv``, ``features.npz``, ``unknown.npz``, ``curves.png`` and the calibrated ``model.keras``
    into the run folder: every command that opens the run gives the probabilities that were measured here.

    Args:
        run: the run folder.
        model: the network with the weights that training kept.
        pictures: the readable photos.
        frame: their path, label and split, in the same order.
        classes: names in the order of the network's outputs.
        progress: called with ("predicting", done, total).

    Returns:
        ``temperature`` and ``balance`` as `calibrate` gives them, ``unknown`` as `fit_unknown` gives it, and ``train``,
        ``validation`` and ``test``, each as `classification_metrics` gives it, ``train`` without intervals; a split
        without photos is missing.
    """
    history = run.history()
    # Epoch 0 is the fitted head: where it was kept, its features are on disk already.
    best = best_epoch(history.to_dict("records"))
    features, predicted = (best == 0 and _by_features(run, model, pictures)) or features_and_probabilities(
        model, pictures, progress
    )
    # Before the table is written: the run, its table and its bundle must give one probability.
    probabilities, calibration = calibrate(run, model, predicted, frame, classes)
    # The calibrated ones: `saved_outputs` holds them against what model.keras says, which is calibrated by now.
    save_outputs(run, features, probabilities)
    table = prediction_table(frame, probabilities, classes)
    write_text(run.predictions_path, csv_text(table))
    draw_curves(history, best, run.path / "curves.png")
    unknown = fit_unknown(run, features, frame, classes)
    return {**calibration, "unknown": unknown, **measure_sides(frame, probabilities, classes)}


def _by_features(
    run: RunFolder, model: keras.Model, pictures: Pictures
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return features and what a head that was fitted to them says; None where the whole network says something else.

    The whole network takes minutes for what the head, kept as it was fitted, has in milliseconds.
    """
    if not run.head_features.exists():
        return None
    head, features = model.get_layer("probabilities"), np.load(run.head_features)
    probabilities = np.asarray(keras.ops.convert_to_numpy(head(features)), np.float32)
    sample = np.linspace(0, len(pictures) - 1, min(len(pictures), 32)).astype(np.int64)
    # A few photos through the whole network: only if it says the same may the head answer for all.
    by_network = predict_arrays(model, pictures.batch(sample))
    agrees = len(probabilities) == len(pictures) and np.abs(by_network - probabilities[sample]).max() < _SAME
    return (features, probabilities) if agrees else None


def calibrate(
    run: RunFolder, model: keras.Model, probabilities: NDArray[np.float32], frame: pd.DataFrame, classes: list[str]
) -> tuple[NDArray[np.float32], dict[str, float | None]]:
    """Divide a network's logits by the temperature that suits the validation photos, and save it as ``model.keras``.

    Where the recipe asks for balance, they are moved towards rare classes first (`tellapart.evaluation.balance`).

    Args:
        run: the run folder.
        model: the network.
        probabilities: (num_images, num_classes), its own for the photos of `frame`.
        frame: label and split of the photos.
        classes: names in the order of the network's outputs.

    Returns:
        The probabilities of the calibrated network, and ``temperature`` and ``balance`` (how far it was moved, 0 to 1);
        without validation photos `probabilities` as they are, None and 0.
    """
    held_out = (frame["split"] == "validation").to_numpy()
    if not held_out.any():
        return probabilities, {"temperature": None, "balance": 0.0}
    true, adjusted, strength = class_numbers(frame, classes), probabilities.astype(np.float64), 0.0
    counts = np.bincount(true[(frame["split"] == "train").to_numpy()], minlength=len(classes))
    # The members of an ensemble were moved already.
    if run.recipe().train.balance == "auto" and not run.record().request.ensemble:
        strength = choose_strength(true[held_out], adjusted[held_out], counts)
    # First the shift, then the temperature: with_temperature adds the shift before it divides.
    shift = shift_of(counts, strength) if strength else None
    adjusted = adjusted if shift is None else shifted(adjusted, shift)
    temperature = fit_temperature(true[held_out], adjusted[held_out])
    # Into model.keras alone: a run that is killed after this is measured again from checkpoints/best.npz, which never
    # holds a temperature. Otherwise it would be calibrated twice.
    save_network(with_temperature(model, temperature, shift), run.model_path)
    outcome: dict[str, float | None] = {"temperature": temperature, "balance": strength}
    return at_temperature(adjusted, temperature).astype(np.float32), outcome


def fit_unknown(
    run: RunFolder, features: NDArray[np.float32], frame: pd.DataFrame, classes: list[str]
) -> dict[str, Any]:
    """Fit what tells photos of no known class, write ``unknown.npz``, and count what it costs on known test photos.

    Args:
        run: the run folder.
        features: (num_images, num_features) of the photos of `frame`.
        frame: label, split and group of the photos.
        classes: names in the order of the network's outputs.

    Returns:
        ``promised`` (the share of known photos that is refused at most), ``threshold``, ``num_references``,
        ``num_held_out``, and where there are test photos ``refused_test``: its ``share`` with its ``interval``. Or
        ``missing``: why there is no such decision.
    """
    splits, numbers = frame["split"].to_numpy(object), class_numbers(frame, classes)
    learned, held_out, test = (splits == split for split in SPLITS)
    run.unknown_path.unlink(missing_ok=True)  # of a measurement that was interrupted
    try:
        # Learned from training photos, its threshold set on validation photos; test photos only count what it costs.
        detector = fit_detector(features[learned], numbers[learned], features[held_out])
    except InputError as error:
        return {"missing": str(error)}
    detector.save(run.unknown_path)
    record: dict[str, Any] = {
        "promised": detector.refused,
        "threshold": detector.threshold,
        "num_references": len(detector.references),
        "num_held_out": detector.num_held_out,
    }
    if test.any():
        refused, groups = detector.is_unknown(detector.similarity(features[test])), groups_of(frame)
        ends = share_interval(refused, None if groups is None else groups[test])
        record["refused_test"] = {"share": float(refused.mean()), "interval": [ends.low, ends.high]}
    return record


def class_numbers(frame: pd.DataFrame, classes: list[str]) -> NDArray[np.int64]:
    """Return (num_images,) the place of each photo's label among `classes`."""
    numbers = {name: index for index, name in enumerate(classes)}
    # Every label must be among the classes: a missing one is NaN, which becomes an arbitrary integer.
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
            memorised is no sample of what it will see.
    """
    numbers, groups = class_numbers(frame, classes), groups_of(frame)
    splits, metrics = frame["split"].to_numpy(object), {}
    for split in SPLITS:
        inside = splits == split
        if inside.any():
            split_groups = None if groups is None else groups[inside]
            metrics[split] = classification_metrics(numbers[inside], probabilities[inside], classes, split_groups)
    if trained_on and "train" in metrics:
        # Readers must ask with `get`: they print no interval where there is none.
        del metrics["train"]["intervals"]
    return metrics


def groups_of(frame: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return the number of each photo's group, (num_images,), or None where a table does not say."""
    return frame["unit"].to_numpy(np.int64) if "unit" in frame else None
