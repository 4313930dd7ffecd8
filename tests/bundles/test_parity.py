"""The parity gate: what it lets through and what it refuses, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from tellapart.bundles.parity import EXACT, REDUCED, no_worse, parity
from tellapart.evaluation.paired import difference_interval


def rows(count: int, *, sure: float = 0.9) -> np.ndarray:
    """Probabilities of three classes, in turn."""
    table = np.full((count, 3), (1 - sure) / 2, np.float32)
    table[np.arange(count), np.arange(count) % 3] = sure
    return table


def flipped(table: np.ndarray, count: int) -> np.ndarray:
    """The first so many rows name another class."""
    found = table.copy()
    found[:count] = found[:count, ::-1][:, [1, 2, 0]]
    return found


def test_equal_probabilities_pass():
    proof = parity(rows(1000), rows(1000) + np.float32(5e-4), None, EXACT)
    assert proof.passed
    assert proof.agreement == 1
    assert proof.largest_difference == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize(("wrong", "passed"), [(1, True), (2, False)])
def test_at_full_precision_one_in_a_thousand_may_differ_if_it_is_a_tie(wrong: int, passed: bool):
    keras = rows(1000)
    keras[:wrong] = [0.3334, 0.3333, 0.3333]
    found = keras.copy()
    found[:wrong] = [0.3333, 0.3334, 0.3333]
    proof = parity(keras, found, None, EXACT)
    assert proof.passed is passed
    assert proof.agreement == 1 - wrong / 1000


def test_a_larger_difference_is_refused_though_the_classes_agree():
    proof = parity(rows(10), rows(10, sure=0.88), None, EXACT)
    assert not proof.passed
    assert "a probability differs by 0.02; 0.001 is allowed" in proof.reason
    assert parity(rows(10), rows(10, sure=0.88), None, REDUCED).passed


def test_in_reduced_precision_only_near_ties_may_flip():
    keras = rows(1000)
    assert (
        "disagrees where Keras' two best classes are 0.85 apart"
        in parity(keras, flipped(keras, 1), None, REDUCED).reason
    )
    keras[:5] = [0.36, 0.34, 0.30]
    found = keras.copy()
    found[:5] = [0.34, 0.36, 0.30]
    assert parity(keras, found, None, REDUCED).passed
    keras[:6], found[:6] = [0.36, 0.34, 0.30], [0.34, 0.36, 0.30]
    assert "99.5% are needed" in parity(keras, found, None, REDUCED).reason


def test_a_loss_of_accuracy_that_is_detectable_is_refused():
    keras = rows(2000)
    keras[:8] = [0.36, 0.34, 0.30]
    found = keras.copy()
    found[:8] = [0.34, 0.36, 0.30]
    true = keras.argmax(axis=1)
    proof = parity(keras, found, true, REDUCED)
    assert not proof.passed
    assert proof.p_value == pytest.approx(binomtest(8, 8, 0.5, alternative="greater").pvalue)
    assert "less accurate" in proof.reason
    true[:4] = 1  # of eight changes four are for the better
    assert parity(keras, found, true, REDUCED).passed


def test_what_is_not_finite_or_of_another_shape_is_refused():
    found = rows(10)
    found[3, 1] = np.nan
    assert parity(rows(10), found, None, REDUCED).reason == "not finite"
    assert "it gives (10, 2), Keras (10, 3)" in parity(rows(10), rows(10)[:, :2], None, EXACT).reason


def test_other_weights_must_be_shown_to_be_no_worse_by_more_than_a_margin():
    keras = rows(2000)
    true = keras.argmax(axis=1)
    found = keras.copy()
    found[:10] = np.roll(found[:10], 1, axis=1)
    proof = parity(keras, found, true, no_worse(0.02))
    assert proof.passed
    assert (proof.accuracy_of_keras, proof.accuracy) == (1, 0.995)
    most = difference_interval(1990, 0, 10, 0).high
    assert 0.005 < most < 0.01
    refused = parity(keras, found, true, no_worse(most - 1e-4))
    assert not refused.passed
    assert f"may be less accurate by {most:.2%}" in refused.reason
    assert parity(keras, found, true, no_worse(most + 1e-4)).passed
    assert "accuracy is not known" in parity(keras, found, None, no_worse(0.02)).reason
    assert not parity(keras, found, true, EXACT).passed
