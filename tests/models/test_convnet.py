"""The reference network: its layers, its size, and that plain Keras opens it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

from tellapart.models.build import build, build_for_training, copy_weights
from tellapart.settings import ConvNet


def test_layers_follow_in_the_order_of_the_reference_network():
    model = build(ConvNet(), 9, 224)
    kinds = [(type(layer).__name__, layer.name) for layer in model.layers]
    assert kinds == [
        ("InputLayer", "image"),
        ("Rescaling", "normalise"),
        ("Conv2D", "conv1"),
        ("BatchNormalization", "batchnorm1"),
        ("MaxPooling2D", "pool1"),
        ("Conv2D", "conv2"),
        ("BatchNormalization", "batchnorm2"),
        ("MaxPooling2D", "pool2"),
        ("Conv2D", "conv3"),
        ("BatchNormalization", "batchnorm3"),
        ("GlobalAveragePooling2D", "average"),
        ("Dense", "hidden"),
        ("Dropout", "dropout"),
        ("Dense", "probabilities"),
    ]
    # By hand: 3·3·3·32 + 32, 4·32, 3·3·32·64 + 64, 4·64, 3·3·64·128 + 128, 4·128, 128·256 + 256, 256·9 + 9
    assert model.count_params() == 896 + 128 + 18_496 + 256 + 73_856 + 512 + 33_024 + 2_313 == 129_481
    assert (model.input_shape, model.output_shape) == ((None, 224, 224, 3), (None, 9))
    assert (model.inputs[0].dtype, model.outputs[0].dtype) == ("uint8", "float32")


def test_width_multiplies_all_channels_in_eights():
    # By hand, as above with 16, 32, 64 and 128 channels
    half = 448 + 64 + 4_640 + 128 + 18_496 + 256 + 8_320 + 1_161
    assert build(ConvNet(width=0.5), 9, 32).count_params() == half
    odd = build(ConvNet(width=0.8), 9, 32)
    assert [odd.get_layer(f"conv{n}").filters for n in (1, 2, 3)] == [24, 48, 104]
    assert build(ConvNet(width=0.01), 9, 32).get_layer("conv1").filters == 8


def test_relu_comes_before_batch_normalisation_and_padding_is_same():
    model = build(ConvNet(dropout=0.3, l2=1e-3, batchnorm_momentum=0.8), 9, 32)
    for number, (side, channels) in enumerate([(32, 32), (16, 64), (8, 128)], start=1):
        conv, norm = model.get_layer(f"conv{number}"), model.get_layer(f"batchnorm{number}")
        assert conv.activation is keras.activations.relu
        assert (conv.kernel_size, conv.strides, conv.padding) == ((3, 3), (1, 1), "same")
        assert conv.output.shape == (None, side, side, channels)
        assert norm.input is conv.output, "nothing between convolution with ReLU and normalisation"
        assert norm.momentum == 0.8
        assert float(conv.kernel_regularizer.l2) == pytest.approx(1e-3)
    assert model.get_layer("dropout").rate == 0.3
    kernels = [model.get_layer(name).kernel for name in ("conv1", "conv2", "conv3", "hidden", "probabilities")]
    penalty = 1e-3 * sum(float((np.asarray(kernel) ** 2).sum()) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(penalty, rel=1e-5)
    assert build(ConvNet(l2=0.0), 9, 32).losses == []


def test_pictures_are_scaled_to_minus_one_to_one():
    model = build(ConvNet(), 2, 16)
    levels = np.array([0, 127, 128, 255], np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
    scaled = np.asarray(model.get_layer("normalise")(levels))[0, ..., 0].ravel()
    np.testing.assert_allclose(scaled, [-1, -1 / 255, 1 / 255, 1], atol=1e-6)


def test_the_seed_decides_the_initial_weights():
    first, same, other = (build(ConvNet(), 3, 16, seed=seed).get_weights() for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_the_training_network_takes_any_size_and_passes_its_weights_on():
    training, plain = build_for_training(ConvNet(), 3, seed=1), build(ConvNet(), 3, 24, seed=2)
    assert training.input_shape == (None, None, None, 3)
    copy_weights(training, plain)
    for mine, theirs in zip(training.weights, plain.weights, strict=True):
        assert (mine.path.split("/")[-2:], mine.shape) == (theirs.path.split("/"), theirs.shape)
    images = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)
    np.testing.assert_allclose(training(images), plain(images), atol=1e-6)


@pytest.mark.integration
def test_a_saved_model_opens_in_plain_keras_without_tellapart(tmp_path: Path):
    model = build(ConvNet(), 4, 32, seed=3)
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    script = """
        import json, sys
        sys.modules["tellapart"] = None  # importing it is now an error
        import keras, numpy
        model = keras.saving.load_model(sys.argv[1] + "/model.keras")
        images = numpy.load(sys.argv[1] + "/images.npy")
        print(json.dumps([model.inputs[0].dtype, model.predict(images, verbose=0).tolist()]))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path], capture_output=True, text=True, check=True
    )
    dtype, predicted = json.loads(done.stdout.splitlines()[-1])
    assert dtype == "uint8"
    np.testing.assert_allclose(predicted, model.predict_on_batch(images), atol=1e-6)
