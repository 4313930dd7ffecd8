"""Random changes of training pictures: one warp and one lookup table each. Knows nothing about batches.

The ranges mean what they mean in Keras' RandomFlip("horizontal"), RandomRotation, RandomTranslation,
RandomZoom, RandomContrast and RandomBrightness with fill_mode="reflect", applied in this order. Keras
resamples the picture once per layer; here flip, turn, shift and zoom are one matrix and one resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.settings import Augment


@dataclass(frozen=True)
class Change:
    """What happens to one picture.

    Attributes:
        flip: mirrored left and right.
        angle: turn in radians, counter-clockwise.
        zoom: side of the window that is shown, relative to the picture: 1.2 zooms out, 0.8 in.
        shift: (x, y) move of the window, as a share of the side.
        contrast: factor about each channel's mean.
        brightness: added to all levels, as a share of white.
    """

    flip: bool = False
    angle: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    contrast: float = 1.0
    brightness: float = 0.0


def draw_change(augment: Augment, rng: np.random.Generator) -> Change:
    """Draw one `Change` uniformly from the ranges of `augment`; always the same number of draws."""
    draws = rng.random(7)
    signed = 2 * draws[1:] - 1
    return Change(
        flip=bool(augment.flip and draws[0] < 0.5),
        angle=float(signed[0] * augment.rotation * 2 * np.pi),
        zoom=float(1 + signed[1] * augment.zoom),
        shift=(float(signed[2] * augment.translation), float(signed[3] * augment.translation)),
        contrast=float(1 + signed[4] * augment.contrast),
        brightness=float(signed[5] * augment.brightness),
    )


def warp_matrix(change: Change, source_px: int, image_px: int) -> NDArray[np.float64]:
    """Return the (2, 3) matrix from pixels of the result to pixels of the source.

    Pixel centres are whole numbers and the middle of the picture stays where it is, as in Keras. A
    result smaller or larger than the source is scaled in the same matrix.
    """
    cosine, sine = np.cos(change.angle), np.sin(change.angle)
    mirror = np.array([-1.0 if change.flip else 1.0, 1.0])
    turn = mirror[:, None] * np.array([[cosine, -sine], [sine, cosine]])
    linear = turn * (change.zoom * source_px / image_px)
    middle_in, middle_out = (source_px - 1) / 2, (image_px - 1) / 2
    shift = turn @ (np.asarray(change.shift) * source_px)  # along the turned picture's sides
    offset = middle_in + shift - linear @ np.array([middle_out, middle_out])
    return np.concatenate([linear, offset[:, None]], axis=1)


def apply(
    picture: NDArray[np.uint8], change: Change, image_px: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return `picture` changed, as a square of `image_px`.

    Args:
        picture: (source_px, source_px, 3) uint8.
        change: what to do.
        image_px: side of the result in pixels.
        out: (image_px, image_px, 3) uint8 to write to.

    Returns:
        (image_px, image_px, 3) uint8; pixels beyond the picture are its reflection.
    """
    result = warp(picture, warp_matrix(change, picture.shape[0], image_px), image_px, out=out)
    if change.contrast != 1.0 or change.brightness != 0.0:
        cv2.LUT(result, _levels_table(cv2.mean(result)[:3], change), dst=result)
    return result


def warp(
    picture: NDArray[np.uint8], matrix: NDArray[np.float64], image_px: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return `picture` resampled by a matrix such as `warp_matrix` returns; `out` may be `picture` itself."""
    warped = cv2.warpAffine(
        cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA),  # OpenCV warps four channels in half the time of three
        matrix,
        (image_px, image_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    return np.asarray(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out))


_LEVELS = np.arange(256, dtype=np.float32)[:, None]


def _levels_table(means: tuple[float, ...], change: Change) -> NDArray[np.uint8]:
    """Return the (1, 256, 3) table of ``(level - mean) * contrast + mean + brightness``, rounded.

    Clipped after each of the two, as Keras' two layers do.
    """
    contrasted = _LEVELS * change.contrast + np.asarray(means, np.float32) * (1 - change.contrast)
    table = np.clip(contrasted, 0, 255) + (255 * change.brightness + 0.5)
    return np.clip(table, 0, 255).astype(np.uint8)[None]
