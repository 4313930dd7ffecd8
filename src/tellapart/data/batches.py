"""Batches of augmented pictures for `keras.Model.fit`. Knows nothing about the network.

A batch depends on (seed, epoch, index) alone: never on threads, on what ran before, or on where a run was
interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.data.augment import change_levels, draw_changes, warp, warp_matrix
from tellapart.data.cache import Pictures
from tellapart.data.decode import resize
from tellapart.data.mix import draw_mixing, erase, mix
from tellapart.data.randaugment import randaugment
from tellapart.randomness import generator
from tellapart.settings import Augment

_PIXELS_AT_ONCE = 32 * 224 * 224
_MOST_AT_ONCE = 128
_FEWEST_THREADS = 2
"""With one, Keras feeds `fit` through a tf.data pipeline that tunes itself, and an epoch's end waits for the tuning: up
to twice the time (docs/experiments.md)."""


def clean_batch_size(image_px: int) -> int:
    """Return how many pictures to predict at once: a network's activations for more would not fit in little memory."""
    return max(1, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // image_px**2))


class TrainingBatches(keras.utils.PyDataset):
    """One epoch after another of shuffled, augmented batches.

    The last, incomplete batch of an epoch is left out (its photos come in other epochs), so that all
    batches have one shape; with fewer photos than a batch holds, they form one smaller batch.

    Args:
        pictures: the photos.
        positions: which of them are trained on, (num_images,) int.
        targets: (num_images,) int class numbers, or (num_images, num_targets) float32 rows, in the order of
            `positions`.
        num_classes: length of the one-hot targets that class numbers become.
        augment: ranges of the random changes.
        batch_size: pictures in a batch.
        image_px: side of the pictures in the batch.
        seed: the run's seed.
        epoch: the first epoch.
        workers: threads that make batches; at least 2.
        share: of the batches that an epoch has, above 0 to 1: its first ones, so other photos in each epoch.
    """

    def __init__(
        self,
        pictures: Pictures,
        positions: NDArray[np.int64],
        targets: NDArray,
        *,
        num_classes: int,
        augment: Augment,
        batch_size: int,
        image_px: int,
        seed: int,
        epoch: int = 0,
        workers: int = 1,
        share: float = 1.0,
    ) -> None:
        super().__init__(
            workers=max(workers, _FEWEST_THREADS), use_multiprocessing=False, max_queue_size=2 * workers + 2
        )
        self.pictures = pictures
        self.positions = positions
        # Class numbers become one-hot rows; a student's rows come as they are, twice as wide.
        self.targets = np.eye(num_classes, dtype=np.float32)[targets] if targets.ndim == 1 else targets
        self.augment = augment
        # Fewer photos than a batch would make an epoch of no steps.
        self.batch_size = min(batch_size, len(positions))
        self.image_px = image_px
        self.seed = seed
        self.epoch = epoch
        self.share = share
        self._order = self._shuffled()

    def __len__(self) -> int:
        return max(1, round(self.share * (len(self.positions) // self.batch_size)))

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return (batch, image_px, image_px, 3) uint8 and (batch, num_targets) float32."""
        chosen = self.members(index)
        images = np.empty((len(chosen), self.image_px, self.image_px, 3), np.uint8)
        # All draws of the batch at once, from a generator that belongs to (seed, purpose, epoch, index): no thread's
        # turn can change them.
        changes = draw_changes(self.augment, self.generator("augment", index), len(chosen))
        matrices = warp_matrix(changes, self.source_px, self.image_px)
        for slot, member in enumerate(chosen):
            # Written straight into the batch: no picture is copied again.
            warp(self.source(int(member)), matrices[slot], self.image_px, out=images[slot])
            change_levels(images[slot], changes.contrast[slot], changes.brightness[slot])
        # Before mixing: what a partner lends has been changed and erased already. A device does it in the same order
        # (`device_batches.make`).
        self._change_further(images, index)
        # Last, when all pictures of the batch are there: each is mixed with another one.
        mixing = draw_mixing(len(images), self.image_px, self.augment, self.generator("mix", index))
        return mix(images, self.targets[chosen], mixing)

    @property
    def source_px(self) -> int:
        """Side of the pictures that a batch is made of: the warp reads 2 × 2 pixels, and must not skip any."""
        return min(self.pictures.image_px, 2 * self.image_px)

    def source(self, member: int) -> NDArray[np.uint8]:
        """Return what the pictures of one photo are made of: (source_px, source_px, 3) uint8."""
        picture = self.pictures.read(int(self.positions[member]))
        return picture if picture.shape[0] == self.source_px else resize(picture, self.source_px)

    def members(self, index: int) -> NDArray[np.int64]:
        """Return which of `positions` and `targets` a batch of this epoch holds, (batch,)."""
        return self._order[index * self.batch_size : (index + 1) * self.batch_size]

    def generator(self, name: str, index: int) -> np.random.Generator:
        """Return the random numbers of one batch of this epoch for one purpose."""
        # `device_batches.draw` asks for the same names: with others a GPU would learn from other batches.
        return generator(self.seed, name, self.epoch, index)

    def on_epoch_end(self) -> None:
        """Go on to the next epoch. Keras stops its threads before it calls this, and starts them after."""
        # The epoch is part of every draw, so this alone gives the next one its own order and changes.
        self.epoch += 1
        self._order = self._shuffled()

    def _change_further(self, images: NDArray[np.uint8], index: int) -> None:
        """Apply RandAugment and random erasing in place; each has a generator, so that neither moves other draws."""
        if self.augment.randaugment_ops:
            rng = self.generator("randaugment", index)
            for image in images:
                randaugment(image, self.augment.randaugment_ops, self.augment.randaugment_magnitude, rng)
        if self.augment.erase:
            rng = self.generator("erase", index)
            for number in np.flatnonzero(rng.random(len(images)) < self.augment.erase):
                erase(images[number], rng)

    def _shuffled(self) -> NDArray[np.int64]:
        # The name is part of the seed: another one would shuffle every run differently, resumed ones too.
        return generator(self.seed, "order", self.epoch).permutation(len(self.positions))


class CleanBatches(keras.utils.PyDataset):
    """The photos as they are, in their order, for validation and prediction.

    Args:
        pictures: the photos.
        positions: which of them, (num_images,) int.
        targets: their class numbers, or None where there are none.
        num_classes: length of the one-hot targets.
        batch_size: pictures in a batch; the last one may be smaller; None: `clean_batch_size`.
        workers: threads that make batches; at least 2.
    """

    def __init__(
        self,
        pictures: Pictures,
        positions: NDArray[np.int64],
        targets: NDArray[np.int64] | None = None,
        *,
        num_classes: int = 0,
        batch_size: int | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(
            workers=max(workers, _FEWEST_THREADS), use_multiprocessing=False, max_queue_size=2 * workers + 2
        )
        self.pictures = pictures
        self.positions = positions
        self.targets = None if targets is None else np.eye(num_classes, dtype=np.float32)[targets]
        self.batch_size = batch_size or clean_batch_size(pictures.image_px)

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray, ...]:
        """Return (batch, image_px, image_px, 3) uint8 and, where known, (batch, num_classes) float32."""
        # In order and none left out: probabilities and features stand beside the rows of a table by their place alone.
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        images = self.pictures.batch(self.positions[part])
        return (images,) if self.targets is None else (images, self.targets[part])


def pictures_ahead(batches: CleanBatches) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of each batch; the next one is read while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        # One batch ahead, no more: two of them are in memory.
        waiting = pool.submit(batches.__getitem__, 0)
        for index in range(len(batches)):
            images = waiting.result()[0]
            if index + 1 < len(batches):
                waiting = pool.submit(batches.__getitem__, index + 1)
            yield images
