"""Draws docs/pictures/mixing.png: MixUp, CutMix, RandAugment and random erasing on drawn pictures.

Run it from the repository's root: python docs/make_mixing_picture.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tellapart.data.decode import decode_square
from tellapart.data.drawn import CLASSES, encoded_picture
from tellapart.data.mix import erase, mix
from tellapart.data.randaugment import randaugment
from tellapart.randomness import generator
from tellapart.settings import Augment

PICTURE_PX = 224
TILE_PX = 112
GAP_PX = 4
NAME_PX = 104
TEXT_PX = 16
NUM_COLUMNS = 7


def main() -> None:
    """Write the contact sheet beside this file, under pictures/."""
    labels = list(CLASSES)[:NUM_COLUMNS]
    originals = np.stack([decode_square(encoded_picture(0, label, 2)[1], PICTURE_PX) for label in labels])
    rows = {"original": (originals, labels)}
    for name, augment in (("MixUp", Augment(mixup=1.0)), ("CutMix", Augment(cutmix=1.0))):
        targets = np.eye(NUM_COLUMNS, dtype=np.float32)
        images, targets = mix(originals.copy(), targets, augment, generator(4, name))
        rows[name] = (images, [_shares(target, labels) for target in targets])
    for name, change in (("RandAugment", lambda image, rng: randaugment(image, 2, 0.5, rng)), ("erasing", erase)):
        images, rng = originals.copy(), generator(0, name)
        for image in images:
            change(image, rng)
        rows[name] = (images, labels)
    _save(rows, Path(__file__).parent / "pictures" / "mixing.png")


def _shares(target: np.ndarray, labels: list[str]) -> str:
    """Return a soft target as words, the larger share first."""
    parts = sorted(((share, labels[number]) for number, share in enumerate(target) if share > 0.005), reverse=True)
    return " ".join(f"{share:.2f} {label}".removeprefix("0") for share, label in parts)


def _save(rows: dict[str, tuple[np.ndarray, list[str]]], target: Path) -> None:
    """Write a row of tiles for each name, with a line of text under each tile."""
    across, down = TILE_PX + GAP_PX, TILE_PX + TEXT_PX
    sheet = np.full((GAP_PX + len(rows) * down, NAME_PX + NUM_COLUMNS * across, 3), 253, np.uint8)
    for row, (name, (images, texts)) in enumerate(rows.items()):
        top = GAP_PX + row * down
        _write(sheet, name, (GAP_PX, top + TILE_PX // 2 + 4), 0.42)
        for column, (image, text) in enumerate(zip(images, texts, strict=True)):
            left = NAME_PX + column * across
            tile = cv2.resize(image, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
            sheet[top : top + TILE_PX, left : left + TILE_PX] = tile
            _write(sheet, text, (left + 1, top + TILE_PX + 11), 0.33)
    # Six bits a channel: the grain's last bits are what a PNG cannot compress, and no eye misses them.
    sheet = cv2.cvtColor(sheet & 0xFC | 2, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(target), sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _write(sheet: np.ndarray, text: str, place: tuple[int, int], size: float) -> None:
    cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, (60, 60, 60), 1, cv2.LINE_AA)


if __name__ == "__main__":
    main()
