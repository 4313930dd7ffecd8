"""Pictures mixed over a batch with their targets, and erased in part. Knows nothing about single changes of a picture.

MixUp: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412. CutMix: Yun et al. 2019,
arXiv 1905.04899. Random erasing: Zhong et al. 2020, arXiv 1708.04896. All work in place on whole grey levels.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.settings import Augment

# Of random erasing, as in the paper: share of the picture's area, and height over width.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)


def mix(
    images: NDArray[np.uint8], targets: NDArray[np.float32], augment: Augment, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mix each picture of a batch with another one of it, by MixUp or CutMix, where `augment` asks for it.

    Args:
        images: (num_images, px, px, 3) uint8, changed in place.
        targets: (num_images, num_classes) float32, each row adding up to 1.
        augment: `mixup` and `cutmix` are the alphas of Beta(alpha, alpha); where both are above 0 each batch takes
            one of them with equal chance. `mix_probability` of the batches are mixed.
        rng: the batch's own generator.

    Returns:
        `images`, and (num_images, num_classes) float32 soft targets.
    """
    if not (augment.mixup or augment.cutmix):
        return images, targets
    mixed_draw, kind_draw = rng.random(2)
    if mixed_draw >= augment.mix_probability:
        return images, targets
    partners = rng.permutation(len(images))
    if augment.cutmix and (not augment.mixup or kind_draw < 0.5):
        shares = rng.beta(augment.cutmix, augment.cutmix, len(images))
        boxes = draw_boxes(shares, images.shape[1], rng)
        cutmix(images, partners, boxes)
        shares = kept_shares(boxes, images.shape[1])
    else:
        shares = rng.beta(augment.mixup, augment.mixup, len(images))
        mixup(images, partners, shares)
    kept = shares.astype(np.float32)[:, None]
    return images, kept * targets + (1 - kept) * targets[partners]


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
    sides = np.rint(px * np.sqrt(1 - shares)).astype(np.int64)[:, None]
    starts = rng.integers(px, size=(len(shares), 2)) - sides // 2
    return np.asarray(np.clip(np.concatenate([starts, starts + sides], axis=1), 0, px))


def kept_shares(boxes: NDArray[np.int64], px: int) -> NDArray[np.float64]:
    """Return the exact share of each picture's pixels that its box leaves."""
    left, top, right, bottom = boxes.T
    return np.asarray(1 - (right - left) * (bottom - top) / px**2)


def erase(picture: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Fill a random rectangle of `picture`, (height, width, 3) uint8, with noise, in place.

    Area and aspect are uniform in `ERASED_AREA` and `ERASED_ASPECT`, drawn again until the rectangle fits.
    """
    height, width = picture.shape[:2]
    while True:
        area = height * width * rng.uniform(*ERASED_AREA)
        aspect = rng.uniform(*ERASED_ASPECT)
        rows, columns = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            break
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    noise = np.frombuffer(rng.bytes(rows * columns * 3), np.uint8)  # in half the time of rng.integers
    picture[top : top + rows, left : left + columns] = noise.reshape(rows, columns, 3)


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
