"""Photos that lie in memory, for tests of training that need no folder of them."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.cache import Pictures
from tellapart.files import sha256
from tellapart.training.inputs import Photos


class Held(Pictures):
    """Pictures, (num_images, image_px, image_px, 3) uint8, under the digests of their own levels."""

    def __init__(self, levels: NDArray[np.uint8]) -> None:
        digests = [sha256(picture.tobytes()) for picture in levels]
        super().__init__([Path(f"{number}.png") for number in range(len(levels))], digests, levels.shape[1])
        self.levels = levels

    def read(self, position: int) -> NDArray[np.uint8]:
        return self.levels[position]


def noise(count: int, image_px: int, seed: int = 0, levels: int = 256) -> NDArray[np.uint8]:
    """Return so many pictures, no two alike."""
    return np.random.default_rng(seed).integers(0, levels, (count, image_px, image_px, 3), np.uint8)


def held_photos(image_px: int = 16, *, classes: int = 2, train: int = 24, validation: int = 8) -> Photos:
    """Return so many photos of each class, one class after the other as in a manifest; each class is brighter."""
    each = train + validation
    numbers = np.repeat(np.arange(classes), each)
    brightness = (150 // classes * numbers).astype(np.uint8)
    levels = noise(len(numbers), image_px, levels=100) + brightness[:, None, None, None]
    names = [f"c{number}" for number in range(classes)]
    sides = (["train"] * train + ["validation"] * validation) * classes
    frame = pd.DataFrame({"label": [names[number] for number in numbers], "split": sides})
    pictures = Held(levels)
    return Photos(pictures, pictures, frame, names, workers=1)


def drawn(model: keras.Model, seed: int) -> list[NDArray[np.float64]]:
    """Return weights for a network with which pictures give different answers; variances are above 0."""
    rng = np.random.default_rng(seed)
    spans = [(-0.3, 0.3) if weight.ndim > 1 else (0.1, 0.5) for weight in model.get_weights()]
    return [rng.uniform(*span, weight.shape) for span, weight in zip(spans, model.get_weights(), strict=True)]


def with_outlier(model: keras.Model, convolution: str, normalisation: str, factor: float) -> None:
    """Make one channel between two layers so many times as large as it was; the network says the same."""
    layers = [model.get_layer(name) for name in (convolution, normalisation)]
    kernel, bias = layers[0].get_weights()
    gamma, beta, mean, variance = layers[1].get_weights()
    scale = np.sqrt(variance[0] + layers[1].epsilon)
    kernel[..., 0] *= factor
    bias[0] *= factor
    mean[0] *= factor
    # The normalisation's constant is part of what it divides by.
    variance[0] = (scale * factor) ** 2 - layers[1].epsilon
    layers[0].set_weights([kernel, bias])
    layers[1].set_weights([gamma, beta, mean, variance])
