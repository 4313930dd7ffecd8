"""A share, or the difference of two, and its 95 % interval. Knows nothing about what is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tellapart.records import Interval

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def wilson(successes: float, trials: float) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927; Brown, Cai & DasGupta 2001, section 3.1.1).

    Args:
        successes: how often it happened, 0 to `trials`.
        trials: how often it could have happened; 0 gives the interval [0, 1].

    Example:
        >>> interval = wilson(9, 10)
        >>> round(interval.low, 4), round(interval.high, 4)
        (0.5958, 0.9821)
    """
    if trials <= 0:
        return Interval(0.0, 1.0)
    share, square = successes / trials, Z * Z
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    # At the ends the formula gives 0 and 1, but for rounding.
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    high = 1.0 if successes >= trials else min(1.0, middle + half)
    return Interval(float(low), float(high))


def difference_interval(both: float, only_first: float, only_second: float, neither: float) -> Interval:
    """Return the interval of the second accuracy less the first, on the same photos (Newcombe 1998, paired, method 10).

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
    product = both * neither - only_first * only_second
    margins = math.prod(rights) * math.prod(total - right for right in rights)
    agreement = (max(product - total / 2, 0.0) if product > 0 else product) / math.sqrt(margins) if margins else 0.0
    return of_both([right / total for right in rights], [wilson(right, total) for right in rights], agreement)


def of_both(values: Sequence[float], ends: Sequence[Interval], agreement: float) -> Interval:
    """Return the interval of a difference of two values from those of each (Zou & Donner 2008, equation 4).

    Args:
        values: of the first and the second, from 0 to 1.
        ends: the interval of each.
        agreement: correlation of the two, -1 to 1: what makes photos hard for both cancels out.
    """
    below = [value - interval.low for value, interval in zip(values, ends, strict=True)]
    above = [interval.high - value for value, interval in zip(values, ends, strict=True)]
    difference = values[1] - values[0]
    low = difference - math.sqrt(max(below[1] ** 2 - 2 * agreement * below[1] * above[0] + above[0] ** 2, 0.0))
    high = difference + math.sqrt(max(above[1] ** 2 - 2 * agreement * above[1] * below[0] + below[0] ** 2, 0.0))
    return Interval(max(-1.0, low), min(1.0, high))
