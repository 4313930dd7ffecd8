"""What a report is about: a network, labelled photos, and what the network says of them. Knows nothing about pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.batches import clean_batch_size
from tellapart.data.cache import Pictures, open_rows
from tellapart.data.duplicates import near_duplicates, units
from tellapart.data.scan import scan
from tellapart.errors import InputError, nearest
from tellapart.evaluation.features import features_and_probabilities, saved_outputs
from tellapart.evaluation.predict import Classifier, predict_arrays
from tellapart.models.forward import Forward
from tellapart.records import SPLITS, Progress, no_progress
from tellapart.run_folder import RunFolder


@dataclass(frozen=True)
class Subject:
    """A network and its photos.

    Attributes:
        model: the network.
        classes: names in the order of its outputs.
        root: the folder that paths are relative to.
        frame: path, label, split and everything else that the manifest says of each readable photo.
        pictures: the photos as the network sees them, in the order of `frame`.
        numbers: (num_images,) class numbers.
        features: (num_images, num_features) float32, the inputs of the network's last layer.
        probabilities: (num_images, num_classes) float64; rows that were not finite are even.
        num_not_finite: how many rows were not.
        main: the side that the report is about: "test", or the last one that has photos.
        unreadable: (path, reason) of photos that were left out.
        temperature: that is inside the network; None where it was never calibrated.
    """

    model: keras.Model
    classes: list[str]
    root: Path
    frame: pd.DataFrame
    pictures: Pictures
    numbers: NDArray[np.int64]
    features: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    num_not_finite: int
    main: str
    unreadable: tuple[tuple[str, str], ...]
    temperature: float | None

    def predict(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32.

        In the fastest runtime that agrees with Keras: a report asks the network some ten thousand times.
        """
        if self._forward.runtime == "keras":
            return predict_arrays(self.model, pictures)
        size = clean_batch_size(pictures.shape[1])
        batches = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        return np.concatenate([outputs[0] for outputs in self._forward(batches)])

    # Works on a frozen dataclass since it writes into the object's `__dict__`: `slots=True` would break it. Made at the
    # first look, for a conversion takes seconds.
    @cached_property
    def _forward(self) -> Forward:
        return Forward(self.model, is_converted=True)

    def at(self, split: str) -> NDArray[np.int64]:
        """Return the positions of the photos in one split."""
        return np.flatnonzero((self.frame["split"] == split).to_numpy())


def photos_of_run(run: Path) -> tuple[Path, pd.DataFrame]:
    """Return (root, manifest) of the photos that a run was made from."""
    return RunFolder(run).root, RunFolder(run).manifest()


def other_photos(photos: Path, classes: list[str], progress: Progress = no_progress) -> tuple[Path, pd.DataFrame]:
    """Return (root, manifest) of labelled photos that the run does not know; without a split all of them are "test".

    Raises:
        InputError: a label is none of the network's classes.
    """
    manifest = scan(photos, progress=progress)
    unknown = sorted(set(manifest.frame["label"]) - set(classes))
    if unknown:
        raise InputError(
            f"{photos} has the class {unknown[0]!r}, which the model does not know.{nearest(unknown[0], classes)} "
            f"It knows {', '.join(classes)}."
        )
    frame = manifest.frame
    if (frame["split"] == "").all():
        frame = frame.assign(split="test")
    # Near copies form one group: counted singly, they would make intervals too narrow.
    return manifest.root, frame.assign(unit=units(manifest, near_duplicates(manifest)))


def open_subject(
    classifier: Classifier,
    root: Path,
    manifest: pd.DataFrame,
    *,
    cache: Path,
    run: Path | None = None,
    progress: Progress = no_progress,
) -> Subject:
    """Decode the photos and ask the network about all of them, or take what its run has kept of its own photos.

    Raises:
        InputError: no photo can be read.
    """
    unreadable = manifest[manifest["error"] != ""]
    frame = manifest[manifest["error"] == ""].reset_index(drop=True)
    if frame.empty:
        raise InputError(f"{root} holds no readable photo to evaluate on.")
    pictures = open_rows(
        root, frame, classifier.image_px, folder=cache, max_pixels=classifier.max_pixels, progress=progress
    )
    # Outputs that the run has saved spare a forward pass over all photos.
    saved = saved_outputs(RunFolder(run), classifier.model, pictures) if run else None
    features, probabilities = saved or features_and_probabilities(classifier.model, pictures, progress)
    # NaN would spread to every measure. Such rows become uniform and are counted; the verdict reports them first.
    finite = np.asarray(np.isfinite(probabilities).all(axis=1))
    probabilities = np.where(finite[:, None], probabilities, 1 / len(classifier.classes)).astype(np.float64)
    index = {name: number for number, name in enumerate(classifier.classes)}
    numbers = np.array([index[label] for label in frame["label"]], np.int64)
    splits = [split for split in SPLITS if (frame["split"] == split).any()]
    return Subject(
        model=classifier.model,
        classes=classifier.classes,
        root=root,
        frame=frame,
        pictures=pictures,
        numbers=numbers,
        features=np.nan_to_num(features),
        probabilities=probabilities / probabilities.sum(axis=1, keepdims=True),
        num_not_finite=int((~finite).sum()),
        # `SPLITS` ends with the one that nothing was chosen by.
        main=splits[-1],
        unreadable=tuple(zip(unreadable["path"], unreadable["error"], strict=True)),
        temperature=classifier.temperature,
    )
