"""The loss of a student that learns what a teacher says, beside the labels. Knows nothing about who the teacher is.

Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. The teacher is fixed: it saw
each training photo once, as it is; the student sees it augmented, and mixed targets are mixed in both halves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.settings import Recipe

_TINY = 1e-7
"""Probabilities are kept this far from 0 before a logarithm is taken, as in Keras' cross-entropy."""

Loss = Callable[[Any, Any], Any]


def softened(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float32]:
    """Return what a softmax at `temperature` would have made of the same logits, (num_images, num_classes)."""
    # p^(1/T), normalised, is softmax(logits / T). Logits are not needed, which tables of predictions do not hold.
    powers = np.maximum(probabilities, _TINY) ** (1 / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def student_targets(
    numbers: NDArray[np.int64], teacher: NDArray[np.float64], temperature: float
) -> NDArray[np.float32]:
    """Return rows of the one-hot label and then of the softened teacher: (num_images, 2 * num_classes) float32.

    Args:
        numbers: (num_images,) class numbers.
        teacher: (num_images, num_classes), what the teacher said of these images.
        temperature: of the loss.
    """
    labels = np.eye(teacher.shape[1], dtype=np.float32)[numbers]
    return np.concatenate([labels, softened(teacher, temperature)], axis=1)


def loss_of(recipe: Recipe, num_classes: int) -> Any:
    """Return the loss that the recipe asks for, as `keras.Model.compile` takes it.

    Without a teacher it is cross-entropy with label smoothing. With one, for the student's probabilities s, the
    teacher's q and the label y, where index T means softened at the temperature T, and w is the teacher's weight:

        w · T² · KL(q_T ‖ s_T) + (1 - w) · cross-entropy(y, s)

    T² keeps the sizes of the gradients of both parts alike. Batches without a teacher's half, those of validation, get
    the plain cross-entropy, so that students and others are told apart by the same number.
    """
    smoothing, settings = recipe.train.label_smoothing, recipe.distill
    if not settings.teacher:
        return keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    weight, temperature = settings.weight, settings.temperature

    def distillation(targets: Any, probabilities: Any) -> Any:
        """Map (batch, num_classes) or twice as many columns, and (batch, num_classes), to (batch,) losses."""
        ops = keras.ops
        labels = targets[:, :num_classes]
        plain = keras.losses.categorical_crossentropy(labels, probabilities, label_smoothing=smoothing)
        # The width is known when the function is traced, so this is no branch in the compiled step.
        if targets.shape[-1] == num_classes:
            return plain
        teacher = ops.maximum(targets[:, num_classes:], _TINY)
        # Logarithms of probabilities are logits up to a constant, which a softmax ignores. Clipped, or the gradient of
        # log(0) would be infinite.
        student = ops.log_softmax(ops.log(ops.clip(probabilities, _TINY, 1.0)) / temperature, axis=-1)
        kl_divergence = ops.sum(teacher * (ops.log(teacher) - student), axis=-1)
        return weight * temperature**2 * kl_divergence + (1 - weight) * plain

    return distillation


def accuracy_of(recipe: Recipe, num_classes: int) -> Any:
    """Return the accuracy by the labels, whatever else the targets hold, as `keras.Model.compile` takes it."""
    if not recipe.distill.teacher:
        return "accuracy"

    # Keras names the metric after this function: the history, its picture and the progress line look for "accuracy".
    def accuracy(targets: Any, probabilities: Any) -> Any:
        return keras.metrics.categorical_accuracy(targets[:, :num_classes], probabilities)

    return accuracy


def loss_in_words(recipe: Recipe) -> str:
    """Return the loss of a student in one line."""
    settings, smoothing = recipe.distill, recipe.train.label_smoothing
    smoothed = f", label smoothing {smoothing:g}" if smoothing else ""
    return (
        f"loss = {settings.weight:g} · {settings.temperature:g}² · KL(teacher ‖ student), both softened at temperature "
        f"{settings.temperature:g}, + {1 - settings.weight:g} · cross-entropy(label, student{smoothed})"
    )
