"""The photos of a run as batches. Knows nothing about networks or plans."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.batches import CleanBatches, TrainingBatches
from tellapart.data.cache import Pictures
from tellapart.errors import InputError
from tellapart.randomness import generator
from tellapart.settings import Recipe
from tellapart.training.distillation import student_targets

_CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Photos:
    """What is trained on.

    Attributes:
        pictures: all readable photos of the data set, as the network sees them.
        sources: the same photos, larger where the recipe asks for it: training pictures are cut from them.
        frame: their label and split, in the order of `pictures`.
        classes: names in the order of the network's outputs.
        teacher: (num_photos, num_classes), what a teacher said of them, in the order of `pictures`; None: no teacher.
        workers: threads that make batches of them; 0: one for each processor.
        cache: the folder where what was computed of photos is kept; None: nothing is.
    """

    pictures: Pictures
    sources: Pictures
    frame: pd.DataFrame
    classes: list[str]
    teacher: NDArray[np.float64] | None = None
    workers: int = 0
    cache: Path | None = None

    def side(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (positions, class numbers) of the photos in one split."""
        positions = np.flatnonzero((self.frame["split"] == name).to_numpy())
        numbers = self.frame["label"].map({label: i for i, label in enumerate(self.classes)}).to_numpy(np.int64)
        return positions.astype(np.int64), numbers[positions].astype(np.int64)


class Inputs:
    """Training batches at any size, validation batches, and clean ones.

    Raises:
        InputError: too few photos.
    """

    def __init__(self, recipe: Recipe, photos: Photos) -> None:
        self.recipe = recipe
        self.photos = photos
        self.num_classes = len(photos.classes)
        self.positions, self.targets = photos.side("train")
        if self.num_classes < 2 or len(self.positions) < self.num_classes:
            raise InputError(
                f"Found {self.num_classes} class(es) and {len(self.positions)} readable training photos. "
                "Expected at least two classes with a photo each."
            )
        self._rows: NDArray = self.targets
        if photos.teacher is not None:
            teacher_probabilities = photos.teacher[self.positions]
            self._rows = student_targets(self.targets, teacher_probabilities, recipe.distill.temperature)
        # Validation photos keep the labels alone: a student is compared with other networks by the same loss.
        held_out, targets = photos.side("validation")
        self.num_validation = len(held_out)
        # Of `pictures`, not of `sources`: validation is to see what the network will be shown.
        self.validation = CleanBatches(photos.pictures, held_out, targets, num_classes=self.num_classes, workers=_CORES)

    @property
    def images_per_epoch(self) -> int:
        """Training pictures in an epoch: whole batches."""
        # Asked of the batches: they leave out an incomplete last batch, and make a smaller one of too few photos.
        batches = self.training(self.recipe.data.image_px)
        return len(batches) * batches.batch_size

    def training(self, image_px: int, epoch: int = 0, share: float = 1.0) -> TrainingBatches:
        """Return the training batches at a picture size, beginning with an epoch; each has `share` of the batches."""
        settings = self.recipe.train
        return TrainingBatches(
            self.photos.sources,
            self.positions,
            self._rows,
            num_classes=self.num_classes,
            augment=self.recipe.augment,
            batch_size=settings.batch_size,
            image_px=image_px,
            seed=settings.seed,
            epoch=epoch,
            workers=self.photos.workers or _CORES,
            share=share,
        )

    def clean(self) -> CleanBatches | None:
        """Return training photos as they are, for BatchNormalization's statistics, where the recipe wants them."""
        settings = self.recipe.train
        count = min(settings.recalibrate_photos, len(self.positions))
        if not count:
            return None
        # The manifest is sorted by class. Batches must not be: each would be normalised by its own class's statistics,
        # and what reaches the next layer would not be what it sees in use (Wu & Johnson 2021, section 3.2).
        chosen = generator(settings.seed, "recalibrate").permutation(self.positions)[:count]
        return CleanBatches(self.photos.pictures, chosen)
