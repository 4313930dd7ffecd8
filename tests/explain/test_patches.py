"""Which part of the picture a class hangs on, with networks for which the answer is known."""

from __future__ import annotations

import keras
import numpy as np

from tellapart.explain.maps import blurred
from tellapart.explain.patches import patch_importance


def corner_network() -> keras.Model:
    """Names class 1 by the mean brightness of the upper left quarter of a 16 × 16 picture; nothing else counts."""
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Cropping2D(((0, 8), (0, 8)))(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    dense = keras.layers.Dense(2, activation="softmax")
    model = keras.Model(inputs, dense(x))
    dense.set_weights([np.array([[-3.0, 3.0]] * 3, np.float32), np.array([4.5, -4.5], np.float32)])
    return model


def test_only_the_part_that_the_network_looks_at_counts():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (6, 16, 16, 3), np.uint8)
    targets = np.array([0, 1, 1, 0, 1, 0])
    images[targets == 1, :8, :8] += 190
    model = corner_network()
    importance = patch_importance(model, images, targets, 3, patches=2)
    assert importance.shape == (3, 2, 2)
    covered = images.copy()
    covered[:, :8, :8] = blurred(images)[:, :8, :8]
    before, after = (np.log(model.predict_on_batch(shown))[np.arange(6), targets] for shown in (images, covered))
    for number in (0, 1):
        expected = (before - after)[targets == number].mean()
        np.testing.assert_allclose(importance[number], [[expected, 0], [0, 0]], atol=1e-5)
    assert importance[1, 0, 0] > 0.01, "the blur takes in what is dark around the bright part"
    assert (importance[2] == 0).all(), "a class without photos"
