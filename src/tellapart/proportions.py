"""A share and its 95 % interval. Knows nothing about what is counted."""

from __future__ import annotations

import math

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
