"""Heat maps laid over pictures, and sheets of them. Knows nothing about networks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

_STRENGTH = 0.6
"""How much of a picture the hottest place covers."""
_ROWS = 64
_GAP = 6
_LINE_HEIGHT = 22


def to_heat(values: NDArray[np.float32], images: Picture) -> NDArray[np.float32]:
    """Enlarge maps to the pictures' size, leave out what speaks against the class, and scale to [0, 1]."""
    height, width = images.shape[1:3]
    enlarged = np.stack([cv2.resize(value, (width, height), interpolation=cv2.INTER_LINEAR) for value in values])
    # Scale after enlarging: interpolation lowers peaks, and the largest value of the result has to be 1.
    positive = np.maximum(np.nan_to_num(enlarged, nan=0.0, posinf=0.0, neginf=0.0), 0)
    largest = positive.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(positive, largest, out=np.zeros_like(positive), where=largest > 0), np.float32)


def overlay(picture: Picture, heat: NDArray[np.float32]) -> Picture:
    """Return the picture, grey where it is cold and coloured where it is hot.

    Args:
        picture: (height, width, 3) uint8 RGB.
        heat: (rows, columns) float32 in [0, 1], of any size; what is not a number counts as cold.

    Returns:
        (height, width, 3) uint8 RGB. The colours are those of "inferno", whose brightness rises with the heat: they
        can be told apart without seeing colour.
    """
    height, width = picture.shape[:2]
    finite = np.nan_to_num(heat, nan=0.0, posinf=1.0, neginf=0.0)
    enlarged = np.clip(cv2.resize(finite, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
    colours = cv2.applyColorMap((255 * enlarged).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    # Grey below the heat: the photo's own colours could not be told from those of the map.
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    shown = np.empty((height, width, 3), np.uint8)
    for start in range(0, height, _ROWS):  # in floats the whole would take ten times the picture
        rows = slice(start, start + _ROWS)
        share = _STRENGTH * enlarged[rows, :, None]
        shown[rows] = (1 - share) * grey[rows] + share * colours[rows]
    return shown


def sheet(rows: Sequence[Sequence[tuple[Picture, str]]], *, cell_px: int = 160) -> Picture:
    """Return pictures with a line of text below each, in rows.

    Args:
        rows: of (picture, text); pictures are fitted into squares without being stretched.
        cell_px: side of the squares.

    Returns:
        (height, width, 3) uint8 RGB on white.
    """
    columns = max(len(row) for row in rows)
    height, width = cell_px + _LINE_HEIGHT + _GAP, cell_px + _GAP
    canvas = np.full((len(rows) * height + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    for row_number, row in enumerate(rows):
        for column, (picture, text) in enumerate(row):
            top, left = row_number * height + _GAP, column * width + _GAP
            small = _fitted(picture, cell_px)
            down, right = (cell_px - small.shape[0]) // 2, (cell_px - small.shape[1]) // 2
            canvas[top + down : top + down + small.shape[0], left + right : left + right + small.shape[1]] = small
            _write(canvas, text, left, top + cell_px + 15, cell_px)
    return canvas


def _fitted(picture: Picture, cell_px: int) -> Picture:
    scale = cell_px / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    # INTER_AREA avoids moiré when shrinking, but leaves blocks when enlarging.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=method))


def _write(canvas: Picture, text: str, left: int, baseline: int, width: int) -> None:
    """Write one line of text, cut where it would leave its cell."""
    ascii_text = text.encode("ascii", "replace").decode()  # OpenCV's letters end there
    while ascii_text and cv2.getTextSize(ascii_text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0] > width:
        ascii_text = ascii_text[:-2] + "." if len(ascii_text) > 2 else ""
    cv2.putText(canvas, ascii_text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 30, 30), 1, cv2.LINE_AA)
