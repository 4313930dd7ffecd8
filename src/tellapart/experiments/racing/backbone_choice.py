"""Which pretrained network to begin from: heads on what each sees of a few photos, and what a photo costs.

Features of some hundred photos rank networks as those of all would, for the head is the same and the photos are alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from tellapart.data.cache import open_rows
from tellapart.randomness import generator
from tellapart.records import Observer
from tellapart.run_folder import RunFolder
from tellapart.sections import Backbone
from tellapart.settings import Machine
from tellapart.training.features import pretrained_extractor
from tellapart.training.transfer import fit_head

MOST_TRAINED, MOST_HELD_OUT = 400, 200
"""Photos that the heads are fitted to, and judged by."""


@dataclass(frozen=True)
class Tried:
    """A pretrained network on a few photos.

    Attributes:
        name: as in ``model.name``.
        loss: of its head, in nats, on validation photos that it was not fitted to.
        seconds_per_photo: for its features, in Keras.
    """

    name: str
    loss: float
    seconds_per_photo: float


def try_backbones(
    names: Sequence[str],
    folder: RunFolder,
    image_px: int,
    cache: Path,
    machine: Machine,
    *,
    until: float,
    observer: Observer,
) -> list[Tried]:
    """Fit a head on what each network sees of a few photos, those that come first until the time is over.

    Args:
        names: of networks whose weights are at hand.
        folder: with a recipe, and a table of photos and their split.
        image_px: side of the pictures.
        cache: the folder for decoded pictures.
        machine: how large the cache may grow.
        until: when no further network is begun, by `time.time`; the first one is tried always.
        observer: whom to tell.
    """
    photos, seed = folder.readable(), folder.record().seed
    classes = sorted(photos["label"].unique())
    chosen = [
        generator(seed, "backbones", split).permutation(np.flatnonzero(photos["split"] == split))[:most]
        for split, most in (("train", MOST_TRAINED), ("validation", MOST_HELD_OUT))
    ]
    # Training photos first: the head learns from the first `num_train` rows.
    rows = photos.iloc[np.concatenate(chosen)].reset_index(drop=True)
    numbers = rows["label"].map({name: number for number, name in enumerate(classes)}).to_numpy(np.int64)
    num_train = len(chosen[0])
    trials: list[Tried] = []
    # Decoded once for all networks, and kept in the cache: the candidates that follow read them from there.
    with open_rows(
        folder.root,
        rows,
        image_px,
        folder=cache,
        limit_bytes=machine.cache_limit_bytes,
        max_pixels=folder.recipe().data.max_pixels,
        progress=observer.progress,
    ) as pictures:
        for name in names:
            # The first network is always tried: there must be one to begin from.
            if trials and time.time() > until:
                break
            # "0 photos": never converted, so that all networks are timed in Keras.
            extractor = pretrained_extractor(
                Backbone.model_validate({"name": name, "weights": "imagenet"}), image_px, 0
            )
            next(iter(extractor.forward([pictures.batch(range(min(8, len(rows))))])))  # compiles
            began = time.perf_counter()
            # Without a cache: features that are read would not tell what a photo costs.
            features = extractor(pictures, None, observer.progress)
            seconds = (time.perf_counter() - began) / len(rows)
            loss = _loss(features, numbers, num_train, len(classes), seed)
            trials.append(Tried(name, loss, seconds))
            observer.announce(f"{name}: validation loss {loss:.3f} on a few photos, {1000 * seconds:.0f} ms each.")
    return trials


def _loss(
    features: NDArray[np.float32], numbers: NDArray[np.int64], num_train: int, num_classes: int, seed: int
) -> float:
    """Return the loss of a head on the photos that it was not fitted to.

    A class that none of the few training photos shows cannot be named: its photos are left out.
    """
    train, held_out = numbers[:num_train], numbers[num_train:]
    known = np.unique(train)
    is_known = np.isin(held_out, known)
    if len(known) < 2 or not is_known.any():
        return float("inf")
    # A head has a column for each class that it saw, without gaps.
    column = np.full(num_classes, -1, np.int64)
    column[known] = np.arange(len(known))
    held_out_features = features[num_train:][is_known]
    kernel, bias, _ = fit_head(
        features[:num_train], column[train], held_out_features, column[held_out[is_known]], len(known), seed=seed
    )
    log_probabilities = log_softmax(held_out_features @ kernel + bias, axis=1)
    return float(-log_probabilities[np.arange(len(held_out_features)), column[held_out[is_known]]].mean())
