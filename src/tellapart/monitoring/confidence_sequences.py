"""Intervals that hold at every look: whoever stops when they like is still wrong at most once in twenty times.

An ordinary 95 % interval holds for one look that was fixed before. An A/B test is looked at after every label, and is
stopped when it says something. Pure functions of all observations so far: nothing is kept between looks, and what was
said of the first observations does not change when more arrive. NumPy alone, since a server computes these too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import NDArray

_LARGEST_BET = 0.5
"""Share of the capital that one observation can lose at most."""
_CHUNK = 400_000
"""Cells of the table of observations × candidate means that are computed at once: 3 MB each."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ConfidenceSequence:
    """An interval after each observation.

    Attributes:
        mean: (num_observations,) float64, of the observations so far.
        lower: (num_observations,) float64.
        upper: (num_observations,) float64.
    """

    mean: Floats
    lower: Floats
    upper: Floats

    def first_excluding(self, value: float) -> int | None:
        """Return after how many observations the interval first excludes a value; None: it never does."""
        outside = np.flatnonzero((self.lower > value) | (self.upper < value))
        return int(outside[0]) + 1 if len(outside) else None


def betting_sequence(
    values: Floats, bounds: tuple[float, float], *, alpha: float = 0.05, num_candidates: int = 4001
) -> ConfidenceSequence:
    """Return a confidence sequence for the mean of bounded observations.

    A gambler bets against each candidate mean, on both sides of it; a candidate whose gambler becomes rich is not the
    mean. The hedged capital process of Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by
    betting", theorem 3, with their predictable plug-in bets. It adapts to the variance: where most observations are
    equal, it is far narrower than the bounds would suggest. Valid for any distribution, at any number of observations.

    Args:
        values: (num_observations,) in the order of their arrival.
        bounds: the least and the largest value that can arrive.
        alpha: chance that the sequence ever excludes the mean.
        num_candidates: means that are tried; the interval is widened to the next one.

    Raises:
        ValueError: a value is outside the bounds.
    """
    low, high = bounds
    values = np.asarray(values, np.float64)
    if len(values) and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"values from {values.min():g} to {values.max():g}. Expected {low:g} to {high:g}.")
    scaled, count = (values - low) / (high - low), np.arange(1, len(values) + 1)
    bets, means = _plug_in_bets(scaled, count, alpha), np.linspace(0.0, 1.0, num_candidates)
    # Bounded, so that no observation takes all of the capital; a candidate at a bound can be bet on without limit.
    with np.errstate(divide="ignore"):
        largest_up, largest_down = _LARGEST_BET / means, _LARGEST_BET / (1 - means)
    log_up, log_down = np.zeros(num_candidates), np.zeros(num_candidates)
    threshold = np.log(2 / alpha)  # half of the capital is on each side
    lower, upper = np.empty(len(values)), np.empty(len(values))
    # Candidates that were excluded once stay so: only those from `first` to `last` are followed.
    first, last, start = 0, num_candidates - 1, 0
    while start < len(values):
        rows, columns = slice(start, start + max(1, _CHUNK // (last - first + 1))), slice(first, last + 1)
        difference, bet = scaled[rows, None] - means[None, columns], bets[rows, None]
        up = log_up[columns] + np.log1p(np.minimum(bet, largest_up[columns]) * difference).cumsum(axis=0)
        down = log_down[columns] + np.log1p(-np.minimum(bet, largest_down[columns]) * difference).cumsum(axis=0)
        log_up[columns], log_down[columns] = up[-1], down[-1]
        capital = np.maximum(up, down)
        kept = capital < threshold
        # Where none is kept, the mean lies beside the candidate with the least capital.
        poorest, any_kept = capital.argmin(axis=1), kept.any(axis=1)
        begins = first + np.where(any_kept, kept.argmax(axis=1), poorest)
        ends = first + np.where(any_kept, kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1), poorest)
        lower[rows] = means[np.maximum(begins - 1, 0)]
        upper[rows] = means[np.minimum(ends + 1, num_candidates - 1)]
        first = max(first, int(begins.max()) - 1)
        last = max(first, min(last, int(ends.min()) + 1))
        start = rows.stop
    scale = high - low
    return ConfidenceSequence(
        low + scale * scaled.cumsum() / count,
        low + scale * np.maximum.accumulate(lower),
        low + scale * np.minimum.accumulate(upper),
    )


def _plug_in_bets(scaled: Floats, count: NDArray[np.int64], alpha: float) -> Floats:
    """Return what is bet on each observation, by the variance of those before it."""
    mean = (0.5 + scaled.cumsum()) / (count + 1)
    variance = (0.25 + ((scaled - mean) ** 2).cumsum()) / (count + 1)
    # A bet that knew its own observation would make every candidate's gambler rich.
    earlier = np.concatenate(([0.25], variance[:-1]))
    bets: Floats = np.sqrt(2 * np.log(2 / alpha) / (earlier * count * np.log1p(count)))
    return bets


def asymptotic_sequence(
    values: Floats, *, alpha: float = 0.05, tuned_for: int = 500, first: int = 100
) -> ConfidenceSequence:
    """Return a confidence sequence for a mean that is valid as the central limit theorem is: for many observations.

    Waudby-Smith et al. 2024, "Time-uniform central limit theory and asymptotic confidence sequences", theorem 2.2.

    Args:
        values: (num_observations,) independent, of finite variance; no bounds are needed.
        alpha: chance that the sequence ever excludes the mean, in the limit.
        tuned_for: the number of observations at which it is narrowest.
        first: observations before which the interval is infinite.
    """
    values = np.asarray(values, np.float64)
    count = np.arange(1, len(values) + 1)
    # Shifted: the difference of two large sums would lose the variance of values far from 0.
    shift = values[0] if len(values) else 0.0
    mean = (values - shift).cumsum() / count
    squares = ((values - shift) ** 2).cumsum()
    variance = np.maximum(squares - count * mean**2, 0.0) / np.maximum(count - 1, 1)
    # The mixture's precision that is best at `tuned_for`: its equation is solved by Lambert's W, approximated as there.
    log_odds = 2 * np.log(1 / alpha)
    precision = tuned_for / (log_odds + np.log(log_odds) + 1)
    mixed = count + precision
    radius = np.sqrt(variance * mixed * np.log(mixed / (precision * alpha**2))) / count
    radius[: first - 1] = np.inf
    return ConfidenceSequence(mean + shift, mean + shift - radius, mean + shift + radius)


def split_effects(outcomes: Floats, is_challenger: NDArray[np.bool_], share: float) -> Floats:
    """Return observations whose mean is what the challenger gains, where one model alone answered each request.

    Each outcome, less the mean of those before it, divided by the probability of the model that answered (inverse
    propensity weighting with a predictable centre: without one the variance would grow with the outcomes' mean).

    Args:
        outcomes: (num_requests,) such as 1.0 for a correct answer, in the order of their arrival.
        is_challenger: (num_requests,) bool, whether the challenger answered.
        share: of the requests that go to the challenger, above 0 and below 1.
    """
    outcomes = np.asarray(outcomes, np.float64)
    earlier = np.concatenate(([0.0], outcomes.cumsum()[:-1])) / np.maximum(np.arange(len(outcomes)), 1)
    return (outcomes - earlier) * np.where(is_challenger, 1 / share, -1 / (1 - share))


def sample_ratio_evidence(num_challenger: int, num_requests: int, share: float) -> float:
    """Return the logarithm of the evidence that requests are not split as they should be.

    The Bayes factor of an unknown share, all alike beforehand, against the one that was asked for. It may be looked at
    at any time: where it ever exceeds log(1 / alpha), the split is not the one that was asked for, with error
    probability alpha (Lindon & Malek 2022, "Anytime-valid inference for multinomial count data").

    Args:
        num_challenger: requests that went to the challenger so far.
        num_requests: all requests so far.
        share: that was to go to the challenger, above 0 and below 1.
    """
    num_champion = num_requests - num_challenger
    mixture = lgamma(1 + num_challenger) + lgamma(1 + num_champion) - lgamma(2 + num_requests)
    return mixture - num_challenger * float(np.log(share)) - num_champion * float(np.log1p(-share))
