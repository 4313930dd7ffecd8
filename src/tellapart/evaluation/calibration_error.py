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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from tellapart.evaluation.intervals import design_effect
from tellapart.randomness import generator
from tellapart.records import Interval

Floats = NDArray[np.float64]

_DRAWS = 600
_LEVELS = (0.02, 0.5, 0.98)
"""2 % at each end, not 2.5 %: which bins are off is itself read from the data, and that costs about a point."""
_GRID = np.concatenate([[0.0], np.geomspace(0.02, 1.0, 28)])
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
    """Bins that hold photos: their share, mean confidence and the share of all photos that is right in them."""

    share: Floats
    confidence: Floats
    right: Floats
    total: int

    @property
    def gap(self) -> Floats:
        return self.right - self.share * self.confidence


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
    place = bin_of(confidence, num_bins)
    counts = np.bincount(place, minlength=num_bins)
    filled = counts > 0
    sums = [np.bincount(place, values, minlength=num_bins)[filled] for values in (confidence, right.astype(np.float64))]
    lent = ((np.bincount(place, right + 0.0, minlength=num_bins) + 1) / (counts + 2))[place]  # accuracy, never 0 or 1
    total = max(round(len(right) / design_effect(right - lent, groups)), 1)
    bins = _Bins(counts[filled] / len(right), sums[0] / counts[filled], sums[1] / len(right), total)
    seen = float(_debiased(bins.gap, _deviation(bins.right * total, bins.share * total, bins)).sum())
    grid, ends = _simulated(bins)
    low, middle, high = (_where(seen, grid, ends[:, 2 - place]) for place in range(3))
    return CalibrationError(middle, Interval(low, high), float(np.abs(bins.gap).sum()))


def _debiased(gap: Floats, deviation: Floats) -> Floats:
    z = gap / deviation
    mean_size = deviation * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + gap * erf(z / np.sqrt(2))
    return np.asarray(2 * np.abs(gap) - mean_size)


def _deviation(hits: Floats, counts: Floats, bins: _Bins) -> Floats:
    """Return the standard deviation of each gap; two photos that are right as often as said are lent to each bin."""
    accuracy = (hits + 2 * bins.confidence) / (counts + 2)
    return np.asarray(np.sqrt(np.maximum(accuracy * (1 - accuracy) * counts, 1e-12)) / bins.total)


def _simulated(bins: _Bins) -> tuple[Floats, Floats]:
    """Return errors, rising, and for each the low, middle and high value that data of such a network would show."""
    deviation = _deviation(bins.right * bins.total, bins.share * bins.total, bins)
    shape = np.maximum(_debiased(bins.gap, deviation), 0) + _NOISE * deviation
    # Where nothing is seen, an error can only lie on the side on which there is room: a sure bin can be too sure.
    towards = np.where(np.abs(bins.gap) > deviation, np.sign(bins.gap), np.where(bins.confidence > 0.5, -1.0, 1.0))
    room = bins.share * np.where(towards > 0, 1 - bins.confidence, bins.confidence)
    reach = 2.5 * np.abs(bins.gap).sum() + 4 * np.sqrt((deviation**2).sum())
    grid = np.unique(np.minimum(_GRID * reach, 0.999 * room.sum()))
    rng = generator(0, "calibration error")
    counts = rng.multinomial(bins.total, bins.share / bins.share.sum(), size=_DRAWS).astype(np.float64)
    ends = []
    for error in grid:
        accuracy = np.clip(bins.confidence + towards * _spread(error, shape, room) / bins.share, 0, 1)
        hits = rng.binomial(counts.astype(np.int64), accuracy).astype(np.float64)
        gaps = (hits - counts * bins.confidence) / bins.total
        ends.append(np.quantile(_debiased(gaps, _deviation(hits, counts, bins)).sum(axis=1), _LEVELS))
    return grid, np.maximum.accumulate(np.array(ends), axis=0)


def _spread(error: float, shape: Floats, room: Floats) -> Floats:
    """Return how the error falls to the bins: in the given shape, as far as each has room."""
    spread = np.minimum(shape / shape.sum() * error, room)
    for _ in range(4):
        left = room - spread
        spread = spread + left * (error - spread.sum()) / max(left.sum(), 1e-300)
    return np.asarray(spread)


def _where(seen: float, grid: Floats, values: Floats) -> float:
    """Return the error at which `values`, which rise with it, reach what was seen."""
    if seen <= values[0]:
        return 0.0
    return float(np.interp(seen, values, grid))
