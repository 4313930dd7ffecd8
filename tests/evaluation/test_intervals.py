"""Intervals against SciPy, against plain resampling of images, and what they cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tellapart.evaluation.intervals import mean_interval
from tellapart.evaluation.metrics import AVERAGED, classification_metrics
from tellapart.proportions import wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 20), (9, 10), (270, 300), (1, 5000)])
def test_wilson_equals_scipy(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    found = wilson(successes, trials)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_trials_leave_everything_open():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


@pytest.mark.parametrize("share", [0.8, 0.9, 0.95])
def test_the_interval_of_an_accuracy_covers_it_95_times_in_100(share):
    """Exactly: every possible number of right answers of 300, weighted with its probability."""
    right = np.arange(301)
    ends = [wilson(int(count), 300) for count in right]
    covers = np.array([interval.low <= share <= interval.high for interval in ends])
    assert stats.binom.pmf(right, 300, share) @ covers == pytest.approx(0.95, abs=0.01)


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).gamma(1.0, size=25)
    expected = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
    assert mean_interval(np.array([2.5])).low == mean_interval(np.array([2.5])).high == 2.5


@pytest.mark.slow
def test_the_intervals_of_averaged_metrics_cover_them_95_times_in_100():
    """2,000 test sets of 1,000 photos of one world, whose true precision, recall and F1 are known."""
    rates = np.array([[0.30, 0.02, 0.01], [0.03, 0.40, 0.02], [0.02, 0.03, 0.17]])
    true, predicted = (axis.ravel() for axis in np.indices((3, 3)))
    rng = np.random.default_rng(5)

    def measured(counts: np.ndarray) -> dict:
        probabilities = np.eye(3)[np.repeat(predicted, counts)]
        return classification_metrics(np.repeat(true, counts), probabilities, ["a", "b", "c"])

    world = measured((rates.ravel() * 100_000).round().astype(int))
    covered = dict.fromkeys(AVERAGED, 0)
    for _ in range(2_000):
        ends = measured(rng.multinomial(1_000, rates.ravel()))["intervals"]
        for name in AVERAGED:
            covered[name] += ends[name][0] <= world[name] <= ends[name][1]
    for name, times in covered.items():
        assert times / 2_000 == pytest.approx(0.95, abs=0.01), name
