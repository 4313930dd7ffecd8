"""A network that is trained with rounding is nearer to itself when it is rounded."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tellapart.models.build import build
from tellapart.models.layers import layers_of
from tellapart.settings import Backbone, ConvNet
from tellapart.shipping.quantize import scales_without_overflow
from tellapart.shipping.rounding import RoundedActivation, _rounded, _rounded_kernel, folded, trained_for_int8

pytestmark = [pytest.mark.integration, pytest.mark.slow]
IMAGE_PX = 32


def network(settings: ConvNet | Backbone) -> keras.Model:
    """Build a network whose normalisations differ from channel to channel, as after a training."""
    keras.utils.set_random_seed(0)
    model = build(settings, 5, IMAGE_PX)
    random = np.random.default_rng(0)
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            spread = random.uniform(0.3, 2, gamma.shape)
            layer.set_weights(
                [gamma * spread, beta + random.normal(0, 0.1, beta.shape), mean + 0.05, variance * spread]
            )
    return model


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    small = np.random.default_rng(1).integers(0, 256, (64, 4, 4, 3)).astype(np.float32)
    return keras.ops.convert_to_numpy(keras.ops.image.resize(small, (IMAGE_PX, IMAGE_PX))).astype(np.uint8)


@pytest.mark.parametrize(
    ("settings", "left"), [(ConvNet(), 3), (Backbone(name="mobilenet_v2"), 0)], ids=["convnet", "mobilenet_v2"]
)
def test_folding_changes_nothing_and_leaves_those_that_follow_a_relu(
    settings: ConvNet | Backbone, left: int, pictures: np.ndarray
):
    model = network(settings)
    plain = folded(model)
    np.testing.assert_allclose(plain.predict_on_batch(pictures), model.predict_on_batch(pictures), atol=1e-5)
    assert sum(isinstance(layer, keras.layers.BatchNormalization) for layer in layers_of(plain)) == left


def test_kernels_and_activations_have_so_many_levels(pictures: np.ndarray):
    model = folded(network(ConvNet()))
    student = _rounded(model)
    rounded = [layer for layer in layers_of(student) if isinstance(layer, RoundedActivation)]
    assert [layer.name for layer in rounded] == [
        "normalise_rounded", "conv1_rounded", "batchnorm1_rounded", "conv2_rounded", "batchnorm2_rounded",
        "conv3_rounded", "average_rounded",
    ]  # fmt: skip
    for layer in rounded:
        layer.is_watching = True
    watched = np.asarray(student(pictures, training=False))
    for layer in rounded:
        layer.is_watching = False
    # While it watches only kernels are rounded: nearly the same.
    np.testing.assert_allclose(watched, model.predict_on_batch(pictures), atol=0.02)
    outputs = keras.Model(student.inputs, student.get_layer("conv1_rounded").output).predict_on_batch(pictures)
    assert 50 < len(np.unique(outputs)) <= 256


def test_kernels_are_rounded_as_the_file_will_hold_them():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 16, 8)).astype(np.float32)
    scales = scales_without_overflow(kernel.transpose(3, 2, 0, 1))
    found = np.asarray(_rounded_kernel(keras.ops.convert_to_tensor(kernel), 3))
    np.testing.assert_allclose(found, np.rint(kernel / scales) * scales, atol=1e-6)


def test_training_brings_the_rounded_network_nearer(pictures: np.ndarray):
    model = folded(network(ConvNet()))
    head = model.get_layer("probabilities")
    head.set_weights([30 * weights for weights in head.get_weights()])  # one that is sure of what it says

    def distance(weights_of: keras.Model) -> float:
        student = _rounded(weights_of)
        rounded = [layer for layer in layers_of(student) if isinstance(layer, RoundedActivation)]
        for layer in rounded:
            layer.is_watching = True
        student(pictures, training=False)
        for layer in rounded:
            layer.is_watching = False
        found = np.asarray(student(pictures, training=False))
        return float(np.abs(found - model.predict_on_batch(pictures)).mean())

    told: list[tuple[int, int]] = []
    trained = trained_for_int8(
        model, lambda: iter(np.split(pictures, 4)), pictures, epochs=10, num_batches=4,
        progress=lambda _, done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[-1] == (40, 40)
    assert distance(trained) < 0.9 * distance(model)
    assert [layer.name for layer in trained.layers] == [layer.name for layer in model.layers]
    np.testing.assert_allclose(trained.predict_on_batch(pictures), model.predict_on_batch(pictures), atol=0.1)
