"""Heat maps against what the papers say they are, on networks small enough to work out."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tellapart.errors import InputError
from tellapart.explain import maps
from tellapart.models.build import build
from tellapart.models.layers import LayerReader, feature_layer, feature_maps, first_layer
from tellapart.settings import ConvNet

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 16, 20, 3), np.uint8)
TARGETS = np.array([0, 1, 2, 1, 0])


def pooled_network(activation: str = "softmax") -> keras.Model:
    """Scaling, one convolution, global average pooling, one dense layer: the network of Zhou et al. 2016."""
    inputs = keras.Input((16, 20, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(inputs)
    x = keras.layers.Conv2D(6, 3, activation="relu", strides=2, padding="same", name="features")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation=activation, name="classes")(x)
    return keras.Model(inputs, outputs)


def nested_network() -> keras.Model:
    """The same inside a model inside a model, its softmax a layer of its own."""
    backbone_input = keras.Input((None, None, 3))
    backbone = keras.Model(
        backbone_input,
        keras.layers.Conv2D(6, 3, activation="relu", strides=2, padding="same", name="features")(backbone_input),
    )
    inputs = keras.Input((16, 20, 3), dtype="uint8")
    x = backbone(keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs))
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Softmax()(x))


@pytest.mark.parametrize("make", [pooled_network, nested_network])
def test_grad_cam_of_a_pooled_network_is_cam(make):
    """Zhou et al. 2016, equation 2; Grad-CAM has pooling's 1 / pixels in it (Selvaraju et al. 2017, section 3.1)."""
    model = make()
    reading = LayerReader(model, batch_size=2).read(IMAGES, TARGETS)
    (dense,) = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    weights = np.asarray(dense.kernel)[:, TARGETS]  # (channels, num_images)
    cam = np.einsum("nhwc,cn->nhw", reading.outputs, weights)
    assert reading.outputs.shape == (5, 8, 10, 6)
    np.testing.assert_allclose(maps.grad_cam_values(reading), cam / 80, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(maps.hires_cam_values(reading), cam / 80, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(reading.probabilities, model.predict_on_batch(IMAGES), atol=1e-6)
    np.testing.assert_allclose(maps.grad_cam(model, IMAGES, TARGETS), maps.to_heat(cam, IMAGES), atol=1e-4)


def test_cams_of_a_reading_are_what_their_formulas_say():
    """One picture, two places, two channels, by hand."""
    outputs = np.array([[[[1.0, 2.0], [3.0, 0.0]]]], np.float32)
    gradients = np.array([[[[0.5, -1.0], [1.5, 3.0]]]], np.float32)
    reading = maps.Reading(np.zeros((1, 2)), np.zeros(1), outputs, gradients)
    np.testing.assert_allclose(maps.grad_cam_values(reading), [[[1 * 1 + 2 * 1, 3 * 1]]])
    np.testing.assert_allclose(maps.hires_cam_values(reading), [[[0.5 - 2, 4.5]]])
    np.testing.assert_allclose(maps.layer_cam_values(reading), [[[0.5, 4.5]]])


@pytest.mark.parametrize("make", [pooled_network, lambda: build(ConvNet(), 3, 16, seed=1)])
def test_integrated_gradients_add_up_to_the_difference_of_the_scores(make):
    """Completeness: Sundararajan et al. 2017, proposition 1; each ReLU on the way costs the sum some exactness."""
    model = make()
    images = np.ascontiguousarray(IMAGES[:, :16, :16]) if model.input_shape[2] == 16 else IMAGES
    probe = LayerReader(model)
    difference = probe.read(images, TARGETS).scores - probe.read(maps.blurred(images), TARGETS).scores
    shares = maps.integrated_gradients_values(model, images, TARGETS, steps=64)
    assert shares.shape == images.shape[:3]
    np.testing.assert_allclose(shares.sum(axis=(1, 2)), difference, atol=0.01 * np.abs(difference).max())


def test_occlusion_finds_the_one_place_that_counts():
    inputs = keras.Input((24, 24, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Cropping2D(((4, 16), (16, 4)))(x)  # rows 4 to 8, columns 16 to 20
    x = keras.layers.Dense(2, activation="softmax", name="classes")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    model.get_layer("classes").set_weights([np.array([[9.0, 0]] * 3, np.float32), np.zeros(2, np.float32)])
    images = np.zeros((1, 24, 24, 3), np.uint8)
    images[0, 4:8, 16:20] = 255
    heat = maps.occlusion(model, images, np.array([0]))
    assert np.unravel_index(heat[0].argmax(), (24, 24)) in [
        (row, column) for row in range(4, 8) for column in range(16, 20)
    ]
    assert heat[0, 16:, :10].max() == 0


@pytest.mark.parametrize("name", maps.METHODS)
def test_heat_maps_are_in_range_and_each_image_has_its_own(name):
    model = build(ConvNet(), 3, 20, seed=2)
    images = RNG.integers(0, 256, (3, 20, 20, 3), np.uint8)
    heat = maps.METHODS[name](model, images, TARGETS[:3])
    assert (heat.shape, heat.dtype) == ((3, 20, 20), np.float32)
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert all(each.max() in (0, 1) for each in heat)
    alone = np.concatenate([maps.METHODS[name](model, images[i : i + 1], TARGETS[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(heat, alone, atol=3e-4)  # 1.1e-4 was seen with AVX2


def test_the_network_is_left_as_it_was():
    model = build(ConvNet(), 3, 16, seed=3)
    before, call = model.predict_on_batch(IMAGES[:, :, :16]), feature_layer(model).call
    maps.grad_cam(model, np.ascontiguousarray(IMAGES[:, :, :16]), TARGETS)
    np.testing.assert_array_equal(model.predict_on_batch(IMAGES[:, :, :16]), before)
    assert feature_layer(model).call == call


def test_nothing_speaking_for_a_class_gives_an_empty_map_without_a_warning():
    values = np.array([[[-1.0, -2.0], [-3.0, 0.0]], [[np.nan, 1.0], [0.0, 2.0]]], np.float32)
    heat = maps.to_heat(values, np.zeros((2, 2, 2, 3), np.uint8))
    np.testing.assert_array_equal(heat, [[[0, 0], [0, 0]], [[0, 0.5], [0, 1]]])


def test_layers_are_found_inside_nested_models():
    model = nested_network()
    seen = feature_maps(model, IMAGES, at_most=5)
    assert [name.rstrip("_0123456789") for name in seen] == ["rescaling", "features"]
    expected = LayerReader(model).read(IMAGES, TARGETS).outputs
    np.testing.assert_allclose(seen["features"], expected, rtol=1e-4, atol=1e-5)
    assert feature_layer(model).name == "features"
    assert first_layer(model).name.startswith("rescaling")
    flat = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(InputError, match="no layer with feature maps"):
        feature_layer(flat)
    with pytest.raises(InputError, match="begins with 'dense"):
        first_layer(flat)
