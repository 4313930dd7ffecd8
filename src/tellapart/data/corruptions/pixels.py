"""Types, random bits and rounding that the corruptions share."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(height, width, 3) uint8 RGB."""

Plane = NDArray[np.float32]
"""(height, width) or (height, width, 3) float32, 0 to 255 unless said otherwise."""


def draw_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> NDArray:
    """Return an array in which all values of an unsigned `dtype` are equally likely; 64 bits are drawn at a time."""
    length, bits = int(np.prod(shape)), 8 * np.dtype(dtype).itemsize
    words = rng.integers(0, 2**64, -(-length * bits // 64), np.uint64)
    return np.asarray(words.view(dtype)[:length].reshape(shape))


def draw_signed(rng: np.random.Generator, shape: tuple[int, ...]) -> Plane:
    """Return (shape) float32, uniform between -1 and 1 in steps of 1/32768."""
    bits = draw_bits(rng, shape, np.uint16).astype(np.float32)
    return np.asarray((bits - np.float32(32767.5)) * np.float32(1 / 32768), np.float32)


def levels(values: Any) -> Picture:
    """Return float `values`, none below 0, as uint8: rounded, at most 255."""
    # OpenCV takes the size of a number before it rounds: -20 would become 20, not 0.
    return np.asarray(cv2.convertScaleAbs(values), np.uint8)
