"""How likely an answer is right, from how sure the network is and how near the photo is to those it learned from.

NumPy alone, but to learn it: a server asks. Knows nothing about networks, runs, bundles or servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.randomness import generator

Floats = NDArray[np.float64]

_REDRAWS = 200
"""Of photos, each with coefficients of its own, for intervals."""
_LEAST = 1e-6
"""Probability below which nothing is told apart; a store keeps float16."""


@dataclass(frozen=True, eq=False)
class CorrectnessModel:
    """A logistic regression from four signs of a photo to the probability that its answer is right.

    A network stays confident where photos are damaged, but what it makes of them lies further from all that it learned
    from: by confidence alone the accuracy was 8 to 15 points off, the mean over 75 kinds of damage, and by this 5 to 9
    (docs/drift.md).

    Attributes:
        coefficients: (1 + num_redraws, 5) float64, the constant last: those that were learned, and others from redrawn
            photos.
    """

    coefficients: Floats

    def mean_with_redraws(self, probabilities: Floats, similarity: Floats, *, seed: int = 0) -> tuple[float, Floats]:
        """Return how likely answers are right on average, 0 to 1, and (num_redraws,) others from redrawn photos.

        Args:
            probabilities: (num_photos, num_classes) that the network gave, of one photo at least.
            similarity: (num_photos,) to the nearest reference, as `UnknownDetector.similarity` gives it.
            seed: of the draws.
        """
        rows, rng = signs(probabilities, similarity), generator(seed, "correctness")
        drawn = [
            _logistic(rows[rng.integers(0, len(rows), len(rows))], coefficients).mean()
            for coefficients in self.coefficients[1:]
        ]
        return float(_logistic(rows, self.coefficients[0]).mean()), np.array(drawn)


def learn_correctness(
    probabilities: Floats,
    similarity: Floats,
    is_right: NDArray[np.bool_],
    photos: NDArray[np.int64],
    *,
    seed: int = 0,
) -> CorrectnessModel | None:
    """Learn how likely answers are right, from photos whose classes are known.

    Args:
        probabilities: (num_rows, num_classes) that the network gave: of photos as they are, and damaged.
        similarity: (num_rows,) to the nearest reference.
        is_right: (num_rows,) whether the most likely class is the photo's.
        photos: (num_rows,) numbers; those of one photo are redrawn together.
        seed: of the redraws.

    Returns:
        None where there are no right or no wrong answers to learn from.
    """
    from sklearn.linear_model import LogisticRegression

    if is_right.all() or not is_right.any():
        return None
    rows = signs(probabilities, similarity)
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    rng, numbers = generator(seed, "learn-correctness"), np.unique(photos, return_inverse=True)[1]
    learned: list[Floats] = []
    while len(learned) <= _REDRAWS:
        count = numbers.max() + 1
        # First from the photos as they are: these coefficients are the estimate's. Then whole photos are redrawn, for
        # the damaged copies of one are no observations of their own.
        times = np.ones(count) if not learned else np.bincount(rng.integers(0, count, count), minlength=count)
        weights = times[numbers].astype(np.float64)
        if np.ptp(is_right[weights > 0].astype(np.int64)) == 0:  # all redrawn answers are alike
            continue
        # Penalised as scikit-learn does by default: three of the signs say nearly the same.
        fitted = LogisticRegression().fit((rows - mean) / scale, is_right, sample_weight=weights)
        # Turned back to the signs as they are: a server needs neither their means nor their spreads.
        slopes = fitted.coef_[0] / scale
        learned.append(np.append(slopes, fitted.intercept_[0] - slopes @ mean))
    return CorrectnessModel(np.stack(learned))


def signs(probabilities: Floats, similarity: Floats) -> Floats:
    """Return (num_photos, 4): log odds of the first class, its lead over the second, entropy, similarity."""
    # As a store keeps them: what is learned from float32 would meet other ends.
    kept = np.asarray(probabilities, np.float16).astype(np.float64)
    shares = np.clip(kept, _LEAST, 1)
    shares /= shares.sum(axis=1, keepdims=True)
    second, first = np.sort(shares, axis=1)[:, -2:].T
    entropy = -(shares * np.log(shares)).sum(axis=1)
    odds = np.log(first) - np.log(1 - first + _LEAST)
    return np.stack([odds, np.log(first) - np.log(second), entropy, np.asarray(similarity, np.float64)], axis=1)


def _logistic(rows: Floats, coefficients: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(rows @ coefficients[:-1] + coefficients[-1], -30, 30))))
