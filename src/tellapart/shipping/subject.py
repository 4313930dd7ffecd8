"""What a bundle is made of: a run's calibrated network, and what it says of photos that it did not learn from.

Knows nothing about files of other formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.cache import Pictures, open_rows
from tellapart.evaluation.calibration import conformal_threshold, fit_temperature
from tellapart.evaluation.features import features_and_probabilities
from tellapart.evaluation.predict import Classifier, predict_pictures
from tellapart.models.temperature import with_temperature
from tellapart.records import SPLITS, Progress
from tellapart.run_folder import RunFolder
from tellapart.unknown import UnknownDetector, load_detector


@dataclass(frozen=True)
class HeldOut:
    """The photos that a bundle is measured on: none that the network learned from, where there are such.

    Attributes:
        frame: their rows of the manifest.
        pictures: in the order of `frame`, as the network sees them.
        numbers: (num_images,) class numbers.
    """

    frame: pd.DataFrame
    pictures: Pictures
    numbers: NDArray[np.int64]

    def at(self, split: str) -> NDArray[np.int64]:
        """Return the positions in one split."""
        return np.flatnonzero((self.frame["split"] == split).to_numpy())

    @property
    def main(self) -> NDArray[np.int64]:
        """The positions in the last split that has photos."""
        return next(self.at(split) for split in reversed(SPLITS) if len(self.at(split)))


@dataclass(frozen=True)
class Shipped:
    """The network that ships, and what it says of the held-out photos.

    Attributes:
        model: the calibrated network.
        classes: in the order of its outputs.
        temperature: that went into it.
        threshold: of the prediction sets, or None.
        probabilities: (num_images, num_classes) float32, of the file that ships: Keras' own at full precision.
        features: (num_images, num_features) float32, likewise.
        detector: of photos of no known class, by such features; None: there is none.
        metrics: of the splits.
    """

    model: keras.Model
    classes: tuple[str, ...]
    temperature: float
    threshold: float | None
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]
    detector: UnknownDetector | None
    metrics: dict[str, Any]


def open_held_out(run: Path, classifier: Classifier, cache: Path, progress: Progress) -> HeldOut:
    """Open the run's validation and test photos, or all where there are none of those."""
    readable = RunFolder(run).readable()
    held_out = readable[readable["split"].isin(["validation", "test"])]
    frame = (held_out if len(held_out) else readable).reset_index(drop=True)
    pictures = open_rows(
        RunFolder(run).root,
        frame,
        classifier.image_px,
        folder=cache,
        max_pixels=classifier.max_pixels,
        progress=progress,
    )
    numbers = np.array([classifier.classes.index(label) for label in frame["label"]], np.int64)
    return HeldOut(frame, pictures, numbers)


def calibrated(run: Path, classifier: Classifier, photos: HeldOut, coverage: float, progress: Progress) -> Shipped:
    """Fit the threshold on validation photos, and the temperature where the run has none; without any, neither."""
    features, probabilities = features_and_probabilities(classifier.model, photos.pictures, progress)
    # Fitted on validation photos only: test photos must stay unseen by everything that the bundle promises.
    held_out, threshold, model = photos.at("validation"), None, classifier.model
    # Told apart by the key, not by its value: a run without validation photos has "temperature" with null.
    metrics = RunFolder(run).metrics()
    temperature = metrics.get("temperature") or 1.0  # it is inside the network
    if len(held_out) and "temperature" not in metrics:  # made before runs were calibrated
        temperature = fit_temperature(photos.numbers[held_out], probabilities[held_out].astype(np.float64))
        model = with_temperature(classifier.model, temperature)
        probabilities = predict_pictures(model, photos.pictures, progress)
    if len(held_out):
        held_out_probabilities = probabilities[held_out].astype(np.float64)
        threshold = conformal_threshold(photos.numbers[held_out], held_out_probabilities, coverage)
    detector = load_detector(RunFolder(run).unknown_path)
    of_splits = {split: values for split, values in metrics.items() if split in SPLITS}
    # `features` hold for both networks: the temperature is in the last layer, and they are what it sees.
    classes = tuple(classifier.classes)
    return Shipped(model, classes, temperature, threshold, probabilities, features, detector, of_splits)
