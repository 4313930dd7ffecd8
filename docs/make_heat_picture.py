"""Draws docs/pictures/heat-maps.jpg: drawn pictures and what a network looked at in them, by three methods.

Run it from the repository's root with a run on drawn pictures, as `make demo` leaves one:
python docs/make_heat_picture.py demo/run
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

import tellapart
from tellapart.data.drawn import CLASSES, encoded_picture
from tellapart.explain.overlay import sheet

METHODS = ("integrated-gradients", "grad-cam", "occlusion")
CELL_PX = 150
NUM_PICTURES = 6


def main() -> None:
    """Write the sheet beside this file, under pictures/."""
    data = [np.frombuffer(encoded_picture(3, label, 1)[1], np.uint8) for label in list(CLASSES)[:NUM_PICTURES]]
    pictures = [_square(np.ascontiguousarray(cv2.imdecode(each, cv2.IMREAD_COLOR)[..., ::-1])) for each in data]
    classifier = tellapart.load(sys.argv[1])
    rows = [[(picture, "") for picture in pictures]]
    for method in METHODS:
        maps = tellapart.heat_maps(classifier, pictures, method=method)
        rows.append([(found.overlay, f"{found.label} {found.probability:.2f}") for found in maps])
    rows[0] = [(picture, label) for picture, label in zip(pictures, CLASSES, strict=False)]
    target = Path(__file__).parent / "pictures" / "heat-maps.jpg"
    drawn = sheet(rows, cell_px=CELL_PX)
    cv2.imwrite(str(target), np.ascontiguousarray(drawn[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])


def _square(picture: np.ndarray) -> np.ndarray:
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


if __name__ == "__main__":
    main()
