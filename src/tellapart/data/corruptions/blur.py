"""Blur by lenses, by frosted glass and by movement."""

from __future__ import annotations

from functools import cache
from math import ceil, cos, radians, sin

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.corruptions.pixels import Picture, Plane, draw_bits, levels


def defocus_blur(picture: Picture, rng: np.random.Generator, radius: int, alias_blur: float) -> Picture:
    """Spread each pixel over a disk of `radius` pixels whose edge is smoothed by `alias_blur`: out of focus."""
    return levels(cv2.filter2D(picture.astype(np.float32), -1, disk(radius, alias_blur)))


@cache
def disk(radius: int, alias_blur: float) -> Plane:
    """Return the kernel of `defocus_blur`, odd and square, float32.

    The published code smooths the disk in an array that mirrors at its border. From radius 8 on the disk
    touches that border, and the kernel sums to 1.013 (radius 8) or 1.011 (radius 10) instead of 1.
    """
    reach, kernel_px = (8, 3) if radius <= 8 else (radius, 5)
    squares = np.arange(-reach, reach + 1) ** 2
    sharp = (squares[:, None] + squares <= radius**2).astype(np.float32)
    kernel = np.asarray(cv2.GaussianBlur(sharp / sharp.sum(), (kernel_px, kernel_px), alias_blur))
    kernel[kernel < 1e-9] = 0  # what a blur by 0.1 leaves would make products denormal, and slow
    used = np.flatnonzero(kernel.any(axis=0))
    return np.ascontiguousarray(kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1])


def glass_blur(picture: Picture, rng: np.random.Generator, sigma: float, reach: int, repeats: int) -> Picture:
    """Take each pixel from a random neighbour, `repeats` times, between two Gaussian blurs: frosted glass."""
    height, width = picture.shape[:2]
    sources = neighbours(height, width, rng, reach)
    for _ in range(repeats - 1):
        sources = sources[neighbours(height, width, rng, reach)]
    side = 2 * int(4 * sigma + 0.5) + 1
    blurred = cv2.GaussianBlur(picture.astype(np.float32), (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    # Four channels make a pixel one number, and NumPy gathers numbers faster than triples of bytes.
    pixels = cv2.cvtColor(levels(blurred), cv2.COLOR_RGB2RGBA).view(np.uint32).ravel()
    moved = np.take(pixels, sources).view(np.uint8).reshape(height, width, 4)
    moved = cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB).astype(np.float32)
    return levels(cv2.GaussianBlur(moved, (side, side), sigma, borderType=cv2.BORDER_REPLICATE))


def neighbours(height: int, width: int, rng: np.random.Generator, reach: int) -> NDArray[np.int32]:
    """Return where each pixel comes from after one pass of the published loop, (height * width,) int32.

    The loop runs from the last pixel to the first and gives each the value of a neighbour, -`reach` to
    `reach` - 1 pixels away in both directions. (It is written as a swap of the two. But both sides of the
    swap are views of one array, so the neighbour keeps its value; ImageNet-C was made so.) A neighbour
    further on has had its turn and holds a value of one of its own neighbours. These chains are followed
    to their ends here, for all pixels at once.
    """
    steps = np.arange(-reach, reach, dtype=np.int32)
    offsets = (steps[:, None] * width + steps).ravel()
    places = np.arange(height * width, dtype=np.int32)
    first = places.copy()
    inner = first.reshape(height, width)[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    draws = draw_bits(rng, inner.shape, np.uint16).astype(np.uint32)
    inner += np.take(offsets, draws * np.uint32(len(offsets)) >> np.uint32(16))
    sources = first.copy()
    pixels = np.flatnonzero(first > places)
    current = first[pixels]
    while pixels.size:
        following = np.take(first, current)
        sources[pixels] = following
        # Only a later pixel has had its turn, so only there does the chain go on; it ends when none does.
        onward = following > current
        pixels, current = pixels[onward], following[onward]
    return sources


def motion_blur(picture: Picture, rng: np.random.Generator, radius: int, sigma: float) -> Picture:
    """Smear the picture along a line that is at most 45 degrees from level: a camera in motion."""
    return levels(smeared(picture.astype(np.float32), radius, sigma, rng.uniform(-45, 45)))


def smeared(values: Plane, radius: int, sigma: float, angle: float) -> Plane:
    """Return `values` blurred along a line, as by ImageMagick's MotionBlurImage.

    Args:
        values: (height, width[, 3]) float32.
        radius: the line has 2 * `radius` + 1 pixels and runs one way from each pixel.
        sigma: the weights along the line are half a Gaussian of this standard deviation.
        angle: of the line, in degrees; 0 points right, 90 down.
    """
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    taps: dict[tuple[int, int], float] = {}
    for distance, weight in enumerate(weights / weights.sum()):
        if weight > 1e-5:  # all that is left out moves no value by a hundredth of a level
            tap = (ceil(distance * sin(radians(angle)) - 0.5), ceil(distance * cos(radians(angle)) - 0.5))
            taps[tap] = taps.get(tap, 0.0) + float(weight)
    height, width = values.shape[:2]
    downs, rights = zip(*taps, strict=True)
    top, left = -min(downs), -min(rights)
    # Shifted views of one padded picture, weighted and added: a few dozen taps, and no convolution with a kernel that
    # is mostly zeros.
    padded = cv2.copyMakeBorder(values, top, max(downs), left, max(rights), cv2.BORDER_REPLICATE)
    result = np.zeros_like(values)
    for (down, right), weight in taps.items():
        window = padded[top + down : top + down + height, left + right : left + right + width]
        cv2.scaleAdd(window, weight, result, result)
    return result


def zoom_blur(picture: Picture, rng: np.random.Generator, end: float, step: float) -> Picture:
    """Average the picture and its enlargements by 1, 1 + `step`, … until `end`: moving towards the scene."""
    zooms = np.arange(1, end, step)  # as published; by rounding, 1.11 is among them at severity 1
    values = picture.astype(np.float32)
    total = values.copy()
    for zoom in zooms:
        cv2.add(total, _zoomed(values, float(zoom)), total)
    return levels(total * np.float32(1 / (len(zooms) + 1)))


def _zoomed(values: Plane, zoom: float) -> Plane:
    """Return the middle of `values`, (height, width, 3) float32, enlarged by `zoom` to the same size."""
    height, width = values.shape[:2]
    cut_height, cut_width = ceil(height / zoom), ceil(width / zoom)
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    cut = values[top : top + cut_height, left : left + cut_width]
    size = (max(round(cut_width * zoom), width), max(round(cut_height * zoom), height))
    large = cv2.resize(cut, size, interpolation=cv2.INTER_LINEAR)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.asarray(large[top : top + height, left : left + width])
