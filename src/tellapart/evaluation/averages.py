"""Precision, recall and F1 averaged over classes, with their intervals. Knows nothing about models or files.

An average of ratios has no binomial interval, and a bootstrap has no width where nothing is wrong. So each average is
treated as Wilson treats a share: its variance is that of its first derivatives (the delta method, over groups where
there are any), taken at counts to which each class has been lent one photo that is right and one that is not; that
says how many photos a plain share of the same variance would have been measured on, and Wilson's interval of so many
is returned. Two corrections make it hold for small classes: Welch and Satterthwaite's degrees of freedom (1946),
since a class's variance is itself estimated from few photos, and the bias of F1, which is a concave function of the
share that is right (Opitz & Burst 2019 call it the averaged F1).

Throughout: `hits`, `support` and `named` are (num_classes,) float64, the photos of each class that are classified
correctly, that belong to it and that are said to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import design_effect, several
from tellapart.proportions import Z, wilson
from tellapart.records import Interval

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

SCORES = ("precision", "recall", "f1")
_LENT = 1.0
"""Photos lent to each class, half of a right one to its row and column and half of a wrong one each; by simulation,
half or twice as many cover as well (results/coverage.json)."""


@dataclass(frozen=True)
class Counts:
    """Photos by class."""

    hits: Floats
    support: Floats
    named: Floats

    @property
    def present(self) -> Floats:
        """1 for classes that occur or are named, else 0."""
        return (self.support + self.named > 0).astype(np.float64)


def count(true: Numbers, predicted: Numbers, num_classes: int) -> Counts:
    """Count photos by class; of no more size than the classes themselves, however many there are."""
    selections = (true[true == predicted], true, predicted)
    return Counts(*(np.bincount(numbers, minlength=num_classes).astype(np.float64) for numbers in selections))


def scores(counts: Counts) -> dict[str, Floats]:
    """Return precision, recall and F1 of each class; 0 where there is nothing to divide by."""
    return {
        "precision": _ratio(counts.hits, counts.named),
        "recall": _ratio(counts.hits, counts.support),
        "f1": _ratio(2 * counts.hits, counts.support + counts.named),
    }


def averages(counts: Counts) -> dict[str, float]:
    """Return ``precision_macro``, ``precision_weighted``, ``recall_macro`` and so on."""
    means = {}
    for name, values in scores(counts).items():
        means[f"{name}_macro"] = float((values * counts.present).sum() / max(counts.present.sum(), 1))
        means[f"{name}_weighted"] = float((values * counts.support).sum() / max(counts.support.sum(), 1))
    return means


def average_intervals(
    true: Numbers, predicted: Numbers, num_classes: int, groups: Numbers | None = None
) -> dict[str, Interval]:
    """Return the interval of each of `averages`.

    Args:
        true: (num_images,) class numbers.
        predicted: (num_images,) class numbers.
        num_classes: how many there are; memory is in proportion to images and classes, not to their squares.
        groups: (num_images,) of the images; None: each stands for itself.
    """
    counts = count(true, predicted, num_classes)
    kinds = [(name, average) for name in SCORES for average in ("macro", "weighted")]
    return {
        f"{name}_{average}": _estimate(true, predicted, counts, groups, name, average).interval
        for name, average in kinds
    }


@dataclass(frozen=True)
class Estimate:
    """An average as it was measured.

    Attributes:
        value: of the photos as they are.
        interval: of 95 %.
        influence: (num_images,) how much each photo moves the average.
        spread_of_lent: sum of squared influences of the lent photos.
    """

    value: float
    interval: Interval
    influence: Floats
    spread_of_lent: float


def f1_macro(true: Numbers, predicted: Numbers, num_classes: int, groups: Numbers | None = None) -> Estimate:
    """Return the mean F1 of the classes with what a comparison needs of it; arguments as in `average_intervals`."""
    return _estimate(true, predicted, count(true, predicted, num_classes), groups, "f1", "macro")


def _estimate(
    true: Numbers, predicted: Numbers, counts: Counts, groups: Numbers | None, name: str, average: str
) -> Estimate:
    lent, into = _lent(counts)
    # Derivatives at the counts with the lent photos: where all or none are right, plain ones would show no variance.
    slopes = _Slopes.of(lent, counts.present, name, average)
    # Each photo is a hit or not, adds to its own class, and to the class that it is taken for.
    influence = slopes.hits[true] * (true == predicted) + slopes.support[true] + slopes.named[predicted]
    of_lent = _spread_of_lent(slopes, counts.present, into)
    spread = float((influence**2).sum()) + of_lent
    total = len(true) + 2 * _LENT * counts.present.sum()
    middle = slopes.value
    # As many photos as a plain share of this variance would have been measured on, less the lent ones. Without any
    # variance all photos count.
    size = middle * (1 - middle) / spread * len(true) / total if spread > 1e-12 else float(len(true))
    numbers = several(groups)
    effect = design_effect(influence, numbers)
    # The bias falls with the number of photos as the variance does, so groups raise it as much.
    bias = _bias_of_f1(lent, counts, average) * effect if name == "f1" else 0.0
    size = size / effect * _few_photos(lent, counts, name, average, 1 if numbers is None else effect)
    value = averages(counts)[f"{name}_{average}"]
    return Estimate(value, _around(value, bias, size), influence, of_lent)


def _around(value: float, bias: float, size: float) -> Interval:
    """Return Wilson's interval about the value without its bias; the value itself is always inside."""
    middle = min(max(value - bias, 0.0), 1.0)
    ends = wilson(middle * size, size)
    return Interval(min(ends.low, value), max(ends.high, value))


def _ratio(part: Floats, total: Floats) -> Floats:
    return np.divide(part, total, out=np.zeros_like(part), where=total > 0)


def _lent(counts: Counts) -> tuple[Counts, tuple[Floats, Floats]]:
    """Return counts with the lent photos, and where the wrong ones go: a class's size, and one over that of all others.

    A class is lent `_LENT` right photos and as many wrong ones, half of them its own that are taken for others, half
    others' that are taken for it; the others share them in proportion to their size.
    """
    present = counts.present
    size = (counts.support + counts.named) / 2
    others = _ratio(present, size.sum() - size)
    taken = size * (others.sum() - others)  # from all other classes, in units of _LENT / 2
    wrong = _LENT / 2 * ((others > 0) + taken)
    lent = present * _LENT
    counts = Counts(counts.hits + lent, counts.support + lent + wrong, counts.named + lent + wrong)
    return counts, (size, others)


@dataclass(frozen=True)
class _Slopes:
    """An average, and what one more hit, photo of a class, or photo said to be of it adds to it."""

    value: float
    hits: Floats
    support: Floats
    named: Floats

    @staticmethod
    def of(counts: Counts, present: Floats, name: str, average: str) -> _Slopes:
        values = scores(counts)[name]
        support, named = {
            "precision": (np.zeros_like(values), counts.named),
            "recall": (counts.support, np.zeros_like(values)),
            "f1": (counts.support, counts.named),
        }[name]
        total = support + named
        per_hit = _ratio(np.full_like(values, 2.0 if name == "f1" else 1.0), total)
        per_photo = -_ratio(values, total)
        per_support, per_named = per_photo * (name != "precision"), per_photo * (name != "recall")
        weights = present / max(present.sum(), 1)
        if average == "weighted":
            weights = counts.support * present / max((counts.support * present).sum(), 1e-12)
        value = float((values * weights).sum())
        # A weighted average's weights move too: one more photo of a class draws the average towards that class.
        weight_shift = (
            (values - value) * present / max((counts.support * present).sum(), 1e-12) if average == "weighted" else 0
        )
        return _Slopes(value, per_hit * weights, per_support * weights + weight_shift, per_named * weights)


def _spread_of_lent(slopes: _Slopes, present: Floats, into: tuple[Floats, Floats]) -> float:
    """Return the sum of squared influences of the lent photos, without a table of classes by classes."""
    size, others = into
    right = present * (slopes.hits + slopes.support + slopes.named) ** 2
    total = _LENT * float(right.sum())
    # The square (own + other)² summed over all other classes, multiplied out: own², twice the product, other². First
    # a class's own photos that are taken for others, then the reverse.
    for own, other_slopes in ((slopes.support, slopes.named), (slopes.named, slopes.support)):
        first = (size * other_slopes).sum() - size * other_slopes
        second = (size * other_slopes**2).sum() - size * other_slopes**2
        wrong = (others > 0) * own**2 + 2 * own * first * others + second * others
        total += _LENT / 2 * float(wrong.sum())
    return total


def _few_photos(lent: Counts, counts: Counts, name: str, average: str, effect: float) -> float:
    """Return the factor, at most 1, on the number of photos that makes a normal interval Student's t."""
    from scipy.stats import t

    photos = {
        "precision": counts.named,
        "recall": counts.support,
        "f1": (counts.support + counts.named) / 2,
    }[name] / effect  # fmt: skip
    weights = counts.present if average == "macro" else lent.support * counts.present
    weights = weights / max(weights.sum(), 1e-12)
    values = scores(lent)[name]
    parts = weights**2 * values * (1 - values) / np.maximum(photos, 1)
    # Welch and Satterthwaite: a class of few photos costs degrees of freedom as far as it carries the variance.
    freedom = parts.sum() ** 2 / max((parts**2 / np.maximum(photos - 1, 1)).sum(), 1e-300)
    return float((Z / t.ppf(0.975, max(freedom, 1.0))) ** 2)


def _bias_of_f1(lent: Counts, counts: Counts, average: str) -> float:
    """Return how far an averaged F1 lies below the truth on average: F1 = 2J / (1 + J) of the Jaccard index J."""
    union = lent.support + lent.named - lent.hits
    jaccard = _ratio(lent.hits, union)
    photos = np.maximum(counts.support + counts.named - counts.hits, 1)
    # Half the second derivative of 2J / (1 + J), which is below 0, times the variance of J.
    of_classes = -2 * jaccard * (1 - jaccard) / ((1 + jaccard) ** 3 * photos)
    weights = counts.present if average == "macro" else counts.support
    return float((of_classes * weights).sum() / max(weights.sum(), 1))
