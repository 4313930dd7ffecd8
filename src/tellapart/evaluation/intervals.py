"""95 % confidence intervals of shares, means and bootstrapped statistics. Knows nothing about models or images.

Photos of one group (near copies, or one object taken several times) are not independent. Wherever `groups` is asked
for, it is (num_images,) int64, the number of each photo's group, or None where every photo stands for itself; groups of
one photo each give what None gives. What a group's photos have in common is measured, not assumed: the variance is the
cluster-robust one (Liang & Zeger 1986), and shares go by an effective number of photos (Kish 1965; Korn & Graubard
1998, "Confidence intervals for proportions with small expected number of positive counts estimated from survey data").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tellapart.proportions import Z, wilson
from tellapart.records import Interval

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

_LENT = 1.5
"""Photos of the kind that counts, such as mistakes, that are lent to a design effect, each with a group that is all
alike: measured on a few mistakes alone it would be too uncertain (results/coverage.json)."""


def mean_interval(values: Floats) -> Interval:
    """Return the interval of a mean by the central limit theorem, with Student's t.

    Args:
        values: (num_values,) float; fewer than two give an interval without width at their mean.
    """
    from scipy.stats import t

    if len(values) < 2:
        middle = float(values.mean()) if len(values) else float("nan")
        return Interval(middle, middle)
    half_width = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(float(values.mean()) - half_width, float(values.mean()) + half_width)


def several(groups: Numbers | None) -> Numbers | None:
    """Return the groups as numbers from 0 on, or None where no group has more than one photo."""
    if groups is None:
        return None
    distinct, numbers = np.unique(groups, return_inverse=True)
    return None if len(distinct) == len(groups) else numbers.astype(np.int64)


def design_effect(residuals: Floats, groups: Numbers | None) -> float:
    """Return how many times the groups make a mean's variance that of independent photos; at least 1.

    Args:
        residuals: (num_images,) what each photo adds to the statistic, less the mean (its influence).
        groups: of the photos.
    """
    size = effective_sizes(residuals, np.zeros(len(residuals), np.int64), 1, groups)[0]
    return len(residuals) / float(size)


def effective_sizes(residuals: Floats, places: Numbers, num_places: int, groups: Numbers | None) -> Floats:
    """Return how many independent photos those of each place are worth: their number over the design effect.

    The design effect is the sum of squares of the groups' totals over that of the photos, the totals enlarged as if
    each group had not been there when the mean was taken (the jackknife of Bell & McCaffrey 2002). With few groups, or
    few large ones, it is itself uncertain: Student's t stands for the normal (Korn & Graubard 1998, equation 4), with
    as many groups as would be as uncertain if they were of one size (Carter, Schnepel & Steigerwald 2017).

    Args:
        residuals: (num_entries,) what each photo adds to the statistic of its place.
        places: (num_entries,) int64, such as the photo's class.
        num_places: how many there are.
        groups: (num_entries,) of the photos.

    Returns:
        (num_places,) float64, never above the number of entries.
    """
    from scipy.stats import t

    counts = np.bincount(places, minlength=num_places).astype(np.float64)
    if (numbers := several(groups)) is None:
        return counts
    width = int(numbers.max()) + 1
    # One number for each pair of place and group that occurs; `owners` are their places.
    keys, at = np.unique(places * width + numbers, return_inverse=True)
    owners, members = keys // width, np.bincount(at)
    clusters = np.bincount(owners, minlength=num_places).astype(np.float64)
    shared, single = clusters < counts, (clusters < counts) & (clusters < 2)
    # What is left of a place without the group: the jackknife's enlargement of its total.
    left = np.where(single[owners], 1.0, 1 - members / counts[owners])
    # Squares of the groups' totals over squares of single photos: the design effect.
    between = np.bincount(owners, (np.bincount(at, residuals) / np.maximum(left, 1e-12)) ** 2, minlength=num_places)
    within = np.bincount(places, residuals**2, minlength=num_places)
    effect = np.ones(num_places)
    usable = shared & ~single & (within > 0)
    squares = np.bincount(owners, members.astype(np.float64) ** 2, minlength=num_places)
    lent = _LENT * np.bincount(places, residuals**4, minlength=num_places)[usable] / within[usable]
    factor = (1 - 1 / clusters[usable]) * (1 - 1 / counts[usable])
    total = factor * between[usable] + lent * squares[usable] / counts[usable]
    # Never below 1: chance can make groups look more varied than they are.
    effect[usable] = np.maximum(total / (within[usable] + lent), 1.0)
    effect[single] = counts[single]  # a single group has no variance between groups: it is worth one photo
    # Few groups: Student's t in place of the normal widens the interval, which counts as fewer photos.
    widening, equal_groups = np.ones(num_places), counts[shared] ** 2 / squares[shared]
    widening[shared] = t.ppf(0.975, counts[shared] - 1) / t.ppf(0.975, np.maximum(equal_groups - 1, 1))
    return np.asarray(counts / effect * np.where(single, 1.0, widening) ** 2)


def share_intervals(
    hits: NDArray[np.bool_], places: Numbers, num_places: int, groups: Numbers | None = None
) -> list[Interval]:
    """Return Wilson's interval of the share of hits at each place; where nothing is, [0, 1].

    Args:
        hits: (num_entries,) bool.
        places: (num_entries,) int64.
        num_places: how many there are.
        groups: (num_entries,); residuals are taken about Wilson's own middle, so that where all are hits, and nothing
            can be measured, the photos of a group count as one.
    """
    counts = np.bincount(places, minlength=num_places).astype(np.float64)
    right = np.bincount(places, hits, minlength=num_places)
    middle = (right + Z * Z / 2) / (counts + Z * Z)
    sizes = effective_sizes(hits - middle[places], places, num_places, groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(counts > 0, right / counts, 0.0)
    return [wilson(share * size, size) for share, size in zip(shares.tolist(), sizes.tolist(), strict=True)]


def share_interval(hits: NDArray[np.bool_], groups: Numbers | None = None) -> Interval:
    """Return Wilson's interval of a share, (num_images,) bool hits; photos of one group count as far as they differ."""
    return share_intervals(hits, np.zeros(len(hits), np.int64), 1, groups)[0]


def skewed_mean_interval(values: Floats, groups: Numbers | None = None, *, bounds: tuple[float, float]) -> Interval:
    """Return the interval of the mean of skewed values, such as losses: few are large, and the mean hangs on them.

    Student's t held 79 to 93 of 100 true losses where a network makes few mistakes (results/coverage.json). Here its
    skewness is taken out by a monotone cubic (Hall 1992, "On the removal of skewness by transformation", section 2),
    which is as good as a studentised bootstrap and draws nothing.

    Args:
        values: (num_images,) float.
        groups: of the images.
        bounds: what a mean can be at all; the interval of fewer than two groups is all of it.
    """
    from scipy.stats import t

    numbers = several(groups)
    mean = float(values.mean())
    members = np.ones(len(values)) if numbers is None else np.bincount(numbers).astype(np.float64)
    totals = values - mean if numbers is None else np.bincount(numbers, values - mean)
    count = len(totals)
    if count < 2:
        return Interval(*bounds)
    totals = totals / (1 - members / len(values))  # each group as if the mean had been taken without it
    squares = float((totals**2).sum())
    error = np.sqrt(squares * (1 - 1 / count)) / len(values)
    if squares < 1e-30:  # all alike: as many photos as there are groups could not show what happens in 3 of so many
        reach = min(1.0, 3 / count) * (bounds[1] - bounds[0])
        return Interval(max(bounds[0], mean - reach), min(bounds[1], mean + reach))
    equal_groups = len(values) ** 2 / float((members**2).sum())  # groups of one size that would be as uncertain
    reach, skewness = float(t.ppf(0.975, max(equal_groups - 1, 1))), float((totals**3).sum()) / squares**1.5
    # Crosswise: the upper end of the studentised mean is the lower end of the interval.
    low, high = (mean - error * _unskewed(end, skewness) for end in (reach, -reach))
    return Interval(max(bounds[0], float(low)), min(bounds[1], float(high)))


def _unskewed(end: float, skewness: float) -> float:
    """Invert Hall's cubic: what a normal end is on the scale of a studentised mean of this skewness."""
    # The limit without skewness, by which the formula below divides.
    if abs(skewness) < 1e-9:
        return end
    # `np.cbrt`, not ** (1 / 3): the argument may be below 0, where a power gives NaN.
    return float(3 / skewness * (np.cbrt(1 + skewness * (end - skewness / 6)) - 1))
