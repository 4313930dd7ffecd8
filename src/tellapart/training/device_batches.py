"""Training batches made by an accelerator from photos that it holds, in JAX. Knows nothing about networks.

What `tellapart.data.batches.TrainingBatches` makes on the processor, from the same draws: a batch depends on (seed,
epoch, index) alone here too. Grey levels may differ by one where a rounding falls the other way, by two once contrast
has been changed, and the noise in erased rectangles is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tellapart.data.augment import NUM_DRAWS, changes_from, warp_matrix
from tellapart.data.batches import TrainingBatches
from tellapart.data.mix import draw_mixing, draw_rectangle
from tellapart.randomness import derived_seed
from tellapart.settings import Augment

# Bits of red, green and blue in a packed pixel: the bytes of a little-endian uint32, the fourth of them unused.
_SHIFTS = np.array([0, 8, 16], np.uint32)
_READ_AT_ONCE = 64
"""Photos that a thread reads in one go."""


class Draws(NamedTuple):
    """All that is random in some batches; each array begins with the axes (num_steps, batch).

    Attributes:
        pictures: int32, rows of the pictures on the device.
        targets: int32, rows of the targets.
        matrices: (…, 2, 3) float32, of `warp_matrix`.
        levels: (…, 2) float32, contrast and brightness.
        partners: int32, with which picture of the batch each is mixed; None: nothing is ever mixed.
        kept: (…, 2) float32, the share of its own levels and of its own target that a picture keeps.
        boxes: (…, 4) int32, left, top, right, bottom, pasted from the partner.
        erased: (…, 4) int32, likewise filled with noise; None: nothing is ever erased.
        noise: (num_steps,) uint32, seeds of the noise.
    """

    pictures: NDArray[np.int32]
    targets: NDArray[np.int32]
    matrices: NDArray[np.float32]
    levels: NDArray[np.float32]
    partners: NDArray[np.int32] | None
    kept: NDArray[np.float32] | None
    boxes: NDArray[np.int32] | None
    erased: NDArray[np.int32] | None
    noise: NDArray[np.uint32] | None


def is_drawable(augment: Augment) -> bool:
    """Return whether the device can make these changes: it cannot apply RandAugment's operations."""
    return not augment.randaugment_ops


def draw(batches: TrainingBatches, first: int, last: int) -> Draws:
    """Draw what is random in the batches from `first` up to `last` of the epoch, as the batches themselves would."""
    augment, px = batches.augment, batches.image_px
    members = np.stack([batches.members(index) for index in range(first, last)]).astype(np.int32)
    shape = members.shape
    # The same generators and the same order of draws as in `TrainingBatches`, or the batches would be others.
    draws = [batches.generator("augment", index).random((shape[1], NUM_DRAWS)) for index in range(first, last)]
    changes = changes_from(augment, np.stack(draws))
    return Draws(
        pictures=members,
        targets=members,
        matrices=warp_matrix(changes, batches.source_px, px).astype(np.float32),
        levels=np.stack([changes.contrast, changes.brightness], axis=-1).astype(np.float32),
        **_draw_mixing(batches, first, shape),
        **_draw_erased(batches, first, shape),
    )


def _draw_mixing(batches: TrainingBatches, first: int, shape: tuple[int, ...]) -> dict[str, Any]:
    augment, px = batches.augment, batches.image_px
    if not (augment.mixup or augment.cutmix):
        return {"partners": None, "kept": None, "boxes": None}
    # The values of a batch that is not mixed: an empty box, and all of its own levels and targets. So all batches have
    # one shape, and one compiled step fits them.
    partners, boxes = np.zeros(shape, np.int32), np.zeros((*shape, 4), np.int32)
    own_shares = np.ones((*shape, 2), np.float32)
    for step in range(shape[0]):
        mixing = draw_mixing(shape[1], px, augment, batches.generator("mix", first + step))
        if mixing is None:
            continue
        partners[step], own_shares[step, :, 1] = mixing.partners, mixing.shares
        # MixUp blends levels. CutMix pastes a box, and leaves all other levels as they are.
        if mixing.boxes is None:
            own_shares[step, :, 0] = mixing.shares
        else:
            boxes[step] = mixing.boxes
    return {"partners": partners, "kept": own_shares, "boxes": boxes}


def _draw_erased(batches: TrainingBatches, first: int, shape: tuple[int, ...]) -> dict[str, Any]:
    if not batches.augment.erase:
        return {"erased": None, "noise": None}
    erased, noise = np.zeros((*shape, 4), np.int32), np.zeros(shape[0], np.uint32)
    for step in range(shape[0]):
        rng = batches.generator("erase", first + step)
        noise[step] = derived_seed(batches.seed, "noise", batches.epoch, first + step)
        for number in np.flatnonzero(rng.random(shape[1]) < batches.augment.erase):
            left, top, right, bottom = draw_rectangle(batches.image_px, batches.image_px, rng)
            rng.bytes((bottom - top) * (right - left) * 3)  # the processor's noise, so that the next draw is the same
            erased[step, number] = left, top, right, bottom
    return {"erased": erased, "noise": noise}


def pack(read: Callable[[int], NDArray[np.uint8]], count: int, px: int, threads: int) -> NDArray[np.uint32]:
    """Return `count` pictures as (count, px, px) uint32, a pixel in each: one load reads all its levels.

    Args:
        read: gives the picture of a number, (px, px, 3) uint8.
        count: how many.
        px: their side.
        threads: that read.
    """
    packed = np.zeros((count, px, px, 4), np.uint8)

    def fill(start: int) -> None:
        for number in range(start, min(start + _READ_AT_ONCE, count)):
            packed[number, ..., :3] = read(number)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(0, count, _READ_AT_ONCE)))
    # The same memory, read as one number a pixel.
    return packed.view("<u4")[..., 0]


def unpack(packed: Any) -> Any:
    """Return the levels of packed pixels, (…) uint32, as (…, 3) uint8."""
    return ((packed[..., None] >> _SHIFTS) & 255).astype(jnp.uint8)


def make(pictures: Any, targets: Any, draws: Draws, image_px: int) -> tuple[Any, Any]:
    """Make one batch; traceable.

    Args:
        pictures: (num_pictures, source_px, source_px) uint32, of `pack`.
        targets: (num_images, num_targets) float32.
        draws: of one batch, without the axis of steps.
        image_px: side of the result.

    Returns:
        (batch, image_px, image_px, 3) uint8 and (batch, num_targets) float32.
    """
    warped = _warp(pictures, draws.pictures, draws.matrices, image_px)
    # Without the barrier XLA warps again for each use of a level: the mean, the contrast, the picture. At 224 px making
    # a batch took 1,358 µs, and takes 91 (docs/experiments.md).
    warped = jax.lax.optimization_barrier(warped.astype(jnp.uint8))
    images = _change_levels(warped.astype(jnp.float32), draws.levels)
    rows = targets[draws.targets]
    # Erasing before mixing, as on the processor: a partner brings its noise along.
    if draws.erased is not None:
        bits = jax.random.bits(jax.random.key(draws.noise), images.shape, jnp.uint8)
        images = jnp.where(_inside(draws.erased, image_px), bits.astype(jnp.float32), images)
    if draws.partners is not None and draws.kept is not None:
        others, levels, share = images[draws.partners], draws.kept[:, None, None, :1], draws.kept[:, 1:]
        mixed = jnp.rint(images * levels + others * (1 - levels))
        images = jnp.where(_inside(draws.boxes, image_px), others, mixed)
        rows = rows * share + rows[draws.partners] * (1 - share)
    return images.astype(jnp.uint8), rows


def _warp(pictures: Any, chosen: Any, matrices: Any, image_px: int) -> Any:
    """Return (batch, image_px, image_px, 3) float32 whole grey levels, as `tellapart.data.augment.warp` finds them."""
    source_px = pictures.shape[1]
    # From pixels of the result back to points in the source, as WARP_INVERSE_MAP does.
    y, x = jnp.mgrid[:image_px, :image_px].astype(jnp.float32)
    points = matrices[:, :, 0, None, None] * x + matrices[:, :, 1, None, None] * y + matrices[:, :, 2, None, None]
    corner = jnp.floor(points)
    part = (points - corner)[..., None]
    corner = corner.astype(jnp.int32)
    first, second = (_reflected(corner + move, source_px) for move in (0, 1))

    def levels(row: Any, column: Any) -> Any:
        # "promise_in_bounds" saves XLA the checks: reflected indices are always inside.
        pixels = pictures.at[chosen[:, None, None], row, column].get(mode="promise_in_bounds")
        return ((pixels[..., None] >> _SHIFTS) & 255).astype(jnp.float32)

    # Bilinear: the four pixels around each point.
    right, down = part[:, 0], part[:, 1]
    above = levels(first[:, 1], first[:, 0]) * (1 - right) + levels(first[:, 1], second[:, 0]) * right
    below = levels(second[:, 1], first[:, 0]) * (1 - right) + levels(second[:, 1], second[:, 0]) * right
    return jnp.floor(above * (1 - down) + below * down + 0.5)


def _reflected(index: Any, px: int) -> Any:
    """Return the index inside the picture that lies there in its endless reflections."""
    index = index % (2 * px)
    return jnp.minimum(index, 2 * px - 1 - index)


def _change_levels(images: Any, levels: Any) -> Any:
    """Change contrast and brightness as `tellapart.data.augment.change_levels` does."""
    contrast, brightness = levels[:, None, None, :1], levels[:, None, None, 1:]
    means = images.mean(axis=(1, 2), keepdims=True)
    contrasted = jnp.clip(images * contrast + means * (1 - contrast), 0, 255)
    # One half more, since floor cuts off. Clipped twice, as Keras' two layers do.
    return jnp.floor(jnp.clip(contrasted + (255 * brightness + 0.5), 0, 255))


def _inside(boxes: Any, image_px: int) -> Any:
    """Return (batch, image_px, image_px, 1) bool: which pixels lie in each picture's box."""
    y, x = jnp.mgrid[:image_px, :image_px]
    left, top, right, bottom = (boxes[:, edge, None, None] for edge in range(4))
    return ((x >= left) & (x < right) & (y >= top) & (y < bottom))[..., None]
