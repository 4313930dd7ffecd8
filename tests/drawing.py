"""Small pictures drawn from a seed, for tests that need photos with known properties."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def photo(seed: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """Return a smooth coloured texture, (height, width, 3) uint8 RGB; two seeds give pictures that differ.

    Cells of a 6 × 6 grid get random colours and are blended: enough low frequencies for a
    fingerprint of its own, and smooth enough for JPEG to change it little.
    """
    grid = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    smooth = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth)


def save(path: Path, picture: NDArray, quality: int = 90) -> Path:
    """Write an RGB or grey picture in the format that the name of `path` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, data = cv2.imencode(path.suffix, stored, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    path.write_bytes(data.tobytes())
    return path


def save_photo(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Draw and write a photo of `size` (width, height)."""
    return save(path, photo(seed, size))


def make_classes(
    root: Path, counts: dict[str, int], *, size: tuple[int, int] = (64, 48), ext: str = "jpg", seed: int = 0
) -> Path:
    """Write a folder per class with so many photos, all different: root/a/0.jpg, root/a/1.jpg, …"""
    for number, (label, count) in enumerate(counts.items()):
        for index in range(count):
            save_photo(root / label / f"{index}.{ext}", seed + 100_000 * number + index, size)
    return root
