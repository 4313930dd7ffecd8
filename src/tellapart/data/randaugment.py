"""RandAugment: some random operations of one strength on each picture. Knows nothing about batches.

Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space", arXiv 1909.13719:
the paper's 14 operations. All work in place on (height, width, 3) uint8 and take a strength from -1 to 1: the setting
`randaugment_magnitude`, with a random sign. What strength s means, the ranges being those of AutoAugment:

=====================  ===========================================================================================
rotate                 a turn by 30 s degrees, counter-clockwise, about the middle
shear_x, shear_y       a slant by 0.3 s along x or y about the upper left corner
translate_x, _y        a move by 0.45 s of the side
brightness             levels times 1 + 0.9 s
contrast, color        1 + 0.9 s times the distance to the picture's mean grey, or to each pixel's own grey
sharpness              1 + 0.9 s times the distance to the smoothed picture
posterize              8 - round(4 |s|) bits of each level are kept
solarize               levels from 256 (1 - |s|) on are inverted
autocontrast           each channel is stretched to 0 to 255, whatever the strength
equalize               each channel's histogram is made flat, whatever the strength
identity               nothing
=====================  ===========================================================================================

Pixels from beyond the picture are its reflection, as in `tellapart.data.augment`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.augment import warp

Picture = NDArray[np.uint8]


def randaugment(picture: Picture, num_ops: int, magnitude: float, rng: np.random.Generator) -> None:
    """Apply `num_ops` random operations of strength `magnitude` or its negative, one after another, in place."""
    operations = list(OPERATIONS.values())
    # One draw chooses the operation and its sign.
    for draw in rng.integers(2 * len(operations), size=num_ops).tolist():
        operations[draw // 2](picture, magnitude if draw % 2 else -magnitude)


def _identity(picture: Picture, strength: float) -> None:
    pass


def _autocontrast(picture: Picture, strength: float) -> None:
    low, high = (bound(bound(picture, axis=0), axis=0).astype(np.float64) for bound in (np.min, np.max))
    # A channel of one level cannot be stretched and stays as it is.
    wide = high > low
    scale = np.where(wide, 255 / np.maximum(high - low, 1), 1)
    table = np.clip(_LEVELS * scale - wide * low * scale, 0, 255).astype(np.uint8)  # cut off, as in ImageOps
    cv2.LUT(picture, table[None], dst=picture)


def _equalize(picture: Picture, strength: float) -> None:
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([picture], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        # As Pillow's ImageOps.equalize counts: the brightest level that occurs takes no part in the step.
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        below = np.cumsum(counts) - counts
        table[0, :, channel] = np.minimum((step // 2 + below) // step, 255) if step else np.arange(256)
    cv2.LUT(picture, table, dst=picture)


def _rotate(picture: Picture, strength: float) -> None:
    angle = np.radians(30 * strength)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(picture.shape[1::-1]) - 1) / 2
    _move(picture, linear, middle - linear @ middle)


def _shear_x(picture: Picture, strength: float) -> None:
    _move(picture, np.array([[1, 0.3 * strength], [0, 1]]), np.zeros(2))


def _shear_y(picture: Picture, strength: float) -> None:
    _move(picture, np.array([[1, 0], [0.3 * strength, 1]]), np.zeros(2))


def _translate_x(picture: Picture, strength: float) -> None:
    _move(picture, np.eye(2), np.array([-0.45 * strength * picture.shape[1], 0]))


def _translate_y(picture: Picture, strength: float) -> None:
    _move(picture, np.eye(2), np.array([0, -0.45 * strength * picture.shape[0]]))


def _move(picture: Picture, linear: NDArray[np.float64], offset: NDArray[np.float64]) -> None:
    warp(picture, np.concatenate([linear, offset[:, None]], axis=1), picture.shape[0], out=picture)


def _brightness(picture: Picture, strength: float) -> None:
    cv2.addWeighted(picture, 1 + 0.9 * strength, picture, 0, 0, dst=picture)


def _contrast(picture: Picture, strength: float) -> None:
    factor = 1 + 0.9 * strength
    grey = round(cv2.mean(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0])
    cv2.addWeighted(picture, factor, picture, 0, grey * (1 - factor), dst=picture)


def _color(picture: Picture, strength: float) -> None:
    factor = 1 + 0.9 * strength
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    cv2.addWeighted(picture, factor, grey, 1 - factor, 0, dst=picture)


def _sharpness(picture: Picture, strength: float) -> None:
    # ImageFilter.SMOOTH, whose middle weighs 5/13 and each neighbour 1/13, is 9/13 box and 4/13 picture.
    blurred = -0.9 * strength * 9 / 13
    box = cv2.blur(picture, (3, 3), borderType=cv2.BORDER_REPLICATE)
    cv2.addWeighted(picture, 1 - blurred, box, blurred, 0, dst=picture)


def _posterize(picture: Picture, strength: float) -> None:
    dropped_bits = round(4 * abs(strength))
    np.bitwise_and(picture, np.uint8(256 - (1 << dropped_bits)), out=picture)


def _solarize(picture: Picture, strength: float) -> None:
    threshold = np.ceil(256 * (1 - abs(strength)))
    # OpenCV's threshold is strict: above one less is from the threshold on.
    above = cv2.threshold(picture, threshold - 1, 255, cv2.THRESH_BINARY)[1]
    np.bitwise_xor(picture, above, out=picture)


_LEVELS = np.arange(256, dtype=np.float64)[:, None]

# A draw is a place in this order: where one is added or moved, runs that are resumed or reproduced get other pictures.
OPERATIONS: dict[str, Callable[[Picture, float], None]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "solarize": _solarize,
    "color": _color,
    "posterize": _posterize,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
