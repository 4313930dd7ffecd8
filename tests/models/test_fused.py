"""The fused layers compute what Keras' own layers compute."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tellapart.models.build import build_for_training, copy_weights
from tellapart.models.convnet import convnet
from tellapart.models.fused import FusedBlock, FusedRescaling, softmax
from tellapart.settings import ConvNet

SETTINGS = ConvNet(dropout=0.0, l2=1e-2, batchnorm_momentum=0.9)


def batches(count: int, side: int = 20) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noise with flat areas, where the values in a pooling window are equal."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        images = rng.integers(0, 256, (8, side, side, 3), np.uint8)
        images[:, : side // 2, 3:15] = 255
        made.append((images, np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)]))
    return made


def two_networks(settings: ConvNet = SETTINGS) -> tuple[keras.Model, keras.Model]:
    """Return the fused and the plain network with the same weights, some slopes of normalisation negative."""
    fused, plain = build_for_training(settings, 3, seed=1), convnet(settings, 3, None, seed=2)
    rng = np.random.default_rng(4)
    for block in (1, 2, 3):
        layer = fused.get_layer(f"block{block}")
        assert isinstance(layer, FusedBlock)
        norm = layer.batchnorm
        for variable in (layer.conv.bias, *(() if norm is None else (norm.gamma, norm.beta))):
            variable.assign(variable + rng.normal(0, 1, variable.shape))
        assert norm is None or np.asarray(norm.gamma).min() < 0
    copy_weights(fused, plain)
    return fused, plain


def distance(a: np.ndarray, b: np.ndarray | float = 0.0) -> float:
    """Of two arrays as vectors: a rounding that tips one ReLU or one maximum must not count as much as a wrong sum."""
    return float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)))


@pytest.mark.parametrize(
    "changes", [{}, {"batchnorm": False}, {"width": 0.5}, {"width": 1.3}], ids=["batchnorm", "without", "half", "wide"]
)
@pytest.mark.parametrize("side", [20, 16, 12, 22, 21], ids=lambda side: f"{side}px")
def test_gradients_and_losses_are_those_of_the_plain_layers(side: int, changes: dict):
    """At 20 px every second convolution's sides are odd after pooling; at 21 the plain layers must step in."""
    import tensorflow as tf

    fused, plain = two_networks(SETTINGS.model_copy(update=changes))
    ((images, targets),) = batches(1, side)
    results = []
    for model in (fused, plain):
        with tf.GradientTape() as tape:
            loss = keras.losses.CategoricalCrossentropy()(targets, model(images, training=True))
            loss += sum(model.losses)
        results.append((loss, tape.gradient(loss, [v.value for v in model.trainable_variables])))
    (mine, my_gradients), (theirs, their_gradients) = results
    assert float(mine) == pytest.approx(float(theirs), rel=1e-5)
    for variable, ours, keras_own in zip(plain.trainable_variables, my_gradients, their_gradients, strict=True):
        assert distance(ours, keras_own) < 1e-3 * distance(keras_own), variable.path


@pytest.mark.integration
def test_training_moves_weights_and_running_statistics_alike():
    fused, plain = two_networks()
    start, losses = plain.get_weights(), []
    for model in (fused, plain):
        model.compile(keras.optimizers.SGD(0.05), loss="categorical_crossentropy", jit_compile=False)
        losses.append([float(model.train_on_batch(*batch)) for batch in batches(5)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for ours, keras_own, before in zip(fused.weights, plain.weights, start, strict=True):
        assert distance(ours, keras_own) < 0.05 * distance(keras_own, before), keras_own.path
    moved = np.asarray(plain.get_layer("batchnorm2").moving_variance)
    assert np.abs(moved - 1).max() > 0.1, "five steps moved the statistics, so they were compared"


def test_predictions_are_those_of_the_plain_layers():
    fused, plain = two_networks()
    for block in (1, 2, 3):
        norm, rng = fused.get_layer(f"block{block}").batchnorm, np.random.default_rng(block)
        norm.moving_mean.assign(rng.normal(0, 1, norm.moving_mean.shape))
        norm.moving_variance.assign(rng.uniform(0.5, 2, norm.moving_mean.shape))
    copy_weights(fused, plain)
    images = batches(1)[0][0]
    np.testing.assert_allclose(fused.predict_on_batch(images), plain.predict_on_batch(images), atol=1e-5)


@pytest.mark.integration
def test_half_precision_stays_near_single_precision():
    images, targets = batches(1)[0]
    losses = []
    for precision in ("float32", "mixed_bfloat16"):
        model = build_for_training(SETTINGS, 3, precision=precision, seed=1)
        model.compile(keras.optimizers.SGD(0.05), loss="categorical_crossentropy", jit_compile=False)
        losses.append([float(model.train_on_batch(images, targets)) for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)
    assert losses[0][2] < losses[0][0]


def test_sums_over_a_large_batch_are_exact_to_the_last_digits():
    """oneDNN's FusedBatchNormV3 is wrong by a thousandth here; sums of sums are not."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    raw = rng.normal(5, 0.5, (32, 64, 64, 8)).astype(np.float32)
    layer = FusedBlock(
        keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
        keras.layers.BatchNormalization(momentum=0.0),
        keras.layers.MaxPooling2D(2),
    )
    layer.build((None, 64, 64, 8))
    identity = np.zeros((3, 3, 8, 8), np.float32)
    identity[1, 1] = np.eye(8)
    layer.conv.kernel.assign(identity)
    outputs = np.asarray(layer(tf.constant(raw), training=True))
    exact = np.maximum(raw.astype(np.float64), 0)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(layer.batchnorm.moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(layer.batchnorm.moving_variance, variance, rtol=1e-4)
    expected = (exact - mean) / np.sqrt(variance + 1e-3)
    expected = expected.reshape(32, 32, 2, 32, 2, 8).max((2, 4))
    np.testing.assert_allclose(outputs, expected, atol=1e-3)


def test_a_frozen_normalisation_keeps_its_statistics_as_in_keras():
    fused, plain = two_networks()
    images = batches(1)[0][0]
    fused.get_layer("block2").batchnorm.trainable = False
    plain.get_layer("batchnorm2").trainable = False
    np.testing.assert_allclose(fused(images, training=True), plain(images, training=True), atol=1e-4)
    assert (np.asarray(fused.get_layer("block2").batchnorm.moving_mean) == 0).all()


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_levels_are_looked_up_as_keras_works_them_out(precision: str):
    images = np.random.default_rng(0).permutation(np.arange(5 * 8 * 8 * 3) % 256).astype(np.uint8).reshape(5, 8, 8, 3)
    ours, plain = (made(1 / 127.5, offset=-1.0, dtype=precision) for made in (FusedRescaling, keras.layers.Rescaling))
    assert ours(images).dtype == plain(images).dtype
    np.testing.assert_array_equal(ours(images), plain(images))
    np.testing.assert_array_equal(ours(images.astype(np.float32)), plain(images.astype(np.float32)))


def test_a_network_in_training_looks_levels_up():
    # Keras casts what enters such a layer inside a graph; then nothing is looked up, and the values are the same.
    import tensorflow as tf

    network = two_networks()[0]
    traced = tf.function(lambda images: network(images, training=True))
    graph = traced.get_concrete_function(tf.TensorSpec((2, 16, 16, 3), tf.uint8)).graph
    readers = [node.type for node in graph.get_operations() if tf.uint8 in [tensor.dtype for tensor in node.inputs]]
    assert readers == ["PyFuncStateless"]


def test_probabilities_and_their_loss_are_those_of_keras_softmax():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    logits, targets = (
        tf.constant(rng.normal(0, 30, (8, 5)), tf.float32),
        np.eye(5, dtype=np.float32)[rng.integers(0, 5, 8)],
    )
    found = []
    for activation in (softmax, keras.activations.softmax):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            probabilities = activation(logits)
            loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)(targets, probabilities)
        found.append((probabilities, loss, tape.gradient(loss, logits)))
    for ours, keras_own in zip(*found, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-5, atol=1e-7)
    assert float(found[0][1]) > 20, "clipped probabilities would have a loss of 16 at most"
