"""Measures how good a photo is as a photo: sharpness, noise, exposure, compression, resolution.

Knows nothing about labels or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.decode import decode_square_and_grey
from tellapart.data.image_file import declared_size, jpeg_segments

# Bundles hold limits of what was measured at this length, and `decode._WHOLE_PX` is the same number: neither may be
# changed alone.
MEASURED_PX = 256
"""Pictures are measured at this length of their shorter side, so that figures of different sizes can be compared."""

DIRECTIONS = {
    "sharpness": "low",
    "noise": "high",
    "brightness": "both",
    "contrast": "low",
    "clipped": "high",
    "jpeg_quality": "low",
    "short_side_px": "low",
}
"""At which end of each measure photos are bad."""


@dataclass(frozen=True)
class Quality:
    """What was measured of a photo.

    Attributes:
        sharpness: standard deviation of the Laplacian of the grey picture, in grey levels (Pech-Pacheco et al. 2000
            take its square).
        noise: standard deviation of white noise in grey levels (Immerkær 1996, equation 4); fine texture counts too.
        brightness: mean grey level, 0 to 255.
        contrast: standard deviation of the grey levels.
        clipped: share of pixels that are black or white, 0 to 1.
        jpeg_quality: by the scale of the Independent JPEG Group, 1 to 100; 100 for other formats.
        short_side_px: length of the shorter side as stored.
    """

    sharpness: float
    noise: float
    brightness: float
    contrast: float
    clipped: float
    jpeg_quality: float
    short_side_px: float

    def to_dict(self) -> dict[str, float]:
        """Return the measures by name."""
        return dict(vars(self))


UNKNOWN = Quality(*[float("nan")] * len(DIRECTIONS))
"""Of a photo that cannot be read any more."""


def decode_and_measure(
    data: bytes, image_px: int, *, max_pixels: int = 100_000_000
) -> tuple[NDArray[np.uint8], Quality]:
    """Return what `tellapart.data.decode.decode_square` returns, and how good the photo is, in little more time.

    A JPEG is shrunk to 1/2, 1/4 or 1/8 while it is decoded, as long as its shorter side stays `MEASURED_PX`; where that
    takes a decode of its own, its brightness alone is decoded. So the measures depend a little on `image_px`: by less
    than a hundredth of their spread over photos for most of them.

    Args:
        data: the bytes of the file.
        image_px: side of the square.
        max_pixels: images that declare more are refused.

    Raises:
        DecodeError: it cannot be decoded.
    """
    square, grey = decode_square_and_grey(data, image_px, MEASURED_PX, max_pixels=max_pixels)
    # By the header: the picture at hand may have been shrunk while it was decoded.
    return square, _of_grey(grey, jpeg_quality(data), min(declared_size(data) or grey.shape))


def quality_of(picture: NDArray[np.uint8]) -> Quality:
    """Measure a picture that is decoded already, (height, width, 3) uint8 RGB, as if it had never been compressed."""
    return _of_grey(np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)), 100.0, min(picture.shape[:2]))


def _of_grey(grey: NDArray[np.uint8], stored_with: float, short_side: int) -> Quality:
    """Measure a grey picture (height, width) uint8 of any size; what the file itself says comes along."""
    grey = _shrunk(grey)
    # 16-bit whole numbers hold every response of both masks, and are twice as fast as floats.
    edges = cv2.Laplacian(grey, cv2.CV_16S)
    brightness, contrast = cv2.meanStdDev(grey)
    # Mean of squares less square of the mean: OpenCV's norms take one pass each, and no array of floats.
    variance = cv2.norm(edges, cv2.NORM_L2SQR) / grey.size - cv2.mean(edges)[0] ** 2
    return Quality(
        sharpness=max(variance, 0.0) ** 0.5,
        noise=noise_level(grey),
        brightness=float(brightness[0, 0]),
        contrast=float(contrast[0, 0]),
        clipped=1 - cv2.countNonZero(cv2.inRange(grey, 3, 252)) / grey.size,
        jpeg_quality=stored_with,
        short_side_px=float(short_side),
    )


def _shrunk(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a grey picture as if averaged over areas until its shorter side is `MEASURED_PX`."""
    factor = min(grey.shape) / MEASURED_PX
    if factor <= 1:
        return grey
    method = cv2.INTER_AREA
    if factor < 2:
        # OpenCV's averaging over areas that are not whole pixels takes as long as decoding a small JPEG. Bilinear
        # sampling sees two pixels of a line and would let noise through: the mask first spreads each pixel as far as
        # such an area is wider than a pixel, by its variance. The 1.2 keeps noise and sharpness where areas had them,
        # and so the limits in bundles (docs/decisions.md).
        side = 1.2 * (factor**2 - 1) / 24
        mask = np.array([side, 1 - 2 * side, side], np.float32)
        grey, method = np.asarray(cv2.sepFilter2D(grey, cv2.CV_8U, mask, mask)), cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, None, fx=1 / factor, fy=1 / factor, interpolation=method), np.uint8)


def noise_level(grey: NDArray[np.uint8]) -> float:
    """Return the standard deviation of white noise in a (height, width) uint8 picture, in grey levels.

    The mean absolute response of a mask that is blind to planes and straight edges (Immerkær 1996, "Fast noise variance
    estimation", equation 4).
    """
    if min(grey.shape) < 3:
        return 0.0
    second = np.array([1, -2, 1], np.float32)  # the mask is its product with itself
    # Two passes of three numbers in place of one of nine; the border, where the mask reaches outside, is left out.
    response = cv2.sepFilter2D(grey, cv2.CV_16S, second, second)[1:-1, 1:-1]
    return float(cv2.norm(response, cv2.NORM_L1) / response.size * np.sqrt(np.pi / 2) / 6)


def jpeg_quality(data: bytes) -> float:
    """Return the quality that a JPEG was written with, from its luminance table; 100 for what is no JPEG.

    Turns round the Independent JPEG Group's rule (jcparam.c: jpeg_quality_scaling) with the mean ratio of the file's
    table to the standard's own; tables of other makers give the nearest quality.
    """
    if data[:2] != b"\xff\xd8":
        return 100.0
    table = _luminance_table(data)
    return 100.0 if table is None else _quality_of_table(*table)


@lru_cache(1024)  # the photos of one camera or program have few tables
def _quality_of_table(values: bytes, dtype: str) -> float:
    table = np.frombuffer(values, dtype).astype(np.float64)
    uncut = table < table.max() if table.max() >= 255 else np.ones(64, bool)  # larger values were cut off
    # All values cut off at 255: the quality is 1, whose scale is 5000.
    scale = 100 * float((table / _STANDARD)[uncut].mean()) if uncut.any() else 5000.0
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return min(max(quality, 1.0), 100.0)


def _luminance_table(data: bytes) -> tuple[bytes, str] | None:
    """Return the first quantisation table, 64 values in zigzag order, and their dtype; or None."""
    for marker, start, _ in jpeg_segments(data):
        if marker == 0xDB and start + 1 + 64 <= len(data):
            wide = data[start] >> 4  # 16-bit values
            values = data[start + 1 : start + 1 + (128 if wide else 64)]
            return (values, ">u2" if wide else "u1") if len(values) % 64 == 0 else None
    return None


_STANDARD = np.array(
    [
        16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51,
        61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77,
        113, 121, 112, 100, 120, 92, 101, 103, 99,
    ],
    np.float64,
)  # fmt: skip
"""The luminance table of ITU-T T.81, annex K, table K.1, in zigzag order."""
