"""A bundle whose weights are not float32: what it says is measured on the file that ships, not on the Keras model.

Knows nothing about how the file was made (`tellapart.shipping.quantize`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Artefact
from tellapart.bundles.runtimes import RUNTIMES, Predictor
from tellapart.data.cache import Pictures, open_rows
from tellapart.errors import InputError
from tellapart.evaluation.measure import class_numbers
from tellapart.randomness import generator
from tellapart.records import Progress
from tellapart.run_folder import RunFolder
from tellapart.shipping.quantize import NUM_CALIBRATION
from tellapart.unknown import UnknownDetector, fit_detector

_BATCH = 32


class Answers(NamedTuple):
    """What a shipped model says of photos.

    Attributes:
        probabilities: (num_images, num_classes) float32.
        features: (num_images, num_features) float32.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


def calibration_pictures(run: RunFolder, image_px: int, cache: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Return training photos to learn the ranges of activations from: (num_images, image_px, image_px, 3) uint8.

    No label is looked at, and no photo that anything is measured on.

    Raises:
        InputError: the run's training photos cannot be read any more.
    """
    frame = run.readable()
    learned = np.flatnonzero((frame["split"] == "train").to_numpy())
    # Drawn, and in their order: photos are in the order of their classes.
    chosen = np.sort(generator(0, "calibration").permutation(learned)[:NUM_CALIBRATION])
    if not len(chosen):
        raise InputError(f"{run.path} has no training photos to learn the ranges of activations from.")
    options = {"folder": cache, "max_pixels": max_pixels}
    with open_rows(run.root, frame.iloc[chosen].reset_index(drop=True), image_px, **options) as pictures:
        return pictures.batch(np.arange(len(pictures)))


def shipped_predictor(artefact: Artefact, path: Path) -> Predictor:
    """Open an artefact in a runtime that passed its proof: ONNX Runtime, whose arithmetic is the file's, or another."""
    passed = [name for name in RUNTIMES if (proof := artefact.proofs.get(name)) is not None and proof.passed]
    name = min(passed, key=lambda name: not name.startswith("onnxruntime"))
    return RUNTIMES[name].opens(path, os.cpu_count() or 1)


def answers_to(predict: Predictor, pictures: Pictures, progress: Progress) -> Answers:
    """Return what a shipped model says of all pictures."""
    probabilities, features = [], []
    for batch in _batches(pictures):
        outputs = predict(batch)
        assert outputs.embeddings is not None  # every file of `quantize` has them
        probabilities.append(outputs.probabilities)
        features.append(outputs.embeddings)
        progress("predicting", sum(map(len, probabilities)), len(pictures))
    return Answers(np.concatenate(probabilities), np.concatenate(features))


def fit_shipped_detector(
    run: RunFolder,
    predict: Predictor,
    classes: list[str],
    held_out: NDArray[np.float32],
    image_px: int,
    cache: Path,
    max_pixels: int,
    progress: Progress,
) -> UnknownDetector | None:
    """Fit what tells photos of no known class, by the embeddings of the shipped model; None: there are too few photos.

    Args:
        run: whose training photos are the references.
        predict: the shipped model.
        classes: in the order of its outputs.
        held_out: (num_images, num_features), its embeddings of the validation photos, which set the threshold.
        image_px: side of its pictures.
        cache: the folder for decoded pictures.
        max_pixels: photos that declare more were left out.
        progress: called often with (what, done, total).
    """
    frame = run.readable()
    frame = frame[frame["split"] == "train"].reset_index(drop=True)
    with open_rows(run.root, frame, image_px, folder=cache, max_pixels=max_pixels, progress=progress) as pictures:
        features = answers_to(predict, pictures, progress).features
    try:
        return fit_detector(features, class_numbers(frame, classes), held_out)
    except InputError:
        return None


def _batches(pictures: Pictures) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(pictures), _BATCH):
        yield pictures.batch(range(start, min(start + _BATCH, len(pictures))))
