"""Two ways of training, each with several seeds, judged on the same photos. Knows nothing about models or files.

One network with one seed says little: another seed gives another network, and other photos another accuracy. Both are
drawn at random and cross each other, every network being judged on every photo, so both belong into the interval
(Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks"). The variance of the mean of such a
table is estimated from its three mean squares (Cornfield & Tukey 1956; Brennan 2001, "Generalizability theory",
chapter 6): seeds + photos - both together, divided by the number of cells; its degrees of freedom are Satterthwaite's
(1946). With three seeds they are few, and the interval honestly wide. Where photos stand in groups, such as near
copies, a group takes the place of a photo: its photos are added up, as their share of the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import several
from tellapart.records import Interval

Right = NDArray[np.bool_]
"""(num_seeds, num_images): which photos the network of each seed got right."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and photos.

    Attributes:
        value: the mean.
        interval: 95 % for other seeds and other photos; with one seed, for other photos only.
        p_value: two-sided, of the true mean being 0.
    """

    value: float
    interval: Interval
    p_value: float


def accuracy_over_seeds(right: Right, groups: NDArray[np.int64] | None = None) -> Estimate:
    """Return the mean accuracy of a way of training; the interval keeps to 0 to 1.

    Args:
        right: (num_seeds, num_images) bool.
        groups: (num_images,) of the images; None: each stands for itself.
    """
    estimate = _mean_of_table(right.astype(np.float64), groups)
    low, high = estimate.interval.low, estimate.interval.high
    return Estimate(estimate.value, Interval(max(0.0, low), min(1.0, high)), estimate.p_value)


def compare_over_seeds(first: Right, second: Right, groups: NDArray[np.int64] | None = None) -> Estimate:
    """Return how much more accurate the second way of training is, paired by seed and by photo.

    Args:
        first: (num_seeds, num_images) bool.
        second: of the same seeds and photos, in the same order.
        groups: (num_images,) of the images; None: each stands for itself.

    Returns:
        Second less first, as a share.

    Raises:
        ValueError: the shapes differ, or hold fewer than two photos.

    Example:
        >>> all_wrong, all_right = np.zeros((3, 100), bool), np.ones((3, 100), bool)
        >>> compare_over_seeds(all_wrong, all_right).value
        1.0
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] < 2:
        raise ValueError(
            f"Expected two tables of (num_seeds, num_images), alike and with two or more images; got {first.shape} "
            f"and {second.shape}."
        )
    return _mean_of_table(second.astype(np.float64) - first, groups)


def _mean_of_table(table: NDArray[np.float64], groups: NDArray[np.int64] | None = None) -> Estimate:
    """Estimate the mean of a two-way table with one value in each cell, both ways random."""
    from scipy.stats import t as student

    mean = float(table.mean())
    if (numbers := several(groups)) is not None:
        if not numbers.any():  # a single group says nothing of others
            return Estimate(mean, Interval(mean - 1, mean + 1), 1.0)
        table = _of_groups(table, mean, numbers)
    seeds, photos = table.shape
    per_seed, per_photo = table.mean(axis=1), table.mean(axis=0)
    # Three mean squares: of photos, of seeds, and of what neither explains.
    of_photos = seeds * float(per_photo.var(ddof=1))
    variance, freedom = of_photos, float(photos - 1)
    if seeds > 1:
        of_seeds = photos * float(per_seed.var(ddof=1))
        rest = table - per_seed[:, None] - per_photo + mean
        of_both = float((rest**2).sum()) / ((seeds - 1) * (photos - 1))
        # What both share is in each of the two, and would be counted twice.
        total = of_seeds + of_photos - of_both
        if total > of_photos:  # else chance made the seeds more alike than they can be: photos alone remain
            parts = of_seeds**2 / (seeds - 1) + of_photos**2 / (photos - 1)
            parts += of_both**2 / ((seeds - 1) * (photos - 1))
            variance, freedom = total, total**2 / parts
    error = math.sqrt(variance / table.size)
    if error < 1e-12:
        return _without_variance(mean, photos)
    half_width = float(student.ppf(0.975, freedom)) * error
    return Estimate(
        mean, Interval(mean - half_width, mean + half_width), float(2 * student.sf(abs(mean) / error, freedom))
    )


def _of_groups(table: NDArray[np.float64], mean: float, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (num_seeds, num_groups) values of groups, with the mean of `table`.

    A large group weighs more, as it does in the mean. Its distance from the mean is enlarged as if the mean had been
    taken without it, or few large groups would make the interval too narrow.
    """
    members = np.bincount(groups)
    totals = np.stack([np.bincount(groups, row - row.mean()) for row in table])
    group_values = totals * len(members) / table.shape[1] * (1 - 1 / len(members)) / (1 - members / table.shape[1])
    group_values -= group_values.mean(axis=1, keepdims=True)  # enlarging moves the mean a little, which is known
    return np.asarray(table.mean(axis=1, keepdims=True) + group_values)


def _without_variance(mean: float, photos: int) -> Estimate:
    """Bound the mean of a table whose cells are all alike by the rule of three (Hanley & Lippman-Hand 1983)."""
    half_width = min(1.0, 3 / photos)
    return Estimate(mean, Interval(mean - half_width, mean + half_width), 1.0 if abs(mean) < 0.5 else 0.0)
