"""Rare classes: the logits' shift by hand, and the choice of how far to go."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score

from tellapart.evaluation.balance import STRENGTHS, choose_strength, shift_of, shifted
from tellapart.evaluation.calibration import at_temperature
from tellapart.models.temperature import with_temperature


def test_all_the_way_takes_the_shares_out_of_the_probabilities():
    counts = np.array([900, 90, 10])
    said = np.array([[0.9, 0.09, 0.01]])  # a network that knows the shares and nothing else
    np.testing.assert_allclose(shifted(said, shift_of(counts, 1.0)), np.full((1, 3), 1 / 3), rtol=1e-9)
    np.testing.assert_allclose(shifted(said, shift_of(counts, 0.0)), said, rtol=1e-9)
    assert shift_of(counts, 0.5).sum() == pytest.approx(0.0)


def long_tailed(counts: np.ndarray, num_images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return classes drawn as in training, and Bayes' probabilities of a noisy look at them."""
    shares = counts / counts.sum()
    true = rng.choice(len(counts), num_images, p=shares)
    look = rng.normal(np.eye(len(counts))[true] * 2.0, 1.0)
    said = shares * np.exp(2.0 * look)
    return true, said / said.sum(axis=1, keepdims=True)


def test_the_strength_with_the_best_macro_f1_on_validation_is_taken():
    counts, rng = np.array([2000, 300, 40]), np.random.default_rng(0)
    true, said = long_tailed(counts, 4000, rng)
    chosen = choose_strength(true, said, counts)
    scores = {
        strength: f1_score(true, shifted(said, shift_of(counts, strength)).argmax(axis=1), average="macro")
        for strength in STRENGTHS
    }
    assert scores[chosen] > scores[0.0] + 0.005
    assert scores[chosen] >= max(scores.values()) - 0.01
    new_true, new_said = long_tailed(counts, 20_000, rng)
    after = f1_score(new_true, shifted(new_said, shift_of(counts, chosen)).argmax(axis=1), average="macro")
    assert after > f1_score(new_true, new_said.argmax(axis=1), average="macro") + 0.005


def test_classes_of_nearly_one_size_are_left_alone():
    counts, rng = np.array([100, 80, 50]), np.random.default_rng(0)
    true, said = long_tailed(counts, 500, rng)
    assert choose_strength(true, said, counts) == 0.0


def test_a_network_that_was_moved_says_what_the_arithmetic_says():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax", name="probabilities")])
    given, counts = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), np.array([900, 90, 10])
    said = model.predict_on_batch(given).astype(np.float64)
    moved = with_temperature(model, 2.0, shift_of(counts, 0.75)).predict_on_batch(given)
    np.testing.assert_allclose(moved, at_temperature(shifted(said, shift_of(counts, 0.75)), 2.0), rtol=1e-4)
