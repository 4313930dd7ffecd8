"""Shrinks a picture that comes strip by strip, to exactly what cv2.resize with INTER_AREA makes of the whole.

OpenCV's own steps in its own order and number format (modules/imgproc/src/resize.cpp: ResizeAreaFast_Invoker where both
sides shrink by a whole number, ResizeArea_Invoker otherwise), so that a large picture gives the same pixels whichever
way it is decoded. Knows nothing about files.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

_EPSILON = 2.220446049250313e-16
_SLIVER = 1e-3
"""Parts of a pixel below this are left out, as OpenCV does."""


class AreaShrinker:
    """Takes rows from top to bottom and averages them over areas.

    Attributes:
        channels: 1 or 3.

    Args:
        size: (width, height) of the whole picture.
        to: (width, height) of the result, neither more than that.
        channels: 1 or 3.
        factor: what both sides are multiplied by, where cv2.resize would be given that and not a size.
    """

    def __init__(self, size: tuple[int, int], to: tuple[int, int], channels: int, factor: float | None = None) -> None:
        self._size, self._to, self.channels = size, to, channels
        # Divided twice, as OpenCV does: 1 / (a / b) is not always b / a.
        self._across, self._down = (1 / (factor or new / old) for new, old in zip(to, size, strict=True))
        self._factor, self._row = factor, 0
        are_whole = [abs(scale - round(scale)) < _EPSILON for scale in (self._across, self._down)]
        self._is_whole, self._is_whole_across = all(are_whole), are_whole[0]
        # OpenCV sums whole numbers in its fast path and floats in the other; each rounds differently.
        kind = np.int64 if self._is_whole else np.float32
        self._sums = np.zeros((to[1], to[0] * channels), kind)
        self._begun = np.zeros(to[1], bool)
        self._weights = [] if self._is_whole else _weights(size[1], to[1], self._down)

    def add(self, rows: NDArray[np.uint8]) -> None:
        """Take the next rows, (num_rows, width[, 3]) uint8, contiguous."""
        if self._is_whole:
            sums = self._summed_across(rows)
            times = round(self._down)
            for at, row in enumerate(sums, start=self._row):
                # Rows beyond the last one of the result are left out.
                if at // times < self._to[1]:
                    self._sums[at // times] += row
        else:
            across = self._averaged_across(rows)
            for at, row in enumerate(across, start=self._row):
                for new_row, weight in self._weights[at]:
                    if self._begun[new_row]:
                        self._sums[new_row] += weight * row
                    else:
                        self._sums[new_row], self._begun[new_row] = weight * row, True
        self._row += len(rows)

    def result(self) -> NDArray[np.uint8]:
        """Return the picture, (height, width[, 3]) uint8, after the last row; once."""
        values = self._averages() if self._is_whole else self._sums
        # Halves go to the even number, as in OpenCV's cvRound.
        picture = np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)
        shape = (self._to[1], self._to[0], self.channels)
        return picture.reshape(shape if self.channels > 1 else shape[:2])

    def _averages(self) -> NDArray[np.float32]:
        """Return sums divided by the pixels of their cells, of which the last ones may lack some."""
        # Whole cells have round(across) · round(down) pixels; those at the right and lower edge may reach beyond it.
        across, down = (
            np.clip(old - times * np.arange(new), 0, times)
            for old, new, times in zip(self._size, self._to, (round(self._across), round(self._down)), strict=True)
        )
        counts = np.repeat(down[:, None] * across[None], self.channels, axis=1)
        full = round(self._across) * round(self._down)
        sums = self._sums.astype(np.float32)
        parts = np.divide(sums, counts.astype(np.float32), out=np.zeros_like(sums), where=counts > 0)
        if (round(self._across), round(self._down)) == (2, 2):  # the only ones that OpenCV rounds up at one half
            return np.where(counts == full, (self._sums + 2) // 4, parts).astype(np.float32)
        # Times the reciprocal, as OpenCV does it: a division would differ in the last bit.
        return np.where(counts == full, sums * np.float32(1 / full), parts)

    def _cells(self, rows: NDArray) -> NDArray:
        """Return (num_rows, new width, pixels of a cell, channels), for whole numbers; zeros beyond the edge."""
        width = self._to[0] * round(self._across)
        cut = rows.reshape(len(rows), self._size[0], self.channels)[:, :width]
        if cut.shape[1] < width:
            cut = np.pad(cut, ((0, 0), (0, width - cut.shape[1]), (0, 0)))
        return cut.reshape(len(rows), self._to[0], -1, self.channels)

    def _summed_across(self, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        return np.asarray(self._cells(rows).sum(axis=2, dtype=np.int64)).reshape(len(rows), -1)

    def _averaged_across(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Average each row, in the order in which OpenCV adds up."""
        if self._is_whole_across:
            cells, weight = self._cells(rows), np.float32(1 / self._across)
            # One column of the cells after the other: NumPy's own sum adds pairwise, which rounds otherwise.
            sums = cells[:, :, 0] * weight
            for at in range(1, cells.shape[2]):
                sums += cells[:, :, at] * weight
            return np.asarray(sums, np.float32).reshape(len(rows), -1)
        # Rows as they are and columns not by a whole number: OpenCV takes the same steps, in floats.
        size = None if self._factor else (self._to[0], len(rows))
        shrunk = cv2.resize(
            rows.astype(np.float32),
            size,
            fx=self._factor or 0,
            fy=1 if self._factor else 0,
            interpolation=cv2.INTER_AREA,
        )
        return np.asarray(shrunk, np.float32).reshape(len(rows), -1)


def _weights(old: int, new: int, scale: float) -> list[list[tuple[int, np.float32]]]:
    """Return for each old row the new rows that it goes into, and with which weights (computeResizeAreaTab)."""
    parts: list[list[tuple[int, np.float32]]] = [[] for _ in range(old)]
    for new_row in range(new):
        start = new_row * scale
        stop, width = start + scale, min(scale, old - start)
        # Old rows from `first` up to `last` lie in the new one entirely; the ones before and after them in part.
        last = min(math.floor(stop), old - 1)
        first = min(math.ceil(start), last)
        if first - start > _SLIVER:
            parts[first - 1].append((new_row, np.float32((first - start) / width)))
        for row in range(first, last):
            parts[row].append((new_row, np.float32(1 / width)))
        if stop - last > _SLIVER:
            parts[last].append((new_row, np.float32(min(stop - last, 1.0, width) / width)))
    return parts
