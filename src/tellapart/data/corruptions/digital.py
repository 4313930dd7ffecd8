"""Low contrast, bending, large pixels and strong compression."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from tellapart.data.corruptions.pixels import Picture, Plane, draw_signed, levels


def contrast(picture: Picture, rng: np.random.Generator, factor: float) -> Picture:
    """Pull all levels towards their channel's mean."""
    means = np.array(cv2.mean(picture)[:3])
    table = np.rint(np.arange(256)[:, None] * factor + means * (1 - factor)).astype(np.uint8)
    return np.asarray(cv2.LUT(picture, table[None]))


def elastic_transform(
    picture: Picture, rng: np.random.Generator, amplitude: float, sigma: float, affine_px: float
) -> Picture:
    """Move three points at random and the picture with them, then each pixel by smooth noise (Simard et al. 2003).

    Args:
        picture: what to bend.
        rng: draws where to.
        amplitude: of the noise before it is smoothed, in pixels.
        sigma: of the Gaussian that smooths it, in pixels.
        affine_px: how far each of the three points moves at most, in pixels.
    """
    height, width = picture.shape[:2]
    centre, third = np.array([width // 2, height // 2], np.float32), np.float32(min(height, width) // 3)
    points = centre + third * np.array([(1, 1), (1, -1), (-1, -1)], np.float32)
    moved = points + rng.uniform(-affine_px, affine_px, (3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(points, moved)
    values = picture.astype(np.float32)
    values = cv2.warpAffine(values, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    across = smooth_noise(height, width, sigma, rng) * np.float32(amplitude) + np.arange(width, dtype=np.float32)
    down = smooth_noise(height, width, sigma, rng) * np.float32(amplitude)
    down += np.arange(height, dtype=np.float32)[:, None]
    return levels(cv2.remap(values, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def smooth_noise(height: int, width: int, sigma: float, rng: np.random.Generator) -> Plane:
    """Return uniform noise between -1 and 1 after a Gaussian blur, cut off at 3 sigma, with mirrored borders.

    Under such a blur a cosine stays a cosine. Of a wide blur only a few are left, so their amplitudes are
    drawn instead of all pixels: of variance 1/3 like the noise, and normal, as sums over all pixels are.
    """
    if sigma < 8:
        side = 2 * _cut(sigma) + 1
        noise = draw_signed(rng, (height, width))
        return np.asarray(cv2.GaussianBlur(noise, (side, side), sigma, borderType=cv2.BORDER_REFLECT))
    rows, columns = _blurred_cosines(height, sigma), _blurred_cosines(width, sigma)
    amplitudes = rng.standard_normal((rows.shape[1], columns.shape[1]), np.float32) * np.float32(3**-0.5)
    # cv2.gemm stays on this thread. NumPy's product wakes others, which takes longer than the product.
    return np.asarray(cv2.gemm(cv2.gemm(rows, amplitudes, 1, None, 0), columns, 1, None, 0, flags=cv2.GEMM_2_T))


def _cut(sigma: float) -> int:
    return int(3 * sigma + 0.5)


@lru_cache(maxsize=32)
def _blurred_cosines(length: int, sigma: float) -> Plane:
    """Return the orthonormal cosines (DCT-II) of which the blur leaves a thousandth or more, blurred.

    Returns:
        (length, num_cosines) float32.
    """
    distances = np.arange(-_cut(sigma), _cut(sigma) + 1)
    weights = np.exp(-(distances**2) / (2 * sigma**2))
    frequencies = np.pi * np.arange(length) / length
    left = np.cos(np.outer(frequencies, distances)) @ (weights / weights.sum())
    num_cosines = int(np.flatnonzero(np.abs(left) > 1e-3)[-1]) + 1
    cosines = np.cos(np.outer(np.arange(length) + 0.5, frequencies[:num_cosines])) * np.sqrt(2 / length)
    cosines[:, 0] = np.sqrt(1 / length)
    return np.asarray(cosines * left[:num_cosines], np.float32)


def pixelate(picture: Picture, rng: np.random.Generator, share: float) -> Picture:
    """Shrink to `share` of the sides and enlarge again, both as Pillow's BOX filter does.

    That averages the pixels whose centres lie in the smaller picture's pixel, or on its further border, then
    takes the nearest.
    """
    # Differences of running sums give the sum of each block, whatever its size, without a loop over blocks.
    sums, counts, nearest = np.asarray(cv2.integral(picture)), [], []
    for axis, length in enumerate(picture.shape[:2]):
        smaller = int(length * share)
        edges = (2 * length * np.arange(smaller + 1) + smaller) // (2 * smaller)
        sums = np.diff(np.take(sums, edges, axis), axis=axis)
        counts.append(np.diff(edges).astype(np.float32))
        nearest.append((2 * np.arange(length) + 1) * smaller // (2 * length))
    means = levels(cv2.divide(sums, cv2.merge([np.multiply.outer(*counts)] * 3), dtype=cv2.CV_32F))
    return np.asarray(np.take(np.take(means, nearest[1], axis=1), nearest[0], axis=0))


def jpeg_compression(picture: Picture, rng: np.random.Generator, quality: int) -> Picture:
    """Encode as JPEG and decode."""
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
