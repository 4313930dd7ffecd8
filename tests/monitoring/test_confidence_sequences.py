"""Confidence sequences against ville, an independent implementation, and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import ville
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.monitoring.confidence_sequences import (
    asymptotic_sequence,
    betting_sequence,
    sample_ratio_evidence,
    split_effects,
)

SHARES = (0.03, 0.9, 0.07)


def differences(seed: int, count: int, shares: tuple[float, float, float] = SHARES) -> np.ndarray:
    """Return -1.0 where the champion alone is right, 0.0 where both are alike, 1.0 where the challenger alone is."""
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], count, p=shares)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-10.0, 10.0)])
def test_the_betting_sequence_is_villes(bounds: tuple[float, float]):
    values = differences(0, 3000)
    found = betting_sequence(values, bounds, num_candidates=2001)
    expected = ville.BettingCS(bounds=bounds, grid=2001).fit(values)
    np.testing.assert_allclose(found.lower, expected.lower_, atol=1e-12)
    np.testing.assert_allclose(found.upper, expected.upper_, atol=1e-12)
    np.testing.assert_allclose(found.mean, expected.estimate_, atol=1e-12)
    assert found.first_excluding(0.0) == expected.excludes(0.0)


def test_the_asymptotic_sequence_and_the_split_are_villes_but_for_how_they_are_tuned():
    rng = np.random.default_rng(1)
    is_challenger = rng.random(4000) < 0.1
    outcomes = (rng.random(4000) < np.where(is_challenger, 0.96, 0.9)).astype(float)
    found = asymptotic_sequence(split_effects(outcomes, is_challenger, 0.1))
    expected = ville.AsymptoticABTest(propensity=0.1).fit(outcomes, is_challenger.astype(float))
    np.testing.assert_allclose(found.mean, expected.estimate_, atol=1e-12)
    wide, expected_wide = found.upper - found.mean, expected.upper_ - expected.estimate_
    assert np.isinf(wide[:99]).all()
    assert np.isfinite(wide[99:]).all()
    np.testing.assert_allclose(wide[99:], expected_wide[99:], rtol=0.01)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_evidence_against_the_split_is_villes(share: float):
    is_challenger = np.random.default_rng(2).random(2000) < 0.12
    expected = ville.BernoulliTest(share).fit(is_challenger.astype(float))
    for count in (1, 50, 2000):
        found = sample_ratio_evidence(int(is_challenger[:count].sum()), count, share)
        assert found == pytest.approx(expected.log_e_values_[count - 1], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300))
def test_what_was_said_does_not_change_when_more_arrive(seed: int, early: int, more: int):
    values = differences(seed, early + more, (0.1, 0.6, 0.3))
    whole, part = betting_sequence(values, (-1, 1)), betting_sequence(values[:early], (-1, 1))
    for name in ("mean", "lower", "upper"):
        np.testing.assert_allclose(getattr(whole, name)[:early], getattr(part, name), atol=1e-12)
    assert (np.diff(whole.lower) >= 0).all()
    assert (np.diff(whole.upper) <= 0).all()
    assert (whole.lower <= whole.upper).all()


@pytest.mark.slow
def test_of_two_models_that_are_alike_at_most_one_in_twenty_is_ever_called_better():
    """With a look after every label. An ordinary interval, looked at as often, errs several times as often."""
    alarms = peeked = 0
    for seed in range(400):
        values = differences(seed, 1500, (0.05, 0.9, 0.05))
        alarms += betting_sequence(values, (-1, 1), num_candidates=801).first_excluding(0.0) is not None
        count = np.arange(1, 1501)
        mean = values.cumsum() / count
        deviation = np.sqrt(np.maximum((values**2).cumsum() / count - mean**2, 1e-12) / count)
        peeked += bool((np.abs(mean) > 1.96 * deviation)[50:].any())
    assert alarms <= 0.05 * 400
    assert peeked > 0.15 * 400


def test_disagreements_alone_tell_a_better_model_apart():
    """Challenger 96 %, champion 94 %: where both answer alike the difference is 0 without a label."""
    labels = []
    for seed in range(40):
        values = differences(seed, 6000, (0.02, 0.94, 0.04))
        stopped = betting_sequence(values, (-1, 1), num_candidates=1001).first_excluding(0.0)
        labels.append(math.inf if stopped is None else np.abs(values[:stopped]).sum())
    assert np.median(labels) < 150


def test_values_beyond_the_bounds_are_refused():
    with pytest.raises(ValueError, match=r"values from -1 to 2\. Expected -1 to 1"):
        betting_sequence(np.array([-1.0, 2.0]), (-1, 1))
    empty = betting_sequence(np.array([]), (-1, 1))
    assert len(empty.mean) == 0
    assert empty.first_excluding(0.0) is None
