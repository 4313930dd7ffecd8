"""Ranking metrics against scikit-learn to nine digits; the intervals' coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve, top_k_accuracy_score

from tellapart.evaluation.ranking import curves, macro_average, roc_auc, top_k_accuracy

CLASSES = ["ant", "bee", "cat"]


def example(count: int = 300, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, count)
    probabilities = rng.dirichlet(np.ones(3), count) + 0.4 * np.eye(3)[true]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return true, probabilities.round(1) if ties else probabilities


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_scikit_learns(ties):
    true, probabilities = example(ties=ties)
    found = curves(true, probabilities, CLASSES)
    for index, curve in enumerate(found):
        positive, score = true == index, probabilities[:, index]
        assert curve.roc_auc == pytest.approx(roc_auc_score(positive, score), abs=1e-9)
        assert curve.average_precision == pytest.approx(average_precision_score(positive, score), abs=1e-9)
        false_rate, true_rate, _ = roc_curve(positive, score, drop_intermediate=False)
        np.testing.assert_allclose(curve.false_positive_rate, false_rate, atol=1e-12)
        np.testing.assert_allclose(curve.true_positive_rate, true_rate, atol=1e-12)
        for name in ("roc_auc", "average_precision"):
            assert curve.intervals[name].low < getattr(curve, name) < curve.intervals[name].high
    assert macro_average(found)["roc_auc"] == pytest.approx(np.mean([curve.roc_auc for curve in found]))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_is_scikit_learns(k):
    true, probabilities = example()
    share, interval = top_k_accuracy(true, probabilities, k)
    # scikit-learn refuses k = number of classes
    expected = 1.0 if k == 3 else top_k_accuracy_score(true, probabilities, k=k)
    assert share == pytest.approx(expected, abs=1e-9)
    assert interval.low < share <= interval.high


def test_a_class_that_does_not_occur_has_no_curve_and_no_warning():
    true, probabilities = example()
    found = curves(np.where(true == 2, 1, true), probabilities, CLASSES)
    assert np.isnan(found[2].roc_auc)
    assert len(found[2].precision) == 0
    assert macro_average(found)["average_precision"] == pytest.approx(np.mean([c.average_precision for c in found[:2]]))


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_interval_of_the_area_covers_the_truth(share):
    """Scores from two normal distributions: the true area is Φ(d / √2)."""
    from scipy.stats import norm

    rng, inside, tries = np.random.default_rng(1), 0, 1500
    truth = norm.cdf(1.5 / np.sqrt(2))
    for _ in range(tries):
        positive = np.arange(200) < 200 * share
        area, interval = roc_auc(positive, rng.normal(1.5 * positive, 1))
        inside += interval.low <= truth <= interval.high
        assert interval.low <= area <= interval.high
    assert inside / tries == pytest.approx(0.95, abs=0.01)


def test_perfect_order_still_has_a_width():
    area, interval = roc_auc(np.array([True, True, False, False]), np.array([4.0, 3, 2, 1]))
    assert area == 1
    assert interval.low < 0.6
    assert interval.high == 1
