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

from tellapart.evaluation.averages import f1_macro
from tellapart.evaluation.intervals import effective_sizes, several, skewed_mean_interval
from tellapart.evaluation.metrics import LOSS_BOUNDS, photo_losses
from tellapart.proportions import difference_interval, of_both
from tellapart.records import Interval

__all__ = [
    "difference_interval",
    "differences",
    "f1_difference",
    "grouped_difference",
    "grouped_mcnemar",
    "holm",
    "loss_difference",
    "mcnemar",
    "of_both",
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
    # At most twice as many sums as photos: exact, where all 2 to the power of the groups could not be gone through.
    chances = np.zeros(2 * total + 1)
    chances[total] = 1
    for step in steps:
        # np.roll wraps round, but no sum of steps lies beyond the total, so only zeros do.
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2
    as_extreme = np.abs(np.arange(-total, total + 1)) >= abs(int(net.sum()))
    return min(1.0, float(chances[as_extreme].sum()))


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


def f1_difference(
    true: Numbers, first: Numbers, second: Numbers, num_classes: int, groups: Numbers | None = None
) -> Interval:
    """Return the interval of the difference of two models' macro F1 (`of_both` of their own intervals).

    Args:
        true: class numbers.
        first: (num_images,) class numbers that the first model named.
        second: those of the second.
        num_classes: how many there are.
        groups: (num_images,) of the photos; None: each stands for itself.
    """
    estimates = [f1_macro(true, predicted, num_classes, groups) for predicted in (first, second)]
    numbers = several(groups)
    # What each photo, or each group of them, does to either model's F1: their agreement makes the difference surer.
    influences = [
        estimate.influence if numbers is None else np.bincount(numbers, estimate.influence) for estimate in estimates
    ]
    # Photos lent to a class are each model's own, so two models without a mistake are not taken for one.
    spreads = [
        float(move @ move) + estimate.spread_of_lent for move, estimate in zip(influences, estimates, strict=True)
    ]
    agreement = float(influences[0] @ influences[1]) / math.sqrt(math.prod(spreads)) if min(spreads) > 0 else 0.0
    return of_both([estimate.value for estimate in estimates], [estimate.interval for estimate in estimates], agreement)


def differences(true: Numbers, first: Floats, second: Floats, groups: Numbers | None = None) -> dict[str, Interval]:
    """Return the intervals of what the second model has more than the first.

    Args:
        true: class numbers.
        first: one model's probabilities.
        second: the other's.
        groups: (num_images,) of the photos; None: each stands for itself.

    Returns:
        ``accuracy``, ``f1_macro`` and ``loss`` (nats; below 0 where the second is better).
    """
    predicted = first.argmax(axis=1), second.argmax(axis=1)
    return {
        "accuracy": grouped_difference(predicted[0] == true, predicted[1] == true, groups),
        "f1_macro": f1_difference(true, *predicted, first.shape[1], groups),
        "loss": loss_difference(photo_losses(true, first), photo_losses(true, second), groups),
    }


def loss_difference(first: Floats, second: Floats, groups: Numbers | None = None) -> Interval:
    """Return the interval of the difference of two models' mean loss, from (num_images,) losses in nats of each."""
    gained = second - first
    if not gained.any():
        return Interval(0.0, 0.0)  # the same probabilities to the last bit: one network
    return skewed_mean_interval(gained, groups, bounds=(-LOSS_BOUNDS[1], LOSS_BOUNDS[1]))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values corrected for all being looked at (Holm 1979)."""
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    # The running maximum keeps the order: no p-value may fall below that of a stronger finding.
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return corrected
