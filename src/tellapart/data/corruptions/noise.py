"""Noise of sensors and of transmission, for each value of a picture by itself.

The numbers come from tables that random bits look up: many times faster than drawing from the distribution.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.corruptions.pixels import Picture, draw_bits


def gaussian_noise(picture: Picture, rng: np.random.Generator, deviation: float) -> Picture:
    """Add normal noise, its standard deviation a share of white: a sensor in low light."""
    noise = np.take(_normal_levels(deviation), draw_bits(rng, picture.shape, np.uint16))
    return np.asarray(cv2.add(picture, noise, dtype=cv2.CV_8U))


def shot_noise(picture: Picture, rng: np.random.Generator, photons: int) -> Picture:
    """Count photons: Poisson, with a mean of `photons` for white."""
    own, cells = photon_tables(photons)
    columns = draw_bits(rng, picture.shape, np.uint8)
    # Column and level side by side are the number of a cell, level * 256 + column.
    pairs = np.asarray(cv2.merge([columns.reshape(-1, 1), picture.reshape(-1, 1)]))
    entries = np.take(cells, pairs.view("<u2").reshape(picture.shape))
    keep = draw_bits(rng, picture.shape, np.uint16) < entries >> np.uint32(8)
    return np.asarray(cv2.copyTo(cv2.LUT(columns, own), keep.view(np.uint8), entries.astype(np.uint8)))


def impulse_noise(picture: Picture, rng: np.random.Generator, share: float) -> Picture:
    """Make a share of the values black or white, one as likely as the other ("salt and pepper"): bit errors."""
    draws = draw_bits(rng, picture.shape, np.uint16)
    result = cv2.bitwise_and(picture, cv2.compare(draws, round(65536 * share), cv2.CMP_GE))
    return np.asarray(cv2.bitwise_or(result, cv2.compare(draws, round(65536 * share / 2), cv2.CMP_LT)))


@cache
def _normal_levels(deviation: float) -> NDArray[np.int16]:
    """Return 65,536 equally likely values of the noise in levels, (65536,) int16.

    A picture's levels are whole numbers, so rounding the noise is rounding the sum. The outermost values
    lie at 4.3 standard deviations.
    """
    half = NormalDist(0, 255 * deviation)
    upper = np.rint([half.inv_cdf((65536 - index - 0.5) / 65536) for index in range(32768)])
    return np.concatenate([upper, -upper]).astype(np.int16)


@cache
def photon_tables(photons: int) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Return the distributions for all 256 levels, made for drawing by the alias method (Walker 1977).

    A level's distribution is cut into 256 equal columns of two outcomes each. One draw says which column,
    a second which of its outcomes. More than `photons` photons are white, like `photons` of them.

    Returns:
        (256,) uint8: each column's own outcome, as a level;
        (256 * 256,) uint32: for each level and column the other outcome, and above its 8 bits how many of
        65,536 second draws keep the column's own.
    """
    counts = np.arange(256)
    outcomes = np.rint(np.minimum(counts / photons, 1) * 255).astype(np.uint8)
    other, share = np.tile(outcomes, (256, 1)), np.full((256, 256), 65536, np.uint32)
    for level in range(256):
        mean = level / 255 * photons
        chances = np.exp(-mean) * np.cumprod(np.concatenate([[1.0], mean / counts[1:]]))
        chances[photons:] = 0
        chances[photons] = max(1 - chances.sum(), 0)
        heights = (256 * chances).tolist()
        low = [column for column in range(256) if heights[column] < 1]
        high = [column for column in range(256) if heights[column] >= 1]
        # Walker's alias method: each column below the average height is filled up from one above it.
        while low and high:
            column, donor = low.pop(), high[-1]
            share[level, column], other[level, column] = round(heights[column] * 65536), outcomes[donor]
            heights[donor] -= 1 - heights[column]
            if heights[donor] < 1:
                low.append(high.pop())
    return outcomes, (share << np.uint32(8) | other).ravel()
