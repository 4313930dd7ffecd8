"""Snow, frost, fog and bright light."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil

import cv2
import numpy as np

from tellapart.data.corruptions.blur import smeared
from tellapart.data.corruptions.frost import frost_sheet
from tellapart.data.corruptions.pixels import Picture, Plane, draw_signed, levels


@dataclass(frozen=True)
class Snow:
    """What snow is made of.

    Attributes:
        mean: of the normal noise that flakes grow from, as a share of white.
        deviation: of that noise.
        zoom: its enlargement, the size of a flake in pixels.
        threshold: noise below it is no flake.
        radius: of the line that a falling flake draws, as in `blur.smeared`.
        sigma: of the weights along that line.
        kept: share of the picture that is not whitened.
    """

    mean: float
    deviation: float
    zoom: float
    threshold: float
    radius: int
    sigma: float
    kept: float


def snow(picture: Picture, rng: np.random.Generator, how: Snow) -> Picture:
    """Whiten the picture and add flakes that fall, at most 45 degrees from straight down, and the same turned round."""
    height, width = picture.shape[:2]
    angle = rng.uniform(-135, -45)
    drawn = rng.standard_normal((ceil(height / how.zoom), ceil(width / how.zoom)), np.float32)
    noise = _enlarged(drawn * np.float32(how.deviation) + np.float32(how.mean), how.zoom, height, width)
    flakes = smeared(np.where(noise < how.threshold, 0, np.minimum(noise, 1)), how.radius, how.sigma, angle)
    layer = 255 * (flakes + flakes[::-1, ::-1])
    values = picture.astype(np.float32)
    white = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY) * 1.5 + 127.5
    # kept * x + (1 - kept) * max(x, white) + layer, where the larger one is taken last.
    whitened = cv2.cvtColor((1 - how.kept) * white + layer, cv2.COLOR_GRAY2RGB)
    cv2.scaleAdd(values, how.kept, whitened, whitened)
    cv2.add(values, cv2.cvtColor(layer, cv2.COLOR_GRAY2RGB), values)
    return levels(cv2.max(values, whitened))


def _enlarged(values: Plane, zoom: float, height: int, width: int) -> Plane:
    """Return the middle, (height, width), of `values` enlarged by `zoom`.

    First and last values fall on first and last pixels, which cv2.resize cannot do: it would favour places
    on the values or between them, and noise is weaker between.
    """
    sizes = [max(round(length * zoom), side) for length, side in zip(values.shape, (height, width), strict=True)]
    down, right = ((length - 1) / (size - 1) for length, size in zip(values.shape, sizes, strict=True))
    matrix = np.array([[right, 0, (sizes[1] - width) // 2 * right], [0, down, (sizes[0] - height) // 2 * down]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(values, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def frost(picture: Picture, rng: np.random.Generator, picture_weight: float, frost_weight: float) -> Picture:
    """Add a random cut-out of one of five drawn sheets of frost; the published code has five photos."""
    height, width = picture.shape[:2]
    sheet = frost_sheet(int(rng.integers(5)))
    if max(height, width) > len(sheet):
        side = ceil(1.1 * max(height, width))
        # Larger pictures get an enlarged sheet, with some room to cut from at random.
        sheet = np.asarray(cv2.resize(sheet, (side, side), interpolation=cv2.INTER_CUBIC))
    top, left = rng.integers(0, (len(sheet) - height + 1, len(sheet) - width + 1))
    cut = sheet[top : top + height, left : left + width]
    return np.asarray(cv2.addWeighted(picture, picture_weight, cut, frost_weight, 0))


def fog(picture: Picture, rng: np.random.Generator, thickness: float, decay: float) -> Picture:
    """Lay clouds over the picture, then darken both until nothing can be brighter than the picture was."""
    height, width = picture.shape[:2]
    brightest = float(picture.max())
    darkened = brightest / (brightest + 255 * thickness)
    # Diamond-square needs a power of two; the map is at least 256, as in the published code, and cut.
    side = max(256, 1 << (max(height, width) - 1).bit_length())
    layer = clouds(side, decay, rng)[:height, :width] * np.float32(255 * thickness * darkened)
    return np.asarray(cv2.addWeighted(picture, darkened, cv2.merge([layer] * 3), 1, 0, dtype=cv2.CV_8U))


def clouds(side: int, decay: float, rng: np.random.Generator) -> Plane:
    """Return a plasma fractal by the diamond-square algorithm (Fournier, Fussell and Carpenter 1982).

    Each round puts a point in the middle of every square and then of every diamond of four: their mean and
    noise, whose amplitude falls by `decay`² a round. Opposite borders are neighbours.

    Args:
        side: of the map, a power of two.
        decay: the larger, the smoother.
        rng: draws the noise.

    Returns:
        (side, side) float32, from 0 to 1.
    """
    points, amplitude = np.zeros((1, 1), np.float32), 1.0
    while len(points) < side:
        noise = draw_signed(rng, (3, *points.shape)) * np.float32(amplitude)
        around = cv2.copyMakeBorder(points, 0, 1, 0, 1, cv2.BORDER_WRAP)
        below, beside = points + around[1:, :-1], points + around[:-1, 1:]
        squares = (below + around[:-1, 1:] + around[1:, 1:]) / 4 + noise[0]
        around = cv2.copyMakeBorder(squares, 1, 0, 1, 0, cv2.BORDER_WRAP)
        finer = np.empty((2 * len(points), 2 * len(points)), np.float32)
        finer[::2, ::2], finer[1::2, 1::2] = points, squares
        finer[::2, 1::2] = (squares + around[:-1, 1:] + beside) / 4 + noise[1]
        finer[1::2, ::2] = (squares + around[1:, :-1] + below) / 4 + noise[2]
        points, amplitude = finer, amplitude / decay**2
    low, high = cv2.minMaxLoc(points)[:2]
    return (points - np.float32(low)) * np.float32(1 / (high - low))


def brightness(picture: Picture, rng: np.random.Generator, added: float) -> Picture:
    """Raise the value of HSV, that is the largest channel; hue and saturation stay, as all channels grow alike."""
    red, green, blue = cv2.split(picture)
    value = np.asarray(cv2.max(cv2.max(red, green), blue))
    factor = cv2.LUT(value, _brightness_factors(added))
    result = np.asarray(cv2.multiply(picture, cv2.merge([factor] * 3), dtype=cv2.CV_8U))
    if cv2.minMaxLoc(value)[0] == 0:
        result[value == 0] = round(255 * added)  # black has no channel to grow, and becomes grey
    return result


@cache
def _brightness_factors(added: float) -> Plane:
    """Return what the channels of a pixel are multiplied by, for each value of HSV, (256,) float32."""
    values = np.maximum(np.arange(256), 1)
    return np.asarray(np.minimum(values + 255 * added, 255) / values, np.float32)
