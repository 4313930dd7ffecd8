"""The 15 common corruptions of ImageNet-C: what weather, lenses, sensors and codecs do to photos.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", with the parameters of the published code. They were chosen for pictures of 224 px: radii,
displacements and flakes stay as many pixels in pictures of other sizes. The frost is drawn, not cut from
photos; docs/corruptions.md has all differences. Knows nothing about networks, labels or data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.data.corruptions import blur, digital, noise, weather
from tellapart.data.corruptions.weather import Snow
from tellapart.errors import InputError, nearest

MIN_PX = 32


def corrupt(picture: NDArray[np.uint8], name: str, severity: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return `picture` with one corruption.

    For measuring how a network copes with pictures that are worse than those it learned from. Keep these
    corruptions out of the augmentation: they stand for what nobody foresaw.

    Args:
        picture: (height, width, 3) uint8 RGB, both sides at least 32 pixels; it is not changed.
        name: one of `CORRUPTIONS`.
        severity: 1 (light) to 5 (heavy).
        rng: the only randomness. The same picture, name, severity and state give the same result.

    Returns:
        (height, width, 3) uint8 RGB, a new array.

    Raises:
        InputError: `name` is unknown, `severity` is not 1 to 5, or `picture` has another shape or dtype.

    Example:
        >>> grey = np.full((224, 224, 3), 128, np.uint8)
        >>> corrupt(grey, "brightness", 2, np.random.default_rng(0))[0, 0]
        array([179, 179, 179], dtype=uint8)
    """
    corruption = _CORRUPTIONS.get(name)
    if corruption is None:
        known = ", ".join(_CORRUPTIONS)
        raise InputError(f"There is no corruption {name!r}.{nearest(name, _CORRUPTIONS)} There are: {known}.")
    if severity not in range(1, 6):
        raise InputError(f"severity is {severity!r}. Expected a whole number from 1 (light) to 5 (heavy).")
    shape, dtype = np.shape(picture), getattr(picture, "dtype", type(picture).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < MIN_PX:
        expected = f"(height, width, 3) uint8 in RGB, both sides at least {MIN_PX} pixels"
        raise InputError(f"The picture is {shape} {dtype}. Expected {expected}.")
    # A mirrored or transposed view is copied: OpenCV works on rows in one piece.
    return corruption.apply(np.ascontiguousarray(picture), rng, *corruption.parameters[int(severity) - 1])


@dataclass(frozen=True)
class _Corruption:
    """One corruption: its group, what does it, and what that is given at severities 1 to 5."""

    group: str
    apply: Callable[..., NDArray[np.uint8]]
    parameters: tuple[tuple[Any, ...], ...]


_SNOW = (
    Snow(mean=0.1, deviation=0.3, zoom=3, threshold=0.5, radius=10, sigma=4, kept=0.8),
    Snow(mean=0.2, deviation=0.3, zoom=2, threshold=0.5, radius=12, sigma=4, kept=0.7),
    Snow(mean=0.55, deviation=0.3, zoom=4, threshold=0.9, radius=12, sigma=8, kept=0.7),
    Snow(mean=0.55, deviation=0.3, zoom=4.5, threshold=0.85, radius=12, sigma=8, kept=0.65),
    Snow(mean=0.55, deviation=0.3, zoom=2.5, threshold=0.85, radius=12, sigma=12, kept=0.55),
)

_BENDS = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
"""For `elastic_transform`, as shares of 244 pixels; so the published code says, meaning 224."""

# The published numbers, as they are: with others no accuracy could be compared with what others report.
_CORRUPTIONS = {
    "gaussian_noise": _Corruption("noise", noise.gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot_noise": _Corruption("noise", noise.shot_noise, ((60,), (25,), (12,), (5,), (3,))),
    "impulse_noise": _Corruption("noise", noise.impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "defocus_blur": _Corruption("blur", blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": _Corruption("blur", blur.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": _Corruption("blur", blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": _Corruption(
        "blur", blur.zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    ),
    "snow": _Corruption("weather", weather.snow, tuple((how,) for how in _SNOW)),
    "frost": _Corruption("weather", weather.frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": _Corruption("weather", weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": _Corruption("weather", weather.brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": _Corruption("digital", digital.contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    "elastic_transform": _Corruption(
        "digital", digital.elastic_transform, tuple(tuple(244 * share for share in shares) for shares in _BENDS)
    ),
    "pixelate": _Corruption("digital", digital.pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg_compression": _Corruption("digital", digital.jpeg_compression, ((25,), (18,), (15,), (10,), (7,))),
}

CORRUPTIONS: Mapping[str, str] = {name: corruption.group for name, corruption in _CORRUPTIONS.items()}
"""Names of the corruptions, in the published order, and their groups: noise, blur, weather or digital."""
