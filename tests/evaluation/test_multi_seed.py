"""Intervals over seeds and photos, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tellapart.evaluation.multi_seed import accuracy_over_seeds, compare_over_seeds


def test_two_seeds_and_three_photos_by_hand():
    first = np.array([[0, 0, 0], [0, 0, 1]], bool)
    second = np.array([[1, 0, 0], [1, 1, 0]], bool)
    # Differences: 1 0 0 / 1 1 -1. Mean 1/3; both rows have the mean 1/3; columns 1, 1/2, -1/2.
    # Photos: 2 · var(1, .5, -.5) = 2 · 7/12 = 7/6. Seeds: 0. Both: the rest is ±(0, .5, -.5): 1 / 2 = .5.
    # 0 + 7/6 - 1/2 is less than the photos alone, so those remain: error = sqrt(7/6 / 6), two degrees of freedom.
    found = compare_over_seeds(first, second)
    error = np.sqrt(7 / 36)
    assert found.value == pytest.approx(1 / 3)
    assert found.interval.high - found.value == pytest.approx(4.302653 * error, rel=1e-5)
    assert found.p_value == pytest.approx(stats.ttest_1samp([1, 0.5, -0.5], 0).pvalue)


def test_one_seed_is_the_paired_t_test_over_photos():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 1, 400)) < np.array([0.7, 0.8])[:, None, None]
    theirs = stats.ttest_rel(second[0].astype(float), first[0].astype(float))
    found, interval = compare_over_seeds(first, second), theirs.confidence_interval()
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("of_seeds", "of_photos"), [(0.0, 1.0), (0.05, 1.0), (0.1, 1.0)])
def test_95_of_100_intervals_hold_the_truth(of_seeds: float, of_photos: float):
    """A photo is right where seed + photo + noise is below a line: the truth is known. The lines of two ways differ."""
    rng = np.random.default_rng(1)
    lines, seeds, photos, tries = (1.0, 1.1), 3, 300, 1500
    truths = [stats.norm.cdf(line / np.sqrt(1 + of_seeds**2 + of_photos**2)) for line in lines]
    held = np.zeros(2)  # seeds differ by 0, 1 and 2 points of accuracy (one standard deviation)
    for _ in range(tries):
        hard = of_photos * rng.normal(size=photos)
        first, second = (
            hard + of_seeds * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, photos)) < line for line in lines
        )
        alone, gained = accuracy_over_seeds(first).interval, compare_over_seeds(first, second).interval
        held += alone.low <= truths[0] <= alone.high, gained.low <= truths[1] - truths[0] <= gained.high
    assert (held / tries > 0.925).all()
    assert (held / tries < 0.985).all()


def test_twins_differ_by_nothing_and_other_shapes_are_refused():
    right = np.random.default_rng(2).random((3, 50)) < 0.9
    found = compare_over_seeds(right, right)
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.interval.low < 0 < found.interval.high
    with pytest.raises(ValueError, match=r"got \(3, 50\) and \(2, 50\)"):
        compare_over_seeds(right, right[:2])


def test_copies_of_photos_count_once_and_single_photos_as_before():
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 3, 100)) < np.array([0.8, 0.85])[:, None, None]
    groups, four = np.repeat(np.arange(100), 4), [np.repeat(each, 4, axis=1) for each in (first, second)]
    plain, copied = compare_over_seeds(first, second), compare_over_seeds(*four, groups)
    assert compare_over_seeds(first, second, np.arange(100)) == plain
    assert copied.value == pytest.approx(plain.value)
    assert copied.p_value == pytest.approx(plain.p_value)
    assert (copied.interval.low, copied.interval.high) == pytest.approx((plain.interval.low, plain.interval.high))
    alone = accuracy_over_seeds(four[0][:1]).interval
    grouped = accuracy_over_seeds(four[0][:1], groups).interval
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
    assert accuracy_over_seeds(first[:, :5], np.zeros(5, int)).interval.low == 0, "one group says nothing of others"


def test_95_of_100_intervals_hold_the_truth_where_photos_stand_in_groups():
    rng, held, tries = np.random.default_rng(5), 0, 600
    for _ in range(tries):
        groups = np.repeat(np.arange(80), rng.choice([1, 2, 6], 80))
        hard, seeds = rng.normal(size=80)[groups], 0.05 * rng.normal(size=(3, 1))
        right = hard + seeds + rng.normal(size=(3, len(groups))) < 1
        ends = accuracy_over_seeds(right, groups).interval
        held += ends.low <= stats.norm.cdf(1 / np.sqrt(2 + 0.05**2)) <= ends.high
    assert held / tries == pytest.approx(0.95, abs=0.03)
