"""The expected calibration error without its bias, and an interval that holds it. Knows nothing about models or files.

What is estimated: over all photos like these, the mean over `num_bins` fixed bins of equal width of the distance
between accuracy and confidence, weighted by how many photos fall into each. The usual estimate (Naeini et al. 2015, Guo
et al. 2017, equation 5) adds up absolute values, which chance alone makes larger than zero: for a calibrated network of
300 photos it is 0.05 to 0.10 on average where the truth is 0, and resampling photos adds as much again, so that a
percentile bootstrap's interval lies above the truth every time.

Here the error of each bin is debiased as Kumar, Liang & Ma 2019 do ("Verified Uncertainty Calibration", section 5) for
absolute values: twice its size less the mean size of a normal variable about it (Roelofs et al. 2022 compare such
estimates). What bias remains is removed by inverting a test over a family of networks that differ in nothing but how
large their error is, the grid bootstrap of Hansen 1999: a value belongs to the interval where data like these are not
too rare for it. The reported value is the one for which they are neither too large nor too small: median-unbiased.
Below zero there is nothing, so for a calibrated network the interval covers more than 95 of 100 times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from tellapart.evaluation.intervals import design_effect, several, skewed_mean_interval
from tellapart.randomness import generator
from tellapart.records import Interval

Floats = NDArray[np.float64]

_DRAWS = 500
_LEVELS = (0.02, 0.5, 0.98)
"""2 % at each end, not 2.5 %: which bins are off is itself read from the data, and that costs about a point."""
_GRID = np.concatenate([[0.0], np.geomspace(0.03, 1.0, 18)])
_NOISE = 0.3
"""Of a bin's standard deviation: so much error a bin may have in which none is seen."""


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error.

    Attributes:
        value: median-unbiased, 0 to 1; 0 where the data are no further off than chance takes them.
        interval: 95 %; of a calibrated network it covers more often.
        plain: the usual estimate, which is too large: for comparison with published numbers.
    """

    value: float
    interval: Interval
    plain: float


@dataclass(frozen=True)
class _Bins:
    """Bins that hold photos, (num_filled,) each.

    Attributes:
        share: of all photos.
        confidence: their mean largest probability.
        right: the share of all photos that lies in the bin and is right.
        total: number of photos.
        effect: how many times groups make the variance of `right` that of independent photos.
    """

    share: Floats
    confidence: Floats
    right: Floats
    total: int
    effect: Floats

    @property
    def gap(self) -> Floats:
        return self.right - self.share * self.confidence

    @property
    def deviation(self) -> Floats:
        return _deviation(self.right * self.total, self.share * self.total, self)


@dataclass(frozen=True)
class _Groups:
    """Photos in groups.

    Attributes:
        bin_numbers: (num_images,) the filled bin of each photo.
        groups: (num_images,) from 0 on.
        alike: share of the groups in which one photo's fate is that of all.
    """

    bin_numbers: NDArray[np.int64]
    groups: NDArray[np.int64]
    alike: float


def bin_of(confidence: Floats, num_bins: int) -> NDArray[np.int64]:
    """Return each photo's bin: of its range the low end is not included, but 0 is."""
    edges = np.linspace(0, 1, num_bins + 1)
    return np.asarray(np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1), np.int64)


def calibration_error(
    right: NDArray[np.bool_], confidence: Floats, groups: NDArray[np.int64] | None = None, *, num_bins: int = 15
) -> CalibrationError:
    """Estimate the expected calibration error; the same data give the same numbers.

    Args:
        right: (num_images,) whether the most probable class is the true one.
        confidence: (num_images,) its probability, 0 to 1.
        groups: (num_images,) of the images; None: each stands for itself.
        num_bins: of equal width.
    """
    bin_numbers = bin_of(confidence, num_bins)
    counts = np.bincount(bin_numbers, minlength=num_bins)
    # Bins without photos take no part: they have neither a gap nor a deviation.
    filled = np.flatnonzero(counts)
    sums = [
        np.bincount(bin_numbers, values, minlength=num_bins)[filled]
        for values in (confidence, right.astype(np.float64))
    ]
    grouped, effect = _groups(right, np.searchsorted(filled, bin_numbers), groups)
    bins = _Bins(counts[filled] / len(right), sums[0] / counts[filled], sums[1] / len(right), len(right), effect)
    # What the photos show, then the error of which photos like these are typical, and its ends.
    observed = float(_debiased(bins.gap, bins.deviation).sum())
    grid, ends = _simulated(bins, _test_sets(bins) if grouped is None else _grouped_test_sets(bins, grouped))
    plain = float(np.abs(bins.gap).sum())
    # Crosswise: an error is the low end where what was seen is nearly too large for it, so the high level belongs to
    # it.
    low, middle, high = (_where(observed, grid, ends[:, 2 - level]) for level in range(3))
    # The wider of both intervals: that of drawn groups alone held 87 to 91 of 100 true errors (see `_reach`).
    if grouped is not None:
        below, above = _reach(right - confidence, np.sign(bins.gap)[grouped.bin_numbers], grouped.groups)
        low, high = max(min(low, middle - below), 0.0), min(max(high, plain + above), 1.0)
    return CalibrationError(middle, Interval(low, high), plain)


def _reach(gaps: Floats, signs: Floats, groups: NDArray[np.int64]) -> tuple[float, float]:
    """Return how far a mean of gaps of known sign is uncertain, down and up.

    Where an error is plain to see, it is such a mean. Drawn groups that are alike or not, as above, know less of how
    groups differ than the groups themselves do, and alone held 87 to 91 of 100 true errors.
    """
    values = signs * gaps
    ends, mean = skewed_mean_interval(values, groups, bounds=(-1.0, 1.0)), float(values.mean())
    return mean - ends.low, ends.high - mean


def _groups(
    right: NDArray[np.bool_], bin_numbers: NDArray[np.int64], groups: NDArray[np.int64] | None
) -> tuple[_Groups | None, Floats]:
    """Return how alike photos of a group are, and what that does to the variance in each bin."""
    counts = np.bincount(bin_numbers).astype(np.float64)
    if (numbers := several(groups)) is None:
        return None, np.ones(len(counts))
    accuracy = (np.bincount(bin_numbers, right) + 1) / (counts + 2)  # never 0 or 1
    members = np.bincount(numbers).astype(np.float64)
    largest = float((members**2).sum()) / len(right)  # the design effect of groups that are all alike
    # Between independent photos (1) and groups that are all alike: how far the measured effect lies from one to the
    # other.
    effect = design_effect(right - accuracy[bin_numbers], numbers)
    alike = min((effect - 1) / (largest - 1), 1.0)
    cells, at = np.unique(bin_numbers * len(members) + numbers, return_inverse=True)
    squares = np.bincount(cells // len(members), np.bincount(at).astype(np.float64) ** 2)
    return _Groups(bin_numbers, numbers, alike), 1 + alike * (squares / counts - 1)


def _debiased(gap: Floats, deviation: Floats) -> Floats:
    z = gap / deviation  # of a bin that a draw left empty too, the deviation is above 0
    mean_size = deviation * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + gap * erf(z / np.sqrt(2))
    return np.asarray(2 * np.abs(gap) - mean_size)


def _deviation(hits: Floats, counts: Floats, bins: _Bins) -> Floats:
    """Return the standard deviation of each gap; two photos that are right as often as said are lent to each bin."""
    accuracy = (hits + 2 * bins.confidence) / (counts + 2)
    return np.asarray(np.sqrt(np.maximum(bins.effect * accuracy * (1 - accuracy) * counts, 1e-12)) / bins.total)


TestSets = Callable[[Floats], tuple[Floats, Floats]]
"""Maps true accuracies of the bins to hits and counts of test sets, (num_draws, num_filled) each."""


def _simulated(bins: _Bins, draw: TestSets) -> tuple[Floats, Floats]:
    """Return errors, rising, and for each the low, middle and high value that data of such a network would show."""
    deviation = bins.deviation
    shape = np.maximum(_debiased(bins.gap, deviation), 0) + _NOISE * deviation
    # Where nothing is seen, an error can only lie on the side on which there is room: a sure bin can be too sure.
    towards = np.where(np.abs(bins.gap) > deviation, np.sign(bins.gap), np.where(bins.confidence > 0.5, -1.0, 1.0))
    room = bins.share * np.where(towards > 0, 1 - bins.confidence, bins.confidence)
    reach = 2.5 * np.abs(bins.gap).sum() + 4 * np.sqrt((deviation**2).sum())
    # Errors to try: up to well beyond what was seen, but no more than bins have room for.
    grid = np.unique(np.minimum(_GRID * reach, 0.999 * room.sum()))
    ends = []
    for error in grid:
        hits, counts = draw(np.clip(bins.confidence + towards * _spread(error, shape, room) / bins.share, 0, 1))
        total = counts.sum(axis=1, keepdims=True)  # not always the same where groups are drawn
        gaps = (hits - counts * bins.confidence) / total
        deviation = _deviation(hits, counts, bins) * bins.total / total
        # The same estimate of drawn photos as of the real ones, so that its bias is in both.
        ends.append(np.quantile(_debiased(gaps, deviation).sum(axis=1), _LEVELS))
    # A larger error shows larger values; where draws say otherwise it is chance, and interpolation needs rising
    # values.
    return grid, np.maximum.accumulate(np.array(ends), axis=0)


def _test_sets(bins: _Bins) -> TestSets:
    """Draw photos anew, and which of them are right."""
    rng = generator(0, "calibration error")
    # Drawn once for all errors that are tried: differences between them are not those of the draws.
    counts = rng.multinomial(bins.total, bins.share / bins.share.sum(), size=_DRAWS)

    def draw(accuracy: Floats) -> tuple[Floats, Floats]:
        return rng.binomial(counts, accuracy).astype(np.float64), counts.astype(np.float64)

    return draw


def _grouped_test_sets(bins: _Bins, grouped: _Groups) -> TestSets:
    """Draw groups anew, and which photos are right: in some groups each by itself, in others all by one throw."""
    rng = generator(0, "calibration error of groups")
    order = np.argsort(grouped.groups, kind="stable")
    members, num_bins = np.bincount(grouped.groups), len(bins.share)
    # Every draw holds all photos: fewer draws for many photos keep time and memory flat.
    num_draws = max(min(_DRAWS, 300_000 // len(order)), 200)
    drawn = rng.integers(0, len(members), num_draws * len(members))
    sizes = members[drawn]
    first = np.cumsum(sizes) - sizes
    # The photos of each drawn group, one group after another, without a loop.
    rows = order[np.repeat((np.cumsum(members) - members)[drawn] - first, sizes) + np.arange(sizes.sum())]
    bin_numbers = grouped.bin_numbers[rows]
    cells = np.repeat(np.repeat(np.arange(num_draws), len(members)), sizes) * num_bins + bin_numbers
    # One throw for a group that is alike; NaN marks groups whose photos throw by themselves.
    shared = np.where(rng.random(len(drawn)) < grouped.alike, rng.random(len(drawn)), np.nan)
    throws = np.repeat(shared, sizes)
    independent = np.isnan(throws)
    throws[independent] = rng.random(int(independent.sum()))
    counts = np.bincount(cells, minlength=num_draws * num_bins).reshape(num_draws, num_bins).astype(np.float64)

    def draw(accuracy: Floats) -> tuple[Floats, Floats]:
        hits = np.bincount(cells[throws < accuracy[bin_numbers]], minlength=num_draws * num_bins)
        return hits.reshape(num_draws, num_bins).astype(np.float64), counts

    return draw


def _spread(error: float, shape: Floats, room: Floats) -> Floats:
    """Return how the error falls to the bins: in the given shape, as far as each has room."""
    spread = np.minimum(shape / shape.sum() * error, room)
    for _ in range(4):
        left = room - spread
        spread = spread + left * (error - spread.sum()) / max(left.sum(), 1e-300)
    return np.asarray(spread)


def _where(observed: float, grid: Floats, values: Floats) -> float:
    """Return the error at which `values`, which rise with it, reach what was seen."""
    if observed <= values[0]:
        return 0.0
    return float(np.interp(observed, values, grid))
