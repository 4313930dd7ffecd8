"""The fused layers compute what Keras' own layers compute."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tellapart.models.build import build_for_training, copy_weights
from tellapart.models.convnet import convnet
from tellapart.models.fused import FusedBatchNormalization, FusedConv2D
from tellapart.settings import Model

SETTINGS = Model(dropout=0.0, l2=1e-2, batchnorm_momentum=0.9)


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 256, (8, 20, 20, 3), np.uint8), np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)])
        for _ in range(count)
    ]


def two_networks() -> tuple[keras.Model, keras.Model]:
    fused, plain = build_for_training(SETTINGS, 3, seed=1), convnet(SETTINGS, 3, None, seed=2)
    assert isinstance(fused.get_layer("conv1"), FusedConv2D)
    assert isinstance(fused.get_layer("batchnorm1"), FusedBatchNormalization)
    copy_weights(fused, plain)
    return fused, plain


def test_gradients_and_losses_are_those_of_the_plain_layers():
    import tensorflow as tf

    fused, plain = two_networks()
    ((images, targets),) = batches(1)
    results = []
    for model in (fused, plain):
        with tf.GradientTape() as tape:
            loss = keras.losses.CategoricalCrossentropy()(targets, model(images, training=True))
            loss += sum(model.losses)
        results.append((loss, tape.gradient(loss, [v.value for v in model.trainable_variables])))
    (mine, my_gradients), (theirs, their_gradients) = results
    assert float(mine) == pytest.approx(float(theirs), rel=1e-6)
    for variable, ours, keras_own in zip(plain.trainable_variables, my_gradients, their_gradients, strict=True):
        scale = np.abs(keras_own).max()
        np.testing.assert_allclose(ours, keras_own, atol=1e-4 * scale, err_msg=variable.path)


@pytest.mark.integration
def test_training_moves_weights_and_running_statistics_alike():
    fused, plain = two_networks()
    losses = []
    for model in (fused, plain):
        model.compile(keras.optimizers.SGD(0.05), loss="categorical_crossentropy", jit_compile=False)
        losses.append([float(model.train_on_batch(*batch)) for batch in batches(5)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for ours, keras_own in zip(fused.weights, plain.weights, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-4, atol=1e-5, err_msg=keras_own.path)
    moved = np.asarray(plain.get_layer("batchnorm2").moving_variance)
    assert np.abs(moved - 1).max() > 0.1, "five steps moved the statistics, so they were compared"
    images = batches(1)[0][0]
    np.testing.assert_allclose(fused.predict_on_batch(images), plain.predict_on_batch(images), atol=1e-5)


def test_a_frozen_normalisation_keeps_its_statistics_as_in_keras():
    images = np.random.default_rng(3).normal(3, 2, (4, 6, 6, 5)).astype(np.float32)
    for kind in (FusedBatchNormalization, keras.layers.BatchNormalization):
        layer = kind(momentum=0.5)
        layer.build(images.shape)
        layer.trainable = False
        np.testing.assert_allclose(layer(images, training=True), images / np.sqrt(1.001), rtol=1e-5)
        assert (np.asarray(layer.moving_mean) == 0).all()
