"""Two models judged on the same photos: is one better, and by how much? Knows nothing about models or files.

Photo by photo most models agree, and what they agree on says nothing of which is better. A paired test looks only at
the photos that one of them got right and the other wrong. All differences are second minus first.

Throughout: `true` is (num_images,) int64 class numbers, `first` and `second` are (num_images, num_classes) float
probabilities of the same photos in the same order, rows adding up to 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import bootstrap_means, effective_sizes, several
from tellapart.evaluation.metrics import photo_losses
from tellapart.evaluation.slices import holm
from tellapart.records import Interval
from tellapart.shares import wilson

__all__ = [
    "difference_interval",
    "grouped_difference",
    "grouped_mcnemar",
    "holm",
    "macro_f1",
    "mcnemar",
    "paired_bootstrap",
    "photo_losses",
]

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of both models being right equally often (McNemar 1947).

    The exact conditional test: if neither is better, a fair coin decides which of the two got a photo right that one
    alone got right. No mid-p correction and no chi-squared approximation, so the test never errs more often than it
    says, and with few such photos less often.

    Args:
        only_first: photos that only the first model got right.
        only_second: photos that only the second got right.

    Example:
        >>> mcnemar(0, 6)  # six heads or six tails in six throws: 2 / 64
        0.03125
    """
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(only_first, only_second), only_first + only_second, 0.5)))


def grouped_mcnemar(
    first: NDArray[np.bool_], second: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> float:
    """Return the two-sided p-value of both models being right equally often, photos of a group counting together.

    If neither is better, a fair coin decides for each group which of the two models has what was seen of which: the
    exact sign-flip test (Fisher 1935, section 21) of the groups' net differences. With single photos it is `mcnemar`.

    Args:
        first: (num_images,) which photos the first model got right.
        second: the same of the second.
        groups: (num_images,) of the photos; None: each stands for itself.
    """
    numbers, gained = several(groups), second.astype(np.int64) - first
    if numbers is None:
        return mcnemar(int((gained < 0).sum()), int((gained > 0).sum()))
    net = np.bincount(numbers, gained).astype(np.int64)
    steps = np.abs(net[net != 0])
    # Chances of each sum of flipped steps, from -total to total; each step moves half of them up and half down.
    total = int(steps.sum())
    chances = np.zeros(2 * total + 1)
    chances[total] = 1
    for step in steps:
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2
    far = np.abs(np.arange(-total, total + 1)) >= abs(int(net.sum()))
    return min(1.0, float(chances[far].sum()))


def grouped_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> Interval:
    """Return `difference_interval` of two models, with as many photos as their groups are worth.

    Args:
        first: (num_images,) which photos the first model got right.
        second: the same of the second.
        groups: (num_images,) of the photos; None: each stands for itself.
    """
    counts = [int(part.sum()) for part in (first & second, first & ~second, second & ~first, ~first & ~second)]
    gained = second.astype(np.float64) - first
    if not len(gained):
        return difference_interval(0, 0, 0, 0)
    # About a mean that is never quite what was seen: where all photos are alike, those of a group count as one.
    middle = gained.sum() / (len(gained) + 4)
    middle += 1e-6 * (not gained.any())
    size = effective_sizes(gained - middle, np.zeros(len(gained), np.int64), 1, groups)[0]
    return difference_interval(*(count * float(size) / len(gained) for count in counts))


def difference_interval(both: float, only_first: float, only_second: float, neither: float) -> Interval:
    """Return the interval of a difference of accuracies on the same photos (Newcombe 1998, paired, method 10).

    Made of both models' Wilson intervals and of how much they agree, so that it keeps its width where a bootstrap has
    none: in a small slice without a single photo on which they differ.

    Args:
        both: photos that both got right.
        only_first: only the first.
        only_second: only the second.
        neither: none of them; with no photos at all the interval is [-1, 1]. All may be parts of photos, where
            photos of a group count as less.
    """
    total = both + only_first + only_second + neither
    if total == 0:
        return Interval(-1.0, 1.0)
    rights = both + only_first, both + only_second
    shares = [right / total for right in rights]
    ends = [wilson(right, total) for right in rights]
    product = both * neither - only_first * only_second
    margins = math.prod(rights) * math.prod(total - right for right in rights)
    agreement = (max(product - total / 2, 0.0) if product > 0 else product) / math.sqrt(margins) if margins else 0.0
    below = [share - interval.low for share, interval in zip(shares, ends, strict=True)]
    above = [interval.high - share for share, interval in zip(shares, ends, strict=True)]
    difference = shares[1] - shares[0]
    low = difference - math.sqrt(below[1] ** 2 - 2 * agreement * below[1] * above[0] + above[0] ** 2)
    high = difference + math.sqrt(above[1] ** 2 - 2 * agreement * above[1] * below[0] + below[0] ** 2)
    return Interval(max(-1.0, low), min(1.0, high))


def paired_bootstrap(
    true: Numbers,
    first: Floats,
    second: Floats,
    groups: Numbers | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return percentile intervals of the differences of two models (Efron & Tibshirani 1993, chapter 13).

    Both models are judged on the same resampled photos, so what makes a photo hard for both cancels out.

    Args:
        true: class numbers.
        first: one model's probabilities.
        second: the other's.
        groups: (num_images,) of the photos, which are drawn whole; None: each stands for itself.
        resamples: how many; rounded up to a multiple of 50.
        seed: of the draws.

    Returns:
        ``accuracy``, ``f1_macro`` and ``loss`` (nats; below 0 where the second is better).
    """
    said = first.argmax(axis=1), second.argmax(axis=1)
    num_classes = first.shape[1]

    def f1_gained(counts: Floats) -> Floats:
        return macro_f1(counts, true, said[1], num_classes) - macro_f1(counts, true, said[0], num_classes)

    gained = {
        "accuracy": (said[1] == true).astype(np.float64) - (said[0] == true),
        "loss": photo_losses(true, second) - photo_losses(true, first),
    }
    return bootstrap_means(gained, {"f1_macro": f1_gained}, groups=groups, resamples=resamples, seed=seed)


def macro_f1(counts: Floats, true: Numbers, said: Numbers, num_classes: int) -> Floats:
    """Return the mean F1 over the classes that occur or are named, for many draws of the photos at once.

    Args:
        counts: (num_draws, num_images), how often each photo was drawn.
        true: class numbers.
        said: (num_images,) class numbers that the model named.
        num_classes: how many there are.

    Returns:
        (num_draws,) float64.
    """
    from scipy.sparse import csr_array

    photos, drawn = np.arange(len(true)), counts.T

    def in_class(numbers: Numbers, which: NDArray[np.bool_]) -> Floats:
        """Count the drawn photos among `which`, (num_classes, num_draws)."""
        places = which.astype(np.float64), (numbers, photos)
        return np.asarray(csr_array(places, shape=(num_classes, len(true))) @ drawn)

    everything = np.ones(len(true), bool)
    hits = in_class(true, said == true)
    total = in_class(true, everything) + in_class(said, everything)
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return np.asarray(f1.sum(axis=0) / (total > 0).sum(axis=0))
