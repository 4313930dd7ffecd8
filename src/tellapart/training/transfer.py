"""Begins a network from pretrained weights: features of all photos once, then a head that is fitted to them.

Knows nothing about schedules and optimisers: what comes after it, the fine-tuning, is ordinary training.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.data.batches import CleanBatches, pictures_ahead
from tellapart.files import atomic_file
from tellapart.models.backbones import features_of, load_pretrained
from tellapart.records import Progress
from tellapart.training.callbacks import write_history, write_log
from tellapart.training.checkpoint import save_weights
from tellapart.training.inputs import Inputs
from tellapart.training.network import compiled

Floats = NDArray[np.float32]

PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Of the head's squared weights, per photo; each is tried and the one with the lowest validation loss is kept."""


def begin_pretrained(run: Path, inputs: Inputs, precision: str, progress: Progress) -> dict[str, Any]:
    """Load the backbone's weights and fit the head; ``checkpoints/best.npz`` holds both.

    Args:
        run: the run folder.
        inputs: the photos, and the recipe.
        precision: "float32" or "mixed_bfloat16".
        progress: called often with (what, done, total).

    Returns:
        What the state of the run gains: the head is epoch 0, and fine-tuned weights are kept only if they are better.

    Raises:
        InputError: the pretrained weights are not to be had.
    """
    began = time.perf_counter()
    model, _ = compiled(inputs.recipe, inputs.num_classes, precision)
    load_pretrained(model, inputs.recipe.model)
    features = _features(run, model, inputs, progress)
    held_out, numbers = inputs.photos.side("validation")
    train, validation = features[inputs.positions], features[held_out]
    kernel, bias, penalty = fit_head(train, inputs.targets, validation, numbers, inputs.num_classes)
    model.get_layer("probabilities").set_weights([kernel, bias])
    row: dict[str, Any] = {"epoch": 0, "image_px": inputs.recipe.data.image_px, "learning_rate": 0.0}
    row |= _measured(model, train, inputs.targets, "")
    if len(validation):
        row |= _measured(model, validation, numbers, "val_")
    row["seconds"] = time.perf_counter() - began
    best = {"epoch": 0, "score": row.get("val_loss")}
    save_weights(run / "checkpoints" / "best.npz", model.get_weights(), best)
    write_history(run, [row])
    write_log(run, "head", penalty=penalty, **row)
    return {"best": best, "history": [row], "seconds_training": row["seconds"]}


def features_file(run: Path) -> Path:
    """Return where the features of all photos of a run lie, (num_photos, num_features) float32."""
    return run / "checkpoints" / "features.npy"


def fit_head(
    features: Floats,
    numbers: NDArray[np.int64],
    held_out: Floats,
    held_out_numbers: NDArray[np.int64],
    num_classes: int,
) -> tuple[Floats, Floats, float]:
    """Fit multinomial logistic regression to features, with the penalty that suits the held-out photos best.

    Features are standardised for the fit, so that one penalty means the same for all; the result applies to them as
    they are.

    Args:
        features: (num_images, num_features).
        numbers: (num_images,) class numbers.
        held_out: (num_held_out, num_features); without any the middle penalty is taken.
        held_out_numbers: their class numbers.
        num_classes: length of the output.

    Returns:
        Kernel (num_features, num_classes), bias (num_classes,), and the penalty.
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled, best = (features - mean) / std, None
    penalties = PENALTIES if len(held_out) else PENALTIES[len(PENALTIES) // 2 :][:1]
    fit = LogisticRegression(solver="lbfgs", max_iter=500, tol=1e-4, warm_start=True)
    for penalty in penalties:
        fit.set_params(C=1 / (penalty * len(features))).fit(scaled, numbers)
        kernel, bias = _for_all_classes(fit, num_classes)
        kernel = (kernel / std[:, None]).astype(np.float32)
        bias = (bias - mean @ kernel).astype(np.float32)
        loss = _log_loss(held_out @ kernel + bias, held_out_numbers) if len(held_out) else 0.0
        if best is None or loss < best[0]:
            best = (loss, kernel, bias, penalty)
    assert best is not None
    return best[1:]


def _for_all_classes(fit: Any, num_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return kernel and bias with a column for each class; scikit-learn has one for two classes."""
    kernel, bias = fit.coef_.T, fit.intercept_
    if num_classes == 2:
        return np.hstack([-kernel, kernel]) / 2, np.hstack([-bias, bias]) / 2
    return kernel, bias


def _log_loss(logits: Floats, numbers: NDArray[np.int64]) -> float:
    highest = logits.max(axis=1, keepdims=True)
    sums = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
    return float((sums - logits[np.arange(len(numbers)), numbers]).mean())


def _features(run: Path, model: keras.Model, inputs: Inputs, progress: Progress) -> Floats:
    """Return (num_photos, num_features) float32 of all photos, from the file where a killed run left them.

    Those of test photos teach nothing here: they save the final measurement from going through the network again.
    """
    place = features_file(run)
    pictures = inputs.photos.pictures
    if place.exists():
        kept: Floats = np.load(place)
        if len(kept) == len(pictures):
            return kept
    batches, found = CleanBatches(pictures, np.arange(len(pictures))), []
    extract = features_of(model)
    for number, images in enumerate(pictures_ahead(batches), start=1):
        found.append(np.asarray(extract.predict_on_batch(images), np.float32))
        progress("looking at the photos", min(number * batches.batch_size, len(pictures)), len(pictures))
    features = np.concatenate(found)
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(place) as stream:
        np.save(stream, features)
    return features


def _measured(model: keras.Model, features: Floats, numbers: NDArray[np.int64], prefix: str) -> dict[str, float]:
    """Return loss and accuracy of the head, as `keras.Model.fit` counts them: with smoothing and penalties."""
    head = model.get_layer("probabilities")
    kernel, bias = head.get_weights()
    logits = features @ kernel + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    targets = np.eye(len(bias), dtype=np.float32)[numbers]
    # With a teacher the loss is a function that returns one value a picture, without one a Keras loss that averages.
    loss = float(np.mean(keras.ops.convert_to_numpy(model.loss(targets, probabilities.astype(np.float32)))))
    loss += sum(float(penalty) for penalty in model.losses)
    return {f"{prefix}accuracy": float((logits.argmax(axis=1) == numbers).mean()), f"{prefix}loss": loss}
