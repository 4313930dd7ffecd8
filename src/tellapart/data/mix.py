"""Pictures mixed over a batch with their targets, and erased in part. Knows nothing about single changes of a picture.

MixUp: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412. CutMix: Yun et al. 2019,
arXiv 1905.04899. Random erasing: Zhong et al. 2020, arXiv 1708.04896. All work in place on whole grey levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.settings import Augment

# Of random erasing, as in the paper: share of the picture's area, and height over width.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Mixing:
    """How the pictures of a batch are mixed, each with another one of it.

    Attributes:
        partners: (num_images,) which one.
        shares: (num_images,) how much of itself each target keeps.
        boxes: (num_images, 4) of `draw_boxes`, which are pasted from the partner; None: MixUp by `shares`.
    """

    partners: NDArray[np.int64]
    shares: NDArray[np.float64]
    boxes: NDArray[np.int64] | None


def draw_mixing(num_images: int, px: int, augment: Augment, rng: np.random.Generator) -> Mixing | None:
    """Draw how a batch is mixed, by MixUp or CutMix, where `augment` asks for it; None: it stays as it is.

    Args:
        num_images: in the batch.
        px: side of the pictures.
        augment: `mixup` and `cutmix` are the alphas of Beta(alpha, alpha); where both are above 0 each batch takes
            one of them with equal chance. `mix_probability` of the batches are mixed.
        rng: the batch's own generator.
    """
    if not (augment.mixup or augment.cutmix):
        return None
    # Both are drawn whether they are needed or not: settings shift no later draw.
    mixed_draw, kind_draw = rng.random(2)
    if mixed_draw >= augment.mix_probability:
        return None
    # A permutation: each picture is the partner of exactly one other, so none counts more than the rest.
    partners = rng.permutation(num_images)
    if augment.cutmix and (not augment.mixup or kind_draw < 0.5):
        boxes = draw_boxes(rng.beta(augment.cutmix, augment.cutmix, num_images), px, rng)
        return Mixing(partners, kept_shares(boxes, px), boxes)
    return Mixing(partners, rng.beta(augment.mixup, augment.mixup, num_images), None)


def mix(
    images: NDArray[np.uint8], targets: NDArray[np.float32], mixing: Mixing | None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mix each picture of a batch with another one of it.

    Args:
        images: (num_images, px, px, 3) uint8, changed in place.
        targets: (num_images, num_classes) float32, each row adding up to 1.
        mixing: of `draw_mixing`; None: nothing is mixed.

    Returns:
        `images`, and (num_images, num_classes) float32 soft targets.
    """
    if mixing is None:
        return images, targets
    if mixing.boxes is None:
        mixup(images, mixing.partners, mixing.shares)
    else:
        cutmix(images, mixing.partners, mixing.boxes)
    own_share = mixing.shares.astype(np.float32)[:, None]
    return images, own_share * targets + (1 - own_share) * targets[mixing.partners]


def mixup(images: NDArray[np.uint8], partners: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    """Make each picture ``share * picture + (1 - share) * partner``, rounded; a share for each picture."""
    for number, partner in _pairs(images, partners):
        share = float(shares[number])
        cv2.addWeighted(images[number], share, partner, 1 - share, 0, dst=images[number])


def cutmix(images: NDArray[np.uint8], partners: NDArray[np.int64], boxes: NDArray[np.int64]) -> None:
    """Paste into each picture what its partner has in the picture's box, a row of `draw_boxes`."""
    for number, partner in _pairs(images, partners):
        left, top, right, bottom = boxes[number]
        images[number, top:bottom, left:right] = partner[top:bottom, left:right]


def draw_boxes(shares: NDArray[np.float64], px: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return (num_images, 4) boxes: left, top, right, bottom, the last two exclusive.

    Squares of ``1 - share`` of the area about a uniform centre, clipped at the borders, as in the paper.
    """
    # A box that is clipped at the border covers less than was drawn; `kept_shares` counts its pixels.
    sides = np.rint(px * np.sqrt(1 - shares)).astype(np.int64)[:, None]
    starts = rng.integers(px, size=(len(shares), 2)) - sides // 2
    return np.asarray(np.clip(np.concatenate([starts, starts + sides], axis=1), 0, px))


def kept_shares(boxes: NDArray[np.int64], px: int) -> NDArray[np.float64]:
    """Return the exact share of each picture's pixels that its box leaves."""
    left, top, right, bottom = boxes.T
    return np.asarray(1 - (right - left) * (bottom - top) / px**2)


def erase(picture: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Fill a random rectangle of `picture`, (height, width, 3) uint8, with noise, in place."""
    left, top, right, bottom = draw_rectangle(picture.shape[0], picture.shape[1], rng)
    # `device_batches._draw_erased` draws as many bytes and throws them away, so that all later draws are the same.
    noise = np.frombuffer(rng.bytes((bottom - top) * (right - left) * 3), np.uint8)  # in half the time of rng.integers
    picture[top:bottom, left:right] = noise.reshape(bottom - top, right - left, 3)


def draw_rectangle(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom, the last two exclusive, of a rectangle to be erased.

    Area and aspect are uniform in `ERASED_AREA` and `ERASED_ASPECT`, drawn again until the rectangle fits.
    """
    while True:
        area = height * width * rng.uniform(*ERASED_AREA)
        aspect = rng.uniform(*ERASED_ASPECT)
        rows, columns = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            break
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    return left, top, left + columns, top + rows


def _pairs(images: NDArray[np.uint8], partners: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield (number, partner as it was before mixing), so that each picture can be changed when it is yielded.

    Along a cycle of the permutation a partner is read before it is changed; only the first picture of the cycle is
    changed before its turn as a partner, so that it alone is copied.
    """
    seen = np.zeros(len(images), np.bool_)
    for start in range(len(images)):
        if seen[start] or partners[start] == start:
            continue
        first, number = images[start].copy(), start
        while not seen[number]:
            seen[number] = True
            following = int(partners[number])
            yield number, first if following == start else images[following]
            number = following
