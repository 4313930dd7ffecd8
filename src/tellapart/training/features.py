"""What a pretrained network sees in photos: computed once for each photo and kept on disk, shared by all runs."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.data.batches import CleanBatches, pictures_ahead
from tellapart.data.cache import Pictures
from tellapart.data.decode import DECODER_VERSION
from tellapart.data.row_store import RowStore
from tellapart.models.backbones import backbone_network, features_of, load_pretrained
from tellapart.models.forward import Forward, pays
from tellapart.records import Progress, no_progress
from tellapart.settings import Backbone

Floats = NDArray[np.float32]

logger = logging.getLogger(__name__)


class Extractor:
    """Maps pictures of one size to a backbone's features.

    Attributes:
        forward: the network up to its head.
        num_features: length of a photo's features.

    Args:
        model: made by `backbone_network`, with its weights.
        is_converted: whether another runtime than Keras may answer.
    """

    def __init__(self, model: keras.Model, *, is_converted: bool) -> None:
        network = features_of(model)
        self.forward = Forward(network, is_converted=is_converted)
        self.num_features = int(network.output_shape[-1])
        weights = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in network.get_weights()))
        # The cache folder's name holds all that changes features: network, weights, picture size and decoder.
        self._name = f"{model.name}-{weights.hexdigest()[:16]}-{int(model.input_shape[1])}px-v{DECODER_VERSION}"

    def store(self, folder: Path) -> RowStore:
        """Return where features are kept below a cache folder."""
        # One store for both runtimes: they differ by 2e-6 of the largest feature (docs/experiments.md).
        return RowStore(folder / f"features-{self._name}", "features.f32", 4 * self.num_features)

    def __call__(self, pictures: Pictures, cache: Path | None, progress: Progress = no_progress) -> Floats:
        """Return (num_images, num_features) float32, from the cache where they are in it.

        Args:
            pictures: the photos.
            cache: the folder for caches; None: nothing is kept.
            progress: called with ("looking at the photos", done, total).
        """
        features = np.empty((len(pictures), self.num_features), np.float32)
        if cache is None:
            for rows, batch_features in self._computed(pictures, np.arange(len(pictures)), progress):
                features[rows] = batch_features
            return features
        store = self.store(cache)
        try:
            # Locked while features are computed: runs that share the cache wait, and then read what this one has
            # written.
            with store.locked():
                self._extend(store, pictures, features, progress)
        # A full disk or an unwritable folder costs the cache, not the run: compute again, without a cache.
        except OSError as error:
            logger.warning("The cache %s cannot be used (%s): features are computed anew.", store.folder, error)
            return self(pictures, None, progress)
        return features

    def _extend(self, store: RowStore, pictures: Pictures, features: Floats, progress: Progress) -> None:
        known = store.digests()
        row_of = {digest: row for row, digest in enumerate(known)}
        # -1: not in the store.
        rows = np.array([row_of.get(digest, -1) for digest in pictures.digests], np.int64)
        if (rows >= 0).any():
            # Mapped: the store may hold far more photos than this run needs.
            stored = np.memmap(store.rows_path, np.float32, "r", shape=(len(known), self.num_features))
            features[rows >= 0] = stored[rows[rows >= 0]]
        missing = np.flatnonzero(rows < 0)
        if not len(missing):
            return
        # Written batch by batch: a run that is killed has to compute only the rest.
        with store.writing(len(known)) as write:
            for part, batch_features in self._computed(pictures, missing, progress):
                features[part] = batch_features
                write(np.ascontiguousarray(batch_features).data, [pictures.digests[position] for position in part])

    def _computed(
        self, pictures: Pictures, positions: NDArray[np.int64], progress: Progress
    ) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        batches, done = CleanBatches(pictures, positions), 0
        for (batch_features,) in self.forward(pictures_ahead(batches)):
            part = positions[done : done + len(batch_features)]
            done += len(batch_features)
            yield part, batch_features
            # After `yield`, when the batch is kept: progress may raise, and nothing that was computed is to be lost.
            progress("looking at the photos", done, len(positions))


def pretrained_extractor(settings: Backbone, image_px: int, num_images: int) -> Extractor:
    """Return the extractor of a backbone with the weights that a recipe names; the last one is kept for the next call.

    A run with a time budget times it before it looks at the photos, and should not make it twice.

    Raises:
        InputError: the pretrained weights are not to be had.
    """
    return _made(settings.name, settings.weights, image_px, pays(num_images, image_px))


@functools.lru_cache(maxsize=1)
def _made(name: Any, weights: str, image_px: int, is_converted: bool) -> Extractor:
    settings = Backbone(name=name, weights=weights)
    # Two classes, since a head is needed to build it: features end before it.
    model = backbone_network(settings, 2, image_px)
    load_pretrained(model, settings)
    return Extractor(model, is_converted=is_converted)
