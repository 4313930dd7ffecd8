"""95 % confidence intervals. Knows nothing about models or images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tellapart.randomness import generator
from tellapart.records import Interval

_DRAWS_AT_ONCE = 50
"""Of a bootstrap over images: their counts for all draws together would take 80 MB for each 10,000 images."""


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


def bootstrap_means(
    values: dict[str, NDArray[np.float64]],
    statistics: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return percentile intervals over images drawn with replacement (Efron & Tibshirani 1993, chapter 13).

    Args:
        values: (num_images,) arrays whose means are wanted.
        statistics: functions of how often each image was drawn: (num_draws, num_images) float64 → (num_draws,).
        resamples: how many.
        seed: of the draws.
    """
    statistics = statistics or {}
    num_images = len(next(iter(values.values())))
    rng = generator(seed, "bootstrap of images")
    drawn: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*values, *statistics)}
    for _ in range(0, resamples, _DRAWS_AT_ONCE):
        counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=_DRAWS_AT_ONCE)
        draws = counts.astype(np.float64)
        for name, value in values.items():
            drawn[name].append(draws @ value / num_images)
        for name, statistic in statistics.items():
            drawn[name].append(statistic(draws))
    return {
        name: Interval(*(float(end) for end in np.quantile(np.concatenate(found), (0.025, 0.975))))
        for name, found in drawn.items()
    }
