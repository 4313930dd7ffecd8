"""The loss of a student against NumPy, written out."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tellapart.errors import RecipeError
from tellapart.settings import load_recipe
from tellapart.training.distillation import accuracy_of, loss_in_words, loss_of, softened, student_targets

TEACHER = np.array([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]])
STUDENT = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]], np.float32)
NUMBERS = np.array([0, 1])


def recipe(weight: float, temperature: float, smoothing: float = 0.0):
    changes = [f"distill.weight={weight}", f"distill.temperature={temperature}", "distill.teacher=somewhere"]
    return load_recipe(changes=[*changes, f"train.label_smoothing={smoothing}"])


def at(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    logits = np.log(probabilities) / temperature
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
def test_the_loss_is_that_of_hinton(weight: float, temperature: float):
    q, s = at(TEACHER, temperature), at(STUDENT, temperature)
    apart = (q * (np.log(q) - np.log(s))).sum(axis=1)
    labels = 0.9 * np.eye(3)[NUMBERS] + 0.1 / 3
    plain = -(labels * np.log(STUDENT)).sum(axis=1)
    expected = weight * temperature**2 * apart + (1 - weight) * plain
    loss = loss_of(recipe(weight, temperature, 0.1), 3)
    targets = student_targets(NUMBERS, TEACHER, temperature)
    assert np.asarray(loss(keras.ops.array(targets), keras.ops.array(STUDENT))) == pytest.approx(expected, abs=1e-5)


def test_at_temperature_1_it_is_cross_entropy_with_mixed_targets():
    """Up to what no student can change: the teacher's own entropy."""
    targets = student_targets(NUMBERS, TEACHER, 1.0)
    found = loss_of(recipe(0.6, 1.0), 3)(keras.ops.array(targets), keras.ops.array(STUDENT))
    mixed = 0.6 * TEACHER + 0.4 * np.eye(3)[NUMBERS]
    entropy = -(TEACHER * np.log(TEACHER)).sum(axis=1)
    assert np.asarray(found) == pytest.approx(-(mixed * np.log(STUDENT)).sum(axis=1) - 0.6 * entropy, abs=1e-5)


def test_validation_has_no_teacher_and_gets_the_plain_loss():
    labels = np.eye(3, dtype=np.float32)[NUMBERS]
    found = loss_of(recipe(0.7, 2.0, 0.1), 3)(keras.ops.array(labels), keras.ops.array(STUDENT))
    expected = loss_of(load_recipe(changes=["train.label_smoothing=0.1"]), 3)(labels, STUDENT)
    assert np.asarray(found).mean() == pytest.approx(float(expected), abs=1e-6)
    accuracy = accuracy_of(recipe(0.7, 2.0), 3)
    both = student_targets(NUMBERS, TEACHER[::-1], 2.0)
    assert np.asarray(accuracy(keras.ops.array(both), keras.ops.array(STUDENT))).tolist() == [1.0, 1.0]


def test_softening_is_a_softmax_at_that_temperature_and_survives_zeros():
    logits = np.array([[3.0, 1.0, -2.0], [0.0, 0.0, 0.0]])
    plain = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    warm = np.exp(logits / 4) / np.exp(logits / 4).sum(axis=1, keepdims=True)
    assert softened(plain, 4.0) == pytest.approx(warm, abs=1e-6)
    assert np.isfinite(softened(np.array([[1.0, 0.0]]), 2.0)).all()


def test_the_words_say_the_numbers_and_a_head_alone_cannot_be_a_student():
    words = loss_in_words(recipe(0.7, 2.0, 0.05))
    assert words.startswith("loss = 0.7 · 2² · KL(teacher ‖ student), both softened at temperature 2, + 0.3 · cross")
    assert "label smoothing 0.05" in words
    with pytest.raises(RecipeError, match=r"set model\.unfreeze"):
        load_recipe("transfer", ["distill.teacher=somewhere", "model.unfreeze=0", "model.weights=imagenet"])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_that_is_wholly_sure_has_a_finite_loss_and_gradient(temperature: float):
    """Probabilities of 0 have no logarithm, the teacher's no more than the student's: both count as 1e-7."""
    student = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]], np.float32)
    teacher = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], np.float32)
    targets = np.concatenate([np.eye(3, dtype=np.float32)[NUMBERS], teacher], axis=1)
    loss, given = loss_of(recipe(0.6, temperature), 3), tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = loss(tf.constant(targets), given)
    q, p = np.maximum(teacher, 1e-7).astype(np.float64), np.clip(student, 1e-7, 1).astype(np.float64)
    plain = -np.log(p / p.sum(axis=1, keepdims=True))[[0, 1], NUMBERS]
    expected = 0.6 * temperature**2 * (q * (np.log(q) - np.log(at(p, temperature)))).sum(axis=1) + 0.4 * plain
    assert np.asarray(found) == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(tape.gradient(found, given)).all()


def test_a_students_targets_are_its_label_and_a_teacher_whose_shares_add_up_to_one():
    """Tables of predictions are rounded: the teacher's rows need not add up, and may hold zeros."""
    targets = student_targets(np.array([2, 0]), np.array([[0.0, 0.3, 0.6], [0.5, 0.25, 0.25]]), 1.0)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, [[0, 0, 1, 0, 1 / 3, 2 / 3], [1, 0, 0, 0.5, 0.25, 0.25]], atol=1e-6)
    warm = np.array([1, 1e-7**0.25]) / (1 + 1e-7**0.25)  # softened, a zero counts as 1e-7: one part in 57
    np.testing.assert_allclose(student_targets(np.array([0]), np.array([[1.0, 0.0]]), 4.0), [[1, 0, *warm]], atol=1e-6)


def test_the_words_name_no_smoothing_where_there_is_none():
    assert loss_in_words(recipe(0.25, 1.5)).endswith("at temperature 1.5, + 0.75 · cross-entropy(label, student)")
