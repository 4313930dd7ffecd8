"""Draws docs/pictures/drawn.png: eight pictures of each class of the drawn data set.

Run it from the repository's root: python docs/make_drawn_picture.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tellapart.data.drawn import CLASSES, encoded_picture

TILE_PX = 64
GAP_PX = 5
NUM_COLUMNS = 8
NAME_PX = 64


def main() -> None:
    """Write the contact sheet beside this file, under pictures/."""
    step = TILE_PX + GAP_PX
    sheet = np.full((len(CLASSES) * step + GAP_PX, NAME_PX + NUM_COLUMNS * step + GAP_PX, 3), 253, np.uint8)
    for row, label in enumerate(CLASSES):
        top = GAP_PX + row * step
        place = (GAP_PX + 2, top + TILE_PX // 2 + 4)
        cv2.putText(sheet, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)
        for column in range(NUM_COLUMNS):
            data = np.frombuffer(encoded_picture(0, label, column + 1)[1], np.uint8)
            left = NAME_PX + GAP_PX + column * step
            sheet[top : top + TILE_PX, left : left + TILE_PX] = _tile(cv2.imdecode(data, cv2.IMREAD_COLOR))
    target = Path(__file__).parent / "pictures" / "drawn.png"
    target.parent.mkdir(exist_ok=True)
    # Six bits a channel: the grain's last bits are what a PNG cannot compress, and no eye misses them.
    cv2.imwrite(str(target), sheet & 0xFC | 2, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _tile(picture: np.ndarray) -> np.ndarray:
    """Return the largest square in the middle of `picture`, resized to the tile."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    return cv2.resize(square, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
