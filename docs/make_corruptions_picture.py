"""Draws docs/pictures/corruptions.png: the 15 corruptions at all severities, on a drawn picture.

Run it from the repository's root: python docs/make_corruptions_picture.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tellapart.data.corrupt import CORRUPTIONS, corrupt
from tellapart.data.decode import decode_square
from tellapart.data.drawn import encoded_picture
from tellapart.randomness import generator

PICTURE_PX = 224
TILE_PX = 112
GAP_PX = 4
NAME_PX = 126
HEAD_PX = 18


def main() -> None:
    """Write the contact sheet beside this file, under pictures/."""
    picture = decode_square(encoded_picture(0, "flower", 2)[1], PICTURE_PX)
    step = TILE_PX + GAP_PX
    sheet = np.full((HEAD_PX + len(CORRUPTIONS) * step, NAME_PX + 6 * step, 3), 253, np.uint8)
    for column, head in enumerate(["original", *map(str, range(1, 6))]):
        _write(sheet, head, (NAME_PX + column * step + 2, 13))
    for row, name in enumerate(CORRUPTIONS):
        top = HEAD_PX + row * step
        _write(sheet, name, (GAP_PX, top + TILE_PX // 2 + 4))
        corrupted = [corrupt(picture, name, severity, generator(0, name, severity)) for severity in range(1, 6)]
        for column, tile in enumerate([picture, *corrupted]):
            left = NAME_PX + column * step
            sheet[top : top + TILE_PX, left : left + TILE_PX] = _cut(tile)
    target = Path(__file__).parent / "pictures" / "corruptions.png"
    # Six bits a channel: noise's last bits are what a PNG cannot compress, and no eye misses them.
    sheet = cv2.cvtColor(sheet & 0xFC | 2, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(target), sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _cut(picture: np.ndarray) -> np.ndarray:
    """Return a corner of `picture` at its own size: shrinking it would hide what small pixels suffer."""
    return picture[12 : 12 + TILE_PX, 4 : 4 + TILE_PX]


def _write(sheet: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (60, 60, 60), 1, cv2.LINE_AA)


if __name__ == "__main__":
    main()
