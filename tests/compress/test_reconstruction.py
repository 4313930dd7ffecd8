"""Fewer channels to read: weights that make of them what was made of all, and the numbers that they come from."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tellapart.compress.reconstruction import patches, reconstructed
from tellapart.models.channels import channels_of

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (24, 12, 12, 3), np.uint8)


def network(reader: keras.layers.Layer) -> keras.Model:
    """Sixteen channels of which the last eight are mixtures of the first, and a layer that reads them."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(16, 3, padding="same", name="maker")(keras.layers.Rescaling(1 / 255)(image))
    if isinstance(reader, keras.layers.Dense):
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = reader(x)
    else:
        x = keras.layers.GlobalAveragePooling2D()(reader(x))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="probabilities")(x))
    maker = model.get_layer("maker")
    kernel, bias = maker.get_weights()
    mixture = RNG.normal(size=(8, 8)).astype(np.float32)
    kernel[..., 8:], bias[8:] = kernel[..., :8] @ mixture, bias[:8] @ mixture + 0.5
    maker.set_weights([kernel, bias])
    return model


READERS = {
    "one by one": lambda: keras.layers.Conv2D(16, 1, name="reader"),
    "strided": lambda: keras.layers.Conv2D(16, 3, strides=2, padding="valid", name="reader"),
    "dilated": lambda: keras.layers.Conv2D(16, 3, dilation_rate=2, padding="valid", name="reader"),
    "dense": lambda: keras.layers.Dense(16, name="reader"),
}


@pytest.mark.parametrize("name", READERS)
def test_what_left_is_had_from_what_stays(name: str):
    model = network(READERS[name]())
    channels, keep = channels_of(model, 12), {"maker": np.arange(8)}
    expected = np.asarray(model(PICTURES))
    narrow = channels.narrowed(model, {"maker": 8})
    apart = []
    for instead in ({}, reconstructed(model, channels, keep, [PICTURES[:12], PICTURES[12:]])):
        channels.copy_kept(model, narrow, keep, instead)
        apart.append(np.abs(np.asarray(narrow(PICTURES)) - expected).max())
    assert apart[0] > 0.02, "without it something is missing"
    assert apart[1] < apart[0] / 10


@pytest.mark.parametrize("name", READERS)
def test_the_kernel_times_what_it_is_multiplied_with_is_what_the_layer_makes(name: str):
    layer = READERS[name]()
    inputs = RNG.normal(size=(2, 7) if name == "dense" else (2, 9, 9, 7)).astype(np.float32)
    made = np.asarray(layer(inputs))
    kernel, bias = layer.get_weights()
    seen = patches(layer, inputs)
    np.testing.assert_allclose(seen @ kernel.reshape(seen.shape[-1], -1) + bias, made, atol=1e-5)


def test_a_layer_with_too_many_inputs_keeps_its_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tellapart.compress.reconstruction._MOST_INPUTS", 15)
    model = network(READERS["one by one"]())
    assert reconstructed(model, channels_of(model, 12), {"maker": np.arange(8)}, [PICTURES]) == {}
