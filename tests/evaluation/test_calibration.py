"""Calibration, temperature, conformal sets and abstention, against scikit-learn, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from tellapart.evaluation.calibration import (
    abstention,
    at_temperature,
    calibration,
    conformal_sets,
    conformal_threshold,
    fit_temperature,
)


def honest(count: int, classes: int = 4, seed: int = 0, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels from the probabilities themselves, then report them sharpened: 1 is perfectly calibrated."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (probabilities.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(0, classes - 1)
    return true, at_temperature(probabilities, 1 / sharpness)


def test_losses_are_scikit_learns():
    true, probabilities = honest(500)
    found = calibration(true, probabilities)
    assert found.log_loss == pytest.approx(log_loss(true, probabilities), abs=1e-9)
    one_hot = np.eye(4)[true]
    by_class = sum(brier_score_loss(one_hot[:, i], probabilities[:, i]) for i in range(4))
    assert found.brier == pytest.approx(by_class, abs=1e-9)
    for name in ("ece", "brier", "log_loss"):
        assert found.intervals[name].low < found.intervals[name].high


def test_calibration_error_by_hand():
    """Two bins are filled: two images at 0.9 of which one is right, two at 0.6 that are both right."""
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    found = calibration(np.array([0, 0, 0, 1]), probabilities, num_bins=10)
    assert found.ece_plain == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1 - 0.6))
    assert [(part.num_images, part.accuracy) for part in found.bins if part.num_images] == [(2, 1.0), (2, 0.5)]
    assert (found.bins[5].low, found.bins[5].high) == pytest.approx((0.5, 0.6))
    assert np.isnan(found.bins[0].accuracy)


def test_temperature_undoes_overconfidence():
    true, probabilities = honest(5000, sharpness=2.5, seed=1)
    temperature = fit_temperature(true, probabilities)
    assert temperature == pytest.approx(2.5, rel=0.05)
    mended = at_temperature(probabilities, temperature)
    assert calibration(true, mended).ece < 0.3 * calibration(true, probabilities).ece
    np.testing.assert_array_equal(mended.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(mended.sum(axis=1), 1)


def test_certain_mistakes_have_a_finite_temperature():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert 1 < fit_temperature(np.array([0, 0, 1]), probabilities) <= 20
    assert np.isfinite(calibration(np.array([0, 0, 1]), probabilities).log_loss)


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_conformal_sets_hold_the_truth_as_often_as_promised(coverage):
    """Over many draws of validation and test the mean coverage is the stated one or a little more."""
    covered, sizes = [], []
    for seed in range(60):
        true, probabilities = honest(600, seed=seed)
        threshold = conformal_threshold(true[:300], probabilities[:300], coverage)
        sets = conformal_sets(probabilities[300:], threshold)
        covered.append(sets[np.arange(300), true[300:]].mean())
        sizes.append(sets.sum(axis=1).mean())
    assert coverage - 0.01 < np.mean(covered) < coverage + 1 / 301 + 0.01
    assert 1 < np.mean(sizes) < 4


def test_too_few_images_give_sets_of_all_classes():
    true, probabilities = honest(5)
    assert conformal_threshold(true, probabilities, 0.95) == 0.0


def test_abstention_by_hand():
    """Surest first: right, right, wrong, right."""
    probabilities = np.array([[0.95, 0.05], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    found = abstention(np.array([0, 1, 1, 0]), probabilities)
    np.testing.assert_allclose(found.answered, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.accuracy, [1, 1, 2 / 3, 3 / 4])
    np.testing.assert_allclose(found.threshold, [0.95, 0.8, 0.7, 0.6])
    assert (found.low <= found.accuracy).all()
    assert (found.accuracy <= found.high).all()
