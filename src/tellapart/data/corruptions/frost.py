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

FANS = ((300, 6), (180, 18), (100, 48), (50, 90))
"""Length of the stems in pixels, and how many times fronds of it sprout from one place; the longest grow first."""

FANS_AT_ONCE = 6

DARK, WHITE = (38, 52, 72), (250, 253, 255)
"""RGB of the clear pane and of thick ice."""

_STEPS = np.arange(9)
"""A needle is drawn in 8 steps, between 9 points."""

_CELL_PX = 4
"""Side of the cells in which it is kept where ice is."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Needles:
    """Bent lines of ice.

    Attributes:
        points: (num_needles, 9, 2) float64, x before y, from root to tip.
        headings: (num_needles, 9) float64, the direction at each point in radians.
        lengths: (num_needles,) float64, in pixels, as long as nothing is in the way.
        steps: (num_needles,) int, how many of the 8 steps were free.
        origins: (num_needles, 2) float64, where the frond began.
    """

    points: Floats
    headings: Floats
    lengths: Floats
    steps: NDArray[np.intp]
    origins: Floats


@cache
def frost_sheet(number: int) -> NDArray[np.uint8]:
    """Return a drawn sheet of frost; drawn at the first call, in a fraction of a second, then kept.

    Args:
        number: another number gives another sheet; it depends on nothing else.

    Returns:
        (512, 512, 3) uint8 RGB, read-only.
    """
    random = generator(number, "frost")
    ice = np.zeros((SHEET_PX, SHEET_PX), np.uint8)
    taken = np.zeros((SHEET_PX // _CELL_PX, SHEET_PX // _CELL_PX), np.uint8)
    for length, num_fans in FANS:
        for _ in range(num_fans // FANS_AT_ONCE):
            places = random.uniform(0, SHEET_PX, (FANS_AT_ONCE, 8, 2))
            # Of eight places each fan takes the one with the least ice around it.
            emptiest = np.argmin(_cells_at(cv2.blur(taken, (9, 9)), places), axis=1)
            roots = places[np.arange(FANS_AT_ONCE), emptiest]
            headings = random.uniform(0, 2 * np.pi, FANS_AT_ONCE)
            for _ in range(random.integers(3, 6)):
                _grow_fronds(ice, taken, random, roots, headings, length * random.uniform(0.45, 1.1, FANS_AT_ONCE))
                headings = headings + random.uniform(0.45, 0.8, FANS_AT_ONCE)
    sheet = _lit(ice, random)
    # All calls and threads share it: nobody may draw into it.
    sheet.flags.writeable = False
    return sheet


def _grow_fronds(
    ice: NDArray[np.uint8],
    taken: NDArray[np.uint8],
    random: np.random.Generator,
    roots: Floats,
    headings: Floats,
    lengths: Floats,
) -> None:
    """Draw fronds into `ice`, as brightness, and their stems and branches into `taken`."""
    strength = random.uniform(0.7, 1)
    stems = _free(_bent(roots, headings, lengths, random.normal(0, 0.5, len(roots)), roots), taken)
    branches = _free(_sprouts(stems, 6, 0.42, random), taken)
    twigs = _free(_sprouts(branches, 4, 0.3, random), taken)
    for needles, brightness in ((stems, 255), (branches, 215), (twigs, 170)):
        lines = list(np.rint(needles.points * 16).astype(np.int32))  # sixteenths of a pixel
        cv2.polylines(ice, lines, False, brightness * strength, 1, cv2.LINE_AA, 4)
        # Twigs stop at older ice, but nothing stops at them.
        if needles is not twigs:
            cv2.polylines(taken, [line // _CELL_PX for line in lines], False, 255, 1, cv2.LINE_8, 4)


def _bent(roots: Floats, headings: Floats, lengths: Floats, bends: Floats, origins: Floats) -> _Needles:
    """Return needles whose heading turns by `bends` radians from root to tip."""
    turned = headings[:, None] + bends[:, None] * (_STEPS / _STEPS[-1])
    steps = np.stack([np.cos(turned), np.sin(turned)], axis=-1) * (lengths / _STEPS[-1])[:, None, None]
    steps[:, 0] = roots
    return _Needles(np.cumsum(steps, axis=1), turned, lengths, np.full(len(roots), _STEPS[-1]), origins)


def _free(needles: _Needles, taken: NDArray[np.uint8]) -> _Needles:
    """Return `needles` up to where they meet ice, without those that cannot begin."""
    away = needles.points - needles.origins[:, None]
    near_origin = away[..., 0] ** 2 + away[..., 1] ** 2 < 8**2  # where fronds of one fan touch
    # Free up to the first step that meets ice: what lies beyond is cut off too.
    free = np.logical_and.accumulate((_cells_at(taken, needles.points) == 0) | near_origin, axis=1)
    steps = free.sum(axis=1) - 1
    selected = np.flatnonzero(steps > 0)
    points = needles.points[selected[:, None], np.minimum(_STEPS, steps[selected, None])]
    return _Needles(
        points, needles.headings[selected], needles.lengths[selected], steps[selected], needles.origins[selected]
    )


def _sprouts(needles: _Needles, spacing_px: float, share: float, random: np.random.Generator) -> _Needles:
    """Return the needles that sprout from `needles`, left and right in turn, at most `share` as long."""
    numbers = (needles.lengths / spacing_px).astype(int)
    parents = np.repeat(np.arange(len(numbers)), numbers)
    order = np.arange(len(parents)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    along = (order + random.uniform(0.1, 0.9, len(parents))) / numbers[parents]
    grown = along * _STEPS[-1] <= needles.steps[parents]
    parents, order, along = parents[grown], order[grown], along[grown]
    before = np.minimum((along * _STEPS[-1]).astype(int), _STEPS[-1] - 1)
    rest = (along * _STEPS[-1] - before)[:, None]
    roots = needles.points[parents, before] * (1 - rest) + needles.points[parents, before + 1] * rest
    headings = needles.headings[parents, before]
    turns = np.where(order % 2, 1, -1) * np.pi / 3.3 + random.normal(0, 0.07, len(along))
    taper = (1 - along) ** 0.7 * np.minimum(1, 0.35 + 3 * along) * random.uniform(0.25, 1, len(along))
    lengths = needles.lengths[parents] * share * taper
    return _bent(roots, headings + turns, lengths, -turns / 4, needles.origins[parents])


def _cells_at(taken: NDArray[np.uint8], points: Floats) -> NDArray[np.uint8]:
    cells = np.clip(points / _CELL_PX, 0, len(taken) - 1).astype(np.intp)
    return np.asarray(taken[cells[..., 1], cells[..., 0]])


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
