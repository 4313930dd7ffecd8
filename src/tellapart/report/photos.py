"""Photos for the page: small pictures, coarse heat maps, and what is said about each. Knows nothing about networks."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.decode import decode
from tellapart.data.image_file import read_file
from tellapart.errors import DecodeError

_HEAT_PX = 20
"""Side of the heat maps in the page, which the browser enlarges: 400 bytes each."""
_QUALITY = 72


def thumbnails(paths: Sequence[Path], side: int) -> list[str]:
    """Return each photo as a JPEG in base64, its longer side `side` pixels; "" where it cannot be read."""

    def one(path: Path) -> str:
        try:
            # Lets the JPEG decoder shrink the picture while decoding, down to what the thumbnail needs.
            picture = decode(read_file(path), at_least_px=side)
        except DecodeError:
            return ""
        return encoded(shrunk(picture, side))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, paths))


def shrunk(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the picture with its longer side at most `side` pixels."""
    # Never enlarged: the browser does that for nothing.
    scale = min(1.0, side / max(picture.shape[:2]))
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def encoded(picture: NDArray[np.uint8], quality: int = _QUALITY) -> str:
    """Return (height, width, 3) uint8 RGB as a JPEG in base64."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    # OpenCV expects blue, green, red.
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), settings)
    return base64.b64encode(data.tobytes()).decode()


def coarse_heat(heat: NDArray[np.float32]) -> list[str]:
    """Return (num_images, height, width) maps in [0, 1] as 20 × 20 bytes each, their largest value 255, in base64."""
    if not len(heat):
        return []
    # Averaged over areas: a fine peak between two sampled points would be lost otherwise.
    small = np.stack([cv2.resize(values, (_HEAT_PX, _HEAT_PX), interpolation=cv2.INTER_AREA) for values in heat])
    largest = small.max(axis=(1, 2), keepdims=True)  # averaging lowers fine peaks
    scaled = np.divide(small, largest, out=np.zeros_like(small), where=largest > 0)
    return [base64.b64encode((255 * np.clip(values, 0, 1)).astype(np.uint8).tobytes()).decode() for values in scaled]
