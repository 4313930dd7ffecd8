"""95 % confidence intervals. Knows nothing about models or images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tellapart.randomness import generator
from tellapart.records import Interval


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Return the interval of a mean by the central limit theorem, with Student's t.

    Args:
        values: (num_values,) float; fewer than two give an interval without width at their mean.
    """
    from scipy.stats import t

    if len(values) < 2:
        middle = float(values.mean()) if len(values) else float("nan")
        return Interval(middle, middle)
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def bootstrap_confusion(
    confusion: NDArray[np.int64],
    statistics: Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return percentile intervals of statistics of a confusion matrix (Efron & Tibshirani 1993, chapter 13).

    Drawing images with replacement is drawing cells of the matrix from a multinomial distribution, so
    no image is touched.

    Args:
        confusion: (num_classes, num_classes) int64, true classes in rows.
        statistics: maps (resamples, num_classes, num_classes) to a dict of (resamples,) arrays.
        resamples: how many.
        seed: of the draws.
    """
    total = int(confusion.sum())
    if total == 0:
        return {}
    shares = confusion.ravel() / total
    draws = generator(seed, "bootstrap").multinomial(total, shares, size=resamples)
    values = statistics(draws.reshape(resamples, *confusion.shape).astype(np.float64))
    return {
        name: Interval(*(float(end) for end in np.quantile(value, (0.025, 0.975)))) for name, value in values.items()
    }
