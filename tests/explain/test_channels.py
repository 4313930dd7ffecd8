"""Channels of a network in which one channel carries each class, against the same sums in NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from tellapart.explain.channels import channel_importance

PX = 12
KERNELS = np.array([[0, 1, 0, 1 / 3], [0, 0, 1, 1 / 3], [1, 0, 0, 1 / 3]], np.float32)
"""From red, green and blue to four channels: blue, red, green and grey."""
WEIGHTS = np.array([[0, 0, 9, 0], [9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0]], np.float32)
"""From the channels to the classes red, green, blue and one of which there are no photos; grey says nothing."""
CARRIES = {0: 1, 1: 2, 2: 0}
"""Class → the channel that carries it."""


def network() -> keras.Model:
    inputs = keras.Input((PX, PX, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(3, 1, use_bias=False, name="copy")(x)
    x = keras.layers.Conv2D(4, 1, use_bias=False, activation="relu", name="colours")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, use_bias=False, activation="softmax", name="classes")(x))
    model.get_layer("copy").set_weights([np.eye(3, dtype=np.float32)[None, None]])
    model.get_layer("colours").set_weights([KERNELS[None, None]])
    model.get_layer("classes").set_weights([WEIGHTS])
    return model


def coloured(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures with noise that have more of the colour of their class, and the classes 0, 1, 2, 0, 1, …"""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (count, PX, PX, 3)).astype(np.uint8)
    targets = np.arange(count) % 3
    for number, target in enumerate(targets):
        images[number, ..., target] += np.uint8(rng.integers(20, 130))
    return images, targets


def forgotten(pooled: np.ndarray, weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return (num_channels, num_classes): how much log-probability goes with each channel, in NumPy."""
    own = np.arange(len(pooled)), targets
    before = log_softmax(pooled @ weights, axis=1)[own]
    result = np.zeros((pooled.shape[1], weights.shape[1]))
    for channel in range(pooled.shape[1]):
        silenced = pooled.copy()
        silenced[:, channel] = pooled[:, channel].mean()
        fall = before - log_softmax(silenced @ weights, axis=1)[own]
        for number in np.unique(targets):
            result[channel, number] = fall[targets == number].mean()
    return result


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


def test_silencing_names_the_channel_that_carries_each_class(model):
    images, targets = coloured(40)  # more than are computed at once
    found = channel_importance(model, images, targets, 4)
    assert found.layer == "colours", "the last one with feature maps"
    assert (found.importance.shape, found.importance.dtype) == ((4, 4), np.float32)
    assert {number: int(found.importance[:, number].argmax()) for number in range(3)} == CARRIES
    pooled = images.mean(axis=(1, 2)) / 255 @ KERNELS
    np.testing.assert_allclose(found.importance, forgotten(pooled, WEIGHTS, targets), atol=1e-4)
    np.testing.assert_allclose(found.importance[3], 0, atol=1e-6, err_msg="nothing hangs on grey")
    assert (found.importance[:, 3] == 0).all(), "a class without photos"


def test_the_photos_that_excite_a_channel_most_come_first(model):
    images, targets = coloured(9)
    found = channel_importance(model, images, targets, 4, top=4)
    expected = np.argsort(-(images.mean(axis=(1, 2)) / 255 @ KERNELS), axis=0)[:4].T
    np.testing.assert_array_equal(found.strongest, expected)
    for number, channel in CARRIES.items():
        assert (targets[found.strongest[channel, :3]] == number).all()
    few = channel_importance(model, images[:2], targets[:2], 4, top=6)
    assert few.strongest.shape == (4, 2), "no more than there are"


def test_an_earlier_layer_can_be_asked(model):
    """Its three channels are red, green and blue: what the later ones make of them is part of the way."""
    images, targets = coloured(12)
    found = channel_importance(model, images, targets, 4, layer=model.get_layer("copy"))
    assert found.layer == "copy"
    expected = forgotten(images.mean(axis=(1, 2)) / 255, KERNELS @ WEIGHTS, targets)
    np.testing.assert_allclose(found.importance, expected, atol=1e-4)
    assert found.importance[:, :3].argmax(axis=0).tolist() == [0, 1, 2]
