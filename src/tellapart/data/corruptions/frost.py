"""Draws sheets of frost on a window, for pictures with frost before them. Knows nothing about those pictures.

Ice grows in fronds: a bent stem, branches at about 55 degrees on both sides that shorten towards the tip,
and twigs on those. Several fronds grow from one place, and each needle stops where it meets older ice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.randomness import generator

SHEET_PX = 512

FANS = ((300, 7), (180, 16), (100, 44), (50, 90))
"""Length of the stems in pixels, and how many times fronds of it sprout from one place; the longest grow first."""

DARK, WHITE = (38, 52, 72), (250, 253, 255)
"""RGB of the clear pane and of thick ice."""

_NUM_STEPS = 8
_CELL_PX = 4
"""Side of the cells in which it is kept where ice is."""


@dataclass(frozen=True)
class _Needles:
    """Bent lines of ice.

    Attributes:
        points: (num_needles, 9, 2) float64, x before y, from root to tip.
        headings: (num_needles, 9) float64, the direction at each point in radians.
        lengths: (num_needles,) float64, in pixels, as long as nothing is in the way.
        steps: (num_needles,) int, how many of the 8 steps were free.
    """

    points: NDArray[np.float64]
    headings: NDArray[np.float64]
    lengths: NDArray[np.float64]
    steps: NDArray[np.intp]


@cache
def frost_sheet(number: int) -> NDArray[np.uint8]:
    """Return a drawn sheet of frost; drawn at the first call, in a third of a second, then kept.

    Args:
        number: another number gives another sheet; it depends on nothing else.

    Returns:
        (512, 512, 3) uint8 RGB, read-only.
    """
    random = generator(number, "frost")
    ice = np.zeros((SHEET_PX, SHEET_PX), np.uint8)
    taken = np.zeros((SHEET_PX // _CELL_PX, SHEET_PX // _CELL_PX), np.uint8)
    for length, num_fans in FANS:
        for _ in range(num_fans):
            places = random.uniform(0, SHEET_PX, (8, 2))
            root = places[np.argmin(_cells_at(cv2.blur(taken, (9, 9)), places))]
            heading = random.uniform(0, 2 * np.pi)
            for _ in range(random.integers(2, 6)):
                _grow_frond(ice, taken, random, root, heading, length * random.uniform(0.45, 1.1))
                heading += random.uniform(0.45, 0.8)
    sheet = _lit(ice, random)
    sheet.flags.writeable = False
    return sheet


def _grow_frond(
    ice: NDArray[np.uint8],
    taken: NDArray[np.uint8],
    random: np.random.Generator,
    root: NDArray[np.float64],
    heading: float,
    length: float,
) -> None:
    """Draw a frond into `ice`, as brightness, and its stem and branches into `taken`."""
    strength = random.uniform(0.7, 1)
    start = (root[None], np.array([heading]), np.array([length]), random.normal(0, 0.5, 1))
    stem = _free(_bent(*start), taken, root)
    branches = _free(_sprouts(stem, 6, 0.42, random), taken, root)
    twigs = _free(_sprouts(branches, 4, 0.3, random), taken, root)
    for needles, brightness in ((stem, 255), (branches, 215), (twigs, 170)):
        lines = list(np.rint(needles.points * 16).astype(np.int32))  # sixteenths of a pixel
        cv2.polylines(ice, lines, False, brightness * strength, 1, cv2.LINE_AA, 4)
        if needles is not twigs:
            cv2.polylines(taken, [line // _CELL_PX for line in lines], False, 255, 1, cv2.LINE_8, 4)


def _bent(
    roots: NDArray[np.float64],
    headings: NDArray[np.float64],
    lengths: NDArray[np.float64],
    bends: NDArray[np.float64],
) -> _Needles:
    """Return needles whose heading turns by `bends` radians from root to tip."""
    turned = headings[:, None] + bends[:, None] * np.linspace(0, 1, _NUM_STEPS + 1)
    steps = np.stack([np.cos(turned), np.sin(turned)], axis=-1) * (lengths / _NUM_STEPS)[:, None, None]
    steps[:, 0] = roots
    return _Needles(np.cumsum(steps, axis=1), turned, lengths, np.full(len(roots), _NUM_STEPS))


def _free(needles: _Needles, taken: NDArray[np.uint8], root: NDArray[np.float64]) -> _Needles:
    """Return `needles` up to where they meet ice, without those that cannot begin."""
    near_root = np.hypot(*np.moveaxis(needles.points - root, -1, 0)) < 8  # where sister fronds touch
    free = np.logical_and.accumulate((_cells_at(taken, needles.points) == 0) | near_root, axis=1)
    steps = free.sum(axis=1) - 1
    kept = np.flatnonzero(steps > 0)
    last = np.minimum(np.arange(_NUM_STEPS + 1), steps[kept, None])
    return _Needles(needles.points[kept[:, None], last], needles.headings[kept], needles.lengths[kept], steps[kept])


def _sprouts(needles: _Needles, spacing_px: float, share: float, random: np.random.Generator) -> _Needles:
    """Return the needles that sprout from `needles`, left and right in turn, at most `share` as long."""
    numbers = (needles.lengths / spacing_px).astype(int)
    parents = np.repeat(np.arange(len(numbers)), numbers)
    order = np.arange(len(parents)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    along = (order + random.uniform(0.1, 0.9, len(parents))) / np.maximum(numbers, 1)[parents]
    grown = along * _NUM_STEPS <= needles.steps[parents]
    parents, order, along = parents[grown], order[grown], along[grown]
    before = np.minimum((along * _NUM_STEPS).astype(int), _NUM_STEPS - 1)
    rest = (along * _NUM_STEPS - before)[:, None]
    roots = needles.points[parents, before] * (1 - rest) + needles.points[parents, before + 1] * rest
    turns = np.where(order % 2, 1, -1) * np.pi / 3.3 + random.normal(0, 0.07, len(along))
    taper = (1 - along) ** 0.7 * np.minimum(1, 0.35 + 3 * along) * random.uniform(0.25, 1, len(along))
    return _bent(roots, needles.headings[parents, before] + turns, needles.lengths[parents] * share * taper, -turns / 4)


def _cells_at(taken: NDArray[np.uint8], points: NDArray[np.float64]) -> NDArray[np.uint8]:
    columns, rows = np.moveaxis(np.clip(points / _CELL_PX, 0, len(taken) - 1).astype(np.intp), -1, 0)
    return np.asarray(taken[rows, columns])


def _lit(ice: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return the sheet as a photo shows it: grainy white around the needles, in patches."""
    sharp = ice.astype(np.float32) / 255
    near, wide = (cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (2, 10))
    patches = random.uniform(0.2, 2.2, (6, 6)).astype(np.float32)
    patches = cv2.resize(patches, ice.shape, interpolation=cv2.INTER_CUBIC) * wide
    grain = cv2.GaussianBlur(random.standard_normal(ice.shape, np.float32), (0, 0), 0.9)
    white = 0.6 * sharp + 0.7 * near + patches + grain * (0.03 + 0.5 * patches) - 0.05
    white = np.clip(white, 0, 1)[..., None]
    dark, thick = np.array(DARK, np.float32), np.array(WHITE, np.float32)
    return np.asarray(np.rint(dark + (thick - dark) * white), np.uint8)
