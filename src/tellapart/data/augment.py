"""Random changes of training pictures: one warp and one lookup table each. Knows nothing about batches.

The ranges mean what they mean in Keras' RandomFlip("horizontal"), RandomRotation, RandomTranslation,
RandomZoom, RandomContrast and RandomBrightness with fill_mode="reflect", applied in this order. Keras
resamples the picture once per layer; here flip, turn, shift and zoom are one matrix and one resampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.settings import Augment


@dataclass(frozen=True)
class Change:
    """What happens to one picture, or to many: then each attribute has leading axes, and all the same.

    Attributes:
        flip: mirrored left and right.
        angle: turn in radians, counter-clockwise.
        zoom: side of the window that is shown, relative to the picture: 1.2 zooms out, 0.8 in.
        shift: (…, 2), the x and y move of the window, as a share of the side.
        contrast: factor about each channel's mean.
        brightness: added to all levels, as a share of white.
    """

    flip: Any = False
    angle: Any = 0.0
    zoom: Any = 1.0
    shift: Any = (0.0, 0.0)
    contrast: Any = 1.0
    brightness: Any = 0.0


# Another number of draws gives every run other batches, runs that are resumed or reproduced too.
NUM_DRAWS = 7
"""Random numbers that one change takes, whatever the ranges are: settings shift no later draw."""


def changes_from(augment: Augment, draws: NDArray[np.float64]) -> Change:
    """Return changes that are uniform in the ranges of `augment`, from (…, `NUM_DRAWS`) numbers uniform in [0, 1)."""
    # Every draw has its own column whether its range is 0 or not.
    signed = 2 * draws[..., 1:] - 1
    return Change(
        flip=augment.flip & (draws[..., 0] < 0.5),
        angle=signed[..., 0] * (augment.rotation * 2 * np.pi),
        zoom=1 + signed[..., 1] * augment.zoom,
        shift=signed[..., 2:4] * augment.translation,
        contrast=1 + signed[..., 4] * augment.contrast,
        brightness=signed[..., 5] * augment.brightness,
    )


def draw_changes(augment: Augment, rng: np.random.Generator, num_images: int) -> Change:
    """Draw the changes of so many pictures, each attribute with one axis."""
    return changes_from(augment, rng.random((num_images, NUM_DRAWS)))


def warp_matrix(change: Change, source_px: int, image_px: int) -> NDArray[np.float64]:
    """Return the (…, 2, 3) matrix from pixels of the result to pixels of the source.

    Pixel centres are whole numbers and the middle of the picture stays where it is, as in Keras. A
    result smaller or larger than the source is scaled in the same matrix.
    """
    cosine, sine = np.cos(change.angle), np.sin(change.angle)
    mirror = np.where(change.flip, -1.0, 1.0)
    # From the result back to the source (WARP_INVERSE_MAP), so no matrix has to be inverted.
    turn = np.stack([mirror * cosine, -mirror * sine, sine, cosine], axis=-1).reshape(*np.shape(cosine), 2, 2)
    linear = turn * (np.asarray(change.zoom) * source_px / image_px)[..., None, None]
    middle_in, middle_out = (source_px - 1) / 2, (image_px - 1) / 2
    shift = (turn * (np.asarray(change.shift) * source_px)[..., None, :]).sum(axis=-1)  # along the turned sides
    # The middle of the result maps to the middle of the source, moved by the shift.
    offset = middle_in + shift - linear.sum(axis=-1) * middle_out
    return np.concatenate([linear, offset[..., None]], axis=-1)


def apply(picture: NDArray[np.uint8], change: Change, image_px: int) -> NDArray[np.uint8]:
    """Return one picture changed, as a square of `image_px`.

    Args:
        picture: (source_px, source_px, 3) uint8.
        change: what to do, of one picture.
        image_px: side of the result in pixels.

    Returns:
        (image_px, image_px, 3) uint8; pixels beyond the picture are its reflection.
    """
    result = warp(picture, warp_matrix(change, picture.shape[0], image_px), image_px)
    change_levels(result, change.contrast, change.brightness)
    return result


def change_levels(picture: NDArray[np.uint8], contrast: float, brightness: float) -> None:
    """Change contrast and brightness of (height, width, 3) uint8 in place, as `Change` means them."""
    # One lookup for 256 levels in place of arithmetic on every pixel.
    if contrast != 1.0 or brightness != 0.0:
        cv2.LUT(picture, _levels_table(cv2.mean(picture)[:3], contrast, brightness), dst=picture)


def warp(
    picture: NDArray[np.uint8], matrix: NDArray[np.float64], image_px: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return `picture` resampled by a matrix such as `warp_matrix` returns; `out` may be `picture` itself."""
    warped = cv2.warpAffine(
        cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA),  # OpenCV warps four channels in half the time of three
        matrix,
        (image_px, image_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        # Repeats the outer pixel, as Keras' "reflect" and `device_batches._reflected` do, unlike BORDER_REFLECT_101.
        borderMode=cv2.BORDER_REFLECT,
    )
    return np.asarray(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out))


_LEVELS = np.arange(256, dtype=np.float32)[:, None]


def _levels_table(means: tuple[float, ...], contrast: float, brightness: float) -> NDArray[np.uint8]:
    """Return the (1, 256, 3) table of ``(level - mean) * contrast + mean + brightness``, rounded.

    Clipped after each of the two, as Keras' two layers do.
    """
    contrasted = _LEVELS * contrast + np.asarray(means, np.float32) * (1 - contrast)
    # One half more, since the conversion to uint8 cuts off.
    table = np.clip(contrasted, 0, 255) + (255 * brightness + 0.5)
    return np.clip(table, 0, 255).astype(np.uint8)[None]
