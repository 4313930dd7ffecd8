"""What can be said of photos that nobody has labelled: how many a model gets right, and how often each class comes.

Pure functions of NumPy arrays: of validation photos, whose labels are known, and of those that came since.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tellapart.correctness import CorrectnessModel
from tellapart.randomness import generator
from tellapart.records import Interval

Floats = NDArray[np.float64]

_REDRAWS = 200
"""Of photos, for an interval."""
_MOST_ROUNDS, _CLOSE = 500, 1e-6
_FEWEST_OF_A_CLASS = 5
"""Validation photos without which nothing is known of how a class is confused."""


@dataclass(frozen=True)
class Estimate:
    """A share of photos that was estimated without labels.

    Attributes:
        value: 0 to 1.
        interval: 95 %, of what drawing other photos would change, those that came and those it was learned from: that
            what was learned may not fit the change is not in it.
    """

    value: float
    interval: Interval


def estimate_accuracy(correctness: CorrectnessModel, came: Floats, similarity: Floats, *, seed: int = 0) -> Estimate:
    """Return the share of photos that a model gets right, estimated without their labels: the mean of how likely it is.

    Args:
        correctness: how likely an answer is right.
        came: (num_photos, num_classes) probabilities of the photos that came.
        similarity: (num_photos,) of them to known photos.
        seed: of the draws for the interval.

    Raises:
        ValueError: there are no photos.
    """
    if not len(came):
        raise ValueError("no photos to estimate from")
    value, drawn = correctness.mean_with_redraws(came, similarity, seed=seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, Interval(float(min(low, value)), float(max(high, value))))


@dataclass(frozen=True, eq=False)
class ClassShares:
    """How often each class comes.

    Attributes:
        before: (num_classes,) shares among validation photos.
        now: (num_classes,) estimated shares among the photos that came.
        low: (num_classes,) lower ends of 95 % intervals, of what drawing other photos of both kinds would change.
        high: (num_classes,) upper ends.
    """

    before: Floats
    now: Floats
    low: Floats
    high: Floats

    @property
    def changed(self) -> NDArray[np.int64]:
        """The classes whose share has changed detectably, the largest change first."""
        # The ends are those for all classes together: of twenty, none is called changed by chance alone.
        outside = np.flatnonzero((self.low > self.before) | (self.high < self.before))
        return np.asarray(outside[np.argsort(-np.abs(self.now - self.before)[outside])], np.int64)


def estimate_shares(known: Floats, true: NDArray[np.int64], came: Floats, *, seed: int = 0) -> ClassShares | None:
    """Return how often each class comes now, estimated from what is predicted and how classes are confused.

    Holds where photos of a class look as they did and only their number has changed (label shift; Lipton, Wang & Smola
    2018, "Detecting and correcting for label shift with black box predictors"): the shares of the predicted classes
    are those of the true ones, mixed by the confusion matrix of validation photos, which is undone.

    Args:
        known: (num_validation, num_classes) probabilities of validation photos.
        true: (num_validation,) numbers of their classes.
        came: (num_photos, num_classes) probabilities of the photos that came.
        seed: of the draws for the intervals.

    Returns:
        None where a class has fewer than five validation photos or nothing came. The intervals are 95 % for all classes
        together.
    """
    num_classes = known.shape[1]
    counts = np.bincount(true, minlength=num_classes)
    if not len(came) or counts.min() < _FEWEST_OF_A_CLASS:
        return None
    said, said_now = known.argmax(axis=1), came.argmax(axis=1)
    confusion = _confusion(said, true, num_classes)
    predicted = np.bincount(said_now, minlength=num_classes) / len(said_now)
    before = counts / counts.sum()
    now = _unmixed(confusion[None], predicted[None])[0]
    rng = generator(seed, "class-shares")
    # Each class by itself, so that none is drawn away; validation shares are a draw too.
    columns = [rng.multinomial(count, confusion[:, number], _REDRAWS) / count for number, count in enumerate(counts)]
    drawn = rng.multinomial(len(said_now), predicted, _REDRAWS) / len(said_now)
    drawn_before = rng.multinomial(len(true), before, _REDRAWS) / len(true)
    changes = _unmixed(np.stack(columns, axis=2), drawn) - drawn_before
    # So few draws have no ends for a tail this thin: those of a normal distribution of the same spread.
    width = NormalDist().inv_cdf(1 - 0.025 / num_classes) * np.std(changes, axis=0, ddof=1)
    return ClassShares(before, now, np.clip(now - width, 0, 1), np.clip(now + width, 0, 1))


def _confusion(said: NDArray[np.int64], true: NDArray[np.int64], num_classes: int) -> Floats:
    """Return (num_classes, num_classes): of photos of each class (columns), the share that is called each (rows)."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (said, true), 1)
    return np.asarray(counts / counts.sum(axis=0))


def _unmixed(confusion: Floats, predicted: Floats) -> Floats:
    """Return the shares of the true classes under which the predicted ones are likeliest (expectation maximisation).

    Of as many equations as classes; unlike their solution it is never negative, and needs no inverse.

    Args:
        confusion: (num_draws, num_classes, num_classes), as `_confusion` has it.
        predicted: (num_draws, num_classes) shares of the predicted classes.
    """
    shares = np.full(predicted.shape, 1 / predicted.shape[1])
    for _ in range(_MOST_ROUNDS):
        mixed = np.einsum("dij,dj->di", confusion, shares)
        # A class that is predicted and that no validation photo was called: it says nothing.
        ratio = np.divide(predicted, mixed, out=np.zeros_like(mixed), where=mixed > 0)
        better = shares * np.einsum("dij,di->dj", confusion, ratio)
        # What was predicted as a class that says nothing is missing: without this the shares would not add up to 1.
        better /= better.sum(axis=1, keepdims=True)
        is_close = np.abs(better - shares).max() < _CLOSE
        shares = better
        if is_close:
            break
    return np.asarray(shares)
