"""Draws a data set of paper cut-outs, ten classes of shape, so that everything runs with no photos at hand.

Colour, place, size, turn, light, clutter and file format say nothing about the class: only the outline
does, and it fits into the 18 pixels that the reference network sees at once on a 64-pixel picture.
Knows nothing about scans, splits or training.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.files import atomic_file, read_json, write_json
from tellapart.randomness import generator
from tellapart.records import Progress, no_progress

DRAWING_VERSION = 1
"""Raise it when a change of this module changes a pixel: a half-drawn folder is then not gone on with."""

MARKER = ".drawn.json"

Contours = list[NDArray[np.float64]]
"""Closed outlines, each (num_points, 2); one inside another is a hole."""


def draw(
    folder: str | os.PathLike[str],
    *,
    num_images: int = 1000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Path:
    """Draw a data set of ten classes into `folder`, one folder per class.

    A demonstration and the tests need pictures where there are none. A call that was cut short is gone
    on with: files that are there stay, missing ones are drawn. More images may be asked for later.

    Args:
        folder: where to draw; it does not exist yet, is empty, or was drawn into with the same seed.
        num_images: spread evenly over the ten classes; at least 10.
        seed: another number gives other pictures.
        progress: called with ("drawing pictures", done, total).

    Returns:
        `folder`. It holds ``star/star_00001.jpg`` and so on; about one file in eight is a PNG.

    Raises:
        InputError: `num_images` is below 10, or `folder` holds something else.

    Example:
        >>> sorted(path.name for path in draw("/tmp/drawn", num_images=10).iterdir())[1:4]
        ['bolt', 'cross', 'drop']
    """
    if num_images < len(CLASSES):
        raise InputError(f"num_images is {num_images}. Expected at least {len(CLASSES)}, one for each class.")
    # Which files there will be is known before anything is drawn, so a foreign file is found out first.
    root = Path(folder)
    # The first classes take what does not divide evenly.
    share, rest = divmod(num_images, len(CLASSES))
    jobs = [
        (label, index) for position, label in enumerate(CLASSES) for index in range(1, share + (position < rest) + 1)
    ]
    paths = [root / label / _file_name(seed, label, index) for label, index in jobs]
    _refuse_foreign(root, seed, set(paths))
    # The marker comes first: a folder that has one picture and no marker is somebody else's.
    write_json(root / MARKER, {"seed": seed, "version": DRAWING_VERSION})

    def write(job: tuple[str, int], path: Path) -> None:
        # Files are written whole or not at all, so what is there is finished.
        if not path.exists():
            data = encoded_picture(seed, *job)[1]
            with atomic_file(path) as stream:
                stream.write(data)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            for done, _ in enumerate(pool.map(write, jobs, paths), start=1):
                if done % 64 == 0 or done == len(jobs):
                    progress("drawing pictures", done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return root


def encoded_picture(seed: int, label: str, index: int) -> tuple[str, bytes]:
    """Return (".jpg" or ".png", the file's bytes) of one picture; it depends on the arguments alone."""
    random = generator(seed, "draw", label, index)
    suffix = _suffix(random)
    pixels = _picture(random, CLASSES[label])
    quality = int(random.integers(60, 96))
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return suffix, cv2.imencode(suffix, pixels, settings)[1].tobytes()


def _file_name(seed: int, label: str, index: int) -> str:
    return f"{label}_{index:05d}{_suffix(generator(seed, 'draw', label, index))}"


def _suffix(random: np.random.Generator) -> str:
    # Always the first number drawn, so that a file's name is known without its pixels.
    return ".png" if random.random() < 0.12 else ".jpg"


def _refuse_foreign(root: Path, seed: int, expected: set[Path]) -> None:
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file. Expected a folder to draw into; name another.")
    if not root.is_dir() or not any(root.iterdir()):
        return
    mend = "Name a new or empty folder, or delete this one."
    if not (root / MARKER).is_file():
        raise InputError(f"{root} is not empty and was not drawn by tellapart. {mend}")
    drawn = read_json(root / MARKER)
    if drawn != {"seed": seed, "version": DRAWING_VERSION}:
        raise InputError(f"{root} holds pictures of {drawn}, not of seed {seed}. {mend}")
    for path in sorted(root.rglob("*")):
        leftover = path.name.startswith(".") and path.name.endswith(".part")
        if path.is_file() and path not in expected and path != root / MARKER and not leftover:
            raise InputError(f"{root} holds {path.relative_to(root)}, which is not to be drawn. {mend}")


# The picture --------------------------------------------------------------------------------------


def _picture(random: np.random.Generator, outline: Outline) -> NDArray[np.uint8]:
    """Return one (height, width, 3) uint8 BGR picture with 3 to 6 shapes of one class."""
    # One generator in a fixed order: a draw more or less changes every later one, and with it all pictures (see
    # DRAWING_VERSION).
    side = 64 * 4 ** random.random()
    stretch = 1.6 ** (random.random() - 0.5)
    width, height = (int(np.clip(round(length), 48, 320)) for length in (side * stretch, side / stretch))
    mean_side = float(np.sqrt(width * height))
    dark, light = (0.15, 0.5), (0.8, 1.0)
    ground, ink = (dark, light) if random.random() < 0.85 else (light, dark)
    canvas = _paper(random, _colour(random, ground), width, height)

    # Clutter first, so that it never hides a shape of the class.
    for _ in range(random.integers(1, 5)):
        clutter = _stick(random) if random.random() < 0.4 else _pebble(random)
        centre = random.uniform(0, 1, 2) * (width, height)
        _cut_out(
            canvas,
            _placed(random, clutter, centre, mean_side * random.uniform(0.05, 0.14)),
            _colour(random, (0.2, 0.8)),
        )

    area_side = mean_side * random.uniform(0.17, 0.24)
    shapes = [
        _placed(random, outline(random), centre, area_side * random.uniform(0.88, 1.12))
        for centre in _centres(random, width, height, 1.45 * area_side)
    ]
    # Shadows of all shapes before the first one is laid down: none falls on another shape.
    _shade(random, canvas, shapes, mean_side)
    colour = _colour(random, ink)
    for shape in shapes:
        if random.random() < 0.6:
            colour = _colour(random, ink)
        _cut_out(canvas, shape, colour)
    return _photographed(random, canvas, mean_side)


def _paper(random: np.random.Generator, ground: NDArray[np.float64], width: int, height: int) -> NDArray[np.uint8]:
    """Return a sheet of paper with soft stains, its colour near `ground`."""
    stains = ground + random.normal(0, 14, (4, 4, 3)) + random.normal(0, 12, (4, 4, 1))
    sheet = np.clip(stains, 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(sheet, (width, height), interpolation=cv2.INTER_CUBIC))


def _centres(random: np.random.Generator, width: int, height: int, distance: float) -> list[NDArray[np.float64]]:
    """Return 3 to 6 points at least `distance` apart, fewer where there is no room."""
    wanted = int(random.integers(3, 7))
    margin = distance * 0.42
    points: list[NDArray[np.float64]] = []
    # Forty candidates are drawn whether they are needed or not: later draws do not depend on how many fit.
    candidates = random.uniform(margin, np.array([width, height]) - margin, (40, 2))
    for point in candidates:
        if all(np.hypot(*(point - other)) >= distance for other in points):
            points.append(point)
        if len(points) == wanted:
            break
    return points


def _placed(random: np.random.Generator, contours: Contours, centre: NDArray[np.float64], area_side: float) -> Contours:
    """Turn, shear a little and move `contours`; give them the area of a square of `area_side` pixels.

    Equal areas keep the number of inked pixels, and so the file's length, from telling the class.
    """
    turn = random.uniform(0, 2 * np.pi)
    stretch = 1.25 ** random.uniform(-1, 1)
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) * (stretch, 1 / stretch)
    # The largest contour is the outline, the others are holes in it.
    areas = sorted(abs(_area(contour)) for contour in contours)
    scale = area_side / np.sqrt(areas[-1] - sum(areas[:-1]))
    return [contour @ matrix.T * scale + centre for contour in contours]


def _area(contour: NDArray[np.float64]) -> float:
    x, y = contour.T
    return float(0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def _cut_out(canvas: NDArray[np.uint8], contours: Contours, colour: Any, offset: Any = (0, 0)) -> None:
    # Sixteenths of a pixel, or small shapes would all be drawn on the pixel grid.
    points = [np.rint((contour + offset) * 16).astype(np.int32) for contour in contours]
    shade = tuple(float(value) for value in np.atleast_1d(colour))
    cv2.fillPoly(canvas, points, shade, lineType=cv2.LINE_AA, shift=4)


def _shade(random: np.random.Generator, canvas: NDArray[np.uint8], shapes: list[Contours], mean_side: float) -> None:
    """Darken `canvas` in place where the shapes' shadows fall."""
    shadow = np.zeros(canvas.shape[:2], np.uint8)
    turn = random.uniform(0, 2 * np.pi)
    offset = np.array([np.cos(turn), np.sin(turn)]) * mean_side * random.uniform(0.008, 0.025)
    for shape in shapes:
        _cut_out(shadow, shape, 255, offset)
    shadow = cv2.GaussianBlur(shadow, (0, 0), mean_side * 0.012)
    strength = random.uniform(0.15, 0.5)
    light = cv2.LUT(shadow, np.rint(255 - strength * np.arange(256)).astype(np.uint8))
    cv2.multiply(canvas, cv2.merge([light] * 3), dst=canvas, scale=1 / 255)


def _photographed(random: np.random.Generator, canvas: NDArray[np.uint8], mean_side: float) -> NDArray[np.uint8]:
    """Return `canvas` under uneven light, out of focus and with a sensor's noise."""
    height, width = canvas.shape[:2]
    corners = random.uniform(0.68, 1.12, (2, 2, 1)).astype(np.float32)
    light = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    pixels = canvas * light[..., None]
    blur = mean_side * random.uniform(0.0, 0.009)
    if blur > 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur)
    # A table of normal quantiles turns random bytes into noise faster than `normal`.
    grain = random.integers(0, 256, canvas.shape, dtype=np.uint8)
    pixels += np.float32(random.uniform(1, 7)) * _normal_quantiles()[grain]
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


def _normal_quantiles() -> NDArray[np.float32]:
    """Return 256 values whose distribution is close to the standard normal (a scaled logistic)."""
    share = (np.arange(256) + 0.5) / 256
    return (np.log(share / (1 - share)) / 1.702).astype(np.float32)


def _colour(random: np.random.Generator, values: tuple[float, float]) -> NDArray[np.float64]:
    """Return a BGR colour, 0 to 255, of any hue, from pastel to strong, its HSV value within `values`."""
    hue, saturation, value = random.uniform((0, 0.1, values[0]), (6, 0.75, values[1]))
    channels = np.abs((hue + np.array([4, 2, 0])) % 6 - 3) - 1
    return np.asarray(255 * value * (1 - saturation * (1 - np.clip(channels, 0, 1))))


# The shapes ---------------------------------------------------------------------------------------

Outline = Callable[[np.random.Generator], Contours]


def _circle(num_points: int = 40) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _bolt(random: np.random.Generator) -> Contours:
    waist = random.uniform(0.1, 0.2)
    half = np.array([(0.1, -1.15), (-0.6, waist), (-0.05, waist)])
    return [np.concatenate([half, -half])]


def _cross(random: np.random.Generator) -> Contours:
    arm = random.uniform(0.26, 0.36)
    corner = np.array([(1, arm), (arm, arm), (arm, 1)])
    quarter = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([corner @ np.linalg.matrix_power(quarter, turn) for turn in range(4)])]


def _drop(random: np.random.Generator) -> Contours:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    sharpness = random.uniform(1.3, 1.9)
    width = np.sin(angles) * np.sin(angles / 2) ** sharpness
    return [np.stack([0.85 * width, -np.cos(angles)], axis=1)]


def _fish(random: np.random.Generator) -> Contours:
    belly = random.uniform(0.42, 0.52)
    angles = np.linspace(0.3, 2 * np.pi - 0.3, 36)
    body = np.stack([-0.9 * np.cos(angles), belly * np.sin(angles)], axis=1)
    tail = np.array([(-1.45, -0.55), (-1.2, 0.0), (-1.45, 0.55)])
    return [np.concatenate([body, tail])]


def _flower(random: np.random.Generator) -> Contours:
    petals = int(random.integers(5, 7))
    radius = 1 + random.uniform(0.28, 0.4) * np.cos(petals * np.linspace(0, 2 * np.pi, 72, endpoint=False))
    return [_circle(72) * radius[:, None], _circle(24) * random.uniform(0.24, 0.34)]


def _heart(random: np.random.Generator) -> Contours:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(angles) ** 3
    y = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return [np.stack([x * random.uniform(0.9, 1.1), -y], axis=1)]


def _moon(random: np.random.Generator) -> Contours:
    shift = random.uniform(0.4, 0.55)
    tip = np.arccos(shift / 2)
    outer = np.linspace(tip, 2 * np.pi - tip, 30)
    inner = np.linspace(np.pi + tip, np.pi - tip, 24)
    arcs = [np.stack([np.cos(outer), np.sin(outer)], 1), np.stack([np.cos(inner) + shift, np.sin(inner)], 1)]
    return [np.concatenate(arcs)]


def _ring(random: np.random.Generator) -> Contours:
    return [_circle(), _circle() * random.uniform(0.5, 0.62)]


def _star(random: np.random.Generator) -> Contours:
    radius = np.tile([1.0, random.uniform(0.4, 0.48)], 5)
    return [_circle(10) * radius[:, None]]


def _triangle(random: np.random.Generator) -> Contours:
    return [_circle(3) * (random.uniform(0.9, 1.15), 1.0)]


def _pebble(random: np.random.Generator) -> Contours:
    """Return a smooth outline of no class."""
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    waves = [random.uniform(0.0, 0.12) * np.cos(order * angles + random.uniform(0, 2 * np.pi)) for order in (2, 3)]
    return [_circle(36) * (1 + np.sum(waves, axis=0))[:, None]]


def _stick(random: np.random.Generator) -> Contours:
    """Return a thin strip of no class."""
    length = random.uniform(3, 9)
    return [np.array([(-length, -0.5), (length, -0.5), (length, 0.5), (-length, 0.5)])]


CLASSES: dict[str, Outline] = {
    "bolt": _bolt,
    "cross": _cross,
    "drop": _drop,
    "fish": _fish,
    "flower": _flower,
    "heart": _heart,
    "moon": _moon,
    "ring": _ring,
    "star": _star,
    "triangle": _triangle,
}
"""The ten classes and what outlines them, in sorted order."""
