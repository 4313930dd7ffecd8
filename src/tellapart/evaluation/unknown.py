"""How well photos of no known class are told from known ones: by leaving classes out, and by far pictures.

Knows nothing about files, runs or networks: it is given embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.decode import decode_square
from tellapart.data.drawn import CLASSES, encoded_picture
from tellapart.evaluation.intervals import share_interval
from tellapart.evaluation.ranking import roc_auc
from tellapart.randomness import generator
from tellapart.records import Interval
from tellapart.unknown import UnknownDetector

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Told:
    """How well some unknown pictures are told from known photos.

    Attributes:
        name: of the unknown ones.
        num_images: how many they are.
        auroc: share of pairs (known, unknown) of which the known one is more similar, ties counted as half.
        interval: of it (DeLong 1988, as `tellapart.evaluation.ranking.roc_auc` has it).
        refused: share of the unknown ones that are called unknown.
        refused_interval: Wilson's, of it.
        similarity: (num_images,) of the unknown ones.
    """

    name: str
    num_images: int
    auroc: float
    interval: Interval
    refused: float
    refused_interval: Interval
    similarity: Floats


def tell(
    detector: UnknownDetector,
    name: str,
    known: Floats,
    unknown: Floats,
    *,
    groups: Numbers | None = None,
    strangers: Numbers | None = None,
) -> Told:
    """Hold similarities of unknown pictures against those of known photos.

    Args:
        detector: whose threshold decides.
        name: of the unknown ones.
        known: (num_known,) float32.
        unknown: (num_unknown,) float32; both not empty.
        groups: (num_known,) of the known photos; None: each stands for itself.
        strangers: (num_unknown,) of the unknown ones, in the same numbers; None: each stands for itself.
    """
    is_unknown, joint = np.repeat([False, True], [len(known), len(unknown)]), None
    if groups is not None:
        # Numbers of their own: without `strangers` no unknown picture shares a group with a known photo.
        unknown_groups = groups.max() + 1 + np.arange(len(unknown)) if strangers is None else strangers
        joint = np.concatenate([groups, unknown_groups])
    # The unknown ones are the positives, so the least similar comes first.
    area, interval = roc_auc(is_unknown, -np.concatenate([known, unknown]).astype(np.float64), joint)
    return Told(name, len(unknown), area, interval, *share_refused(detector, unknown, strangers), unknown)


def leave_each_out(
    detector: UnknownDetector, embeddings: Floats, numbers: Numbers, classes: list[str], groups: Numbers | None = None
) -> list[Told]:
    """Leave each class's references out in turn: its photos are the unknown ones then, all others the known ones.

    The network is not trained again. Where it has learned from photos of the class, which draws them together and away
    from the others, this is better than a class that it has never seen would be; it is exact only where a head was
    fitted to frozen features that had no part in the classes.

    Args:
        detector: of all classes.
        embeddings: (num_images, num_features) of photos that nothing was learned from.
        numbers: (num_images,) their class numbers.
        classes: names by number.
        groups: (num_images,) of the photos.

    Returns:
        One for each class that has both references and photos; none where no other class has.
    """
    known, cosines = detector.similarity_by_class(embeddings)
    results: list[Told] = []
    for column, number in enumerate(known.tolist()):
        unknown, others = numbers == number, np.delete(cosines, column, axis=1)
        if not others.shape[1] or unknown.all() or not unknown.any():
            continue
        similarity = others.max(axis=1)
        result = tell(
            detector, classes[number], similarity[~unknown], similarity[unknown],
            groups=None if groups is None else groups[~unknown], strangers=None if groups is None else groups[unknown],
        )  # fmt: skip
        results.append(result)
    return results


def mean_auroc(found: list[Told]) -> tuple[float, Interval]:
    """Return the mean over classes, and the means of the intervals' ends.

    All classes are told from nearly the same photos, so that their areas go up and down together; these ends are right
    if they do so entirely, and too wide otherwise.
    """
    ends = [(result.interval.low, result.interval.high) for result in found]
    low, high = np.mean(ends, axis=0).tolist()
    return float(np.mean([result.auroc for result in found])), Interval(low, high)


def share_refused(
    detector: UnknownDetector, similarity: Floats, groups: Numbers | None = None
) -> tuple[float, Interval]:
    """Return the share of pictures that are called unknown, with Wilson's interval."""
    refused = detector.is_unknown(similarity)
    return float(refused.mean()), share_interval(refused, groups)


def noise_pictures(count: int, image_px: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return pictures of coloured noise, from single pixels to large soft patches.

    Returns:
        (count, image_px, image_px, 3) uint8.
    """
    rng, pictures = generator(seed, "noise pictures"), np.empty((count, image_px, image_px, 3), np.uint8)
    for number in range(count):
        cells = max(2, round(image_px / 2 ** rng.uniform(0, 5)))
        coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        pictures[number] = cv2.resize(coarse, (image_px, image_px), interpolation=cv2.INTER_CUBIC)
    return pictures


def drawn_pictures(count: int, image_px: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return pictures of `tellapart.data.drawn`, of all its classes in turn: (count, image_px, image_px, 3) uint8."""
    names = list(CLASSES)
    return np.stack([
        decode_square(encoded_picture(seed, names[number % len(names)], number)[1], image_px)
        for number in range(count)
    ])  # fmt: skip
