"""A network with fewer channels is the network with those channels silenced; what cannot leave says why."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tellapart.errors import InputError
from tellapart.models.build import build, build_for_training
from tellapart.models.channels import Keep, channels_of
from tellapart.models.layers import layers_of
from tellapart.settings import Backbone, ConvNet

IMAGE_PX = 32


def whole(model: keras.Model) -> keras.Model:
    """Give a network weights that are whole numbers: sums of them are exact in any order."""
    random = np.random.default_rng(0)
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            scale = random.choice([-1, 1, 2], layer.gamma.shape)
            layer.epsilon = 0.0
            layer.set_weights([scale, random.integers(-2, 3, scale.shape), 0 * scale, np.ones(scale.shape)])
        elif layer.weights:
            layer.set_weights([random.integers(-1, 2, value.shape) for value in layer.get_weights()])
    return model


def silence(model: keras.Model, names: tuple[str, ...], gone: np.ndarray) -> None:
    """Set to zero what the layers read of some channels."""
    for layer in layers_of(model):
        if layer.name in names:
            kernel, *rest = layer.get_weights()
            kernel[..., gone, :] = 0
            layer.set_weights([kernel, *rest])


@pytest.mark.parametrize(
    "settings",
    [
        ConvNet(),
        ConvNet(batchnorm=False, width=0.5),
        Backbone(name="mobilenet_v2"),
        pytest.param(Backbone(name="mobilenet_v3_small"), marks=pytest.mark.slow),
        pytest.param(Backbone(name="mobilenet_v3_large"), marks=pytest.mark.by_hand),
        pytest.param(Backbone(name="efficientnet_b0"), marks=pytest.mark.slow),
        pytest.param(Backbone(name="efficientnet_v2_b0"), marks=pytest.mark.by_hand),
        pytest.param(Backbone(name="resnet50"), marks=pytest.mark.by_hand),
        pytest.param(Backbone(name="densenet121"), marks=pytest.mark.by_hand),
        pytest.param(Backbone(name="convnext_tiny"), marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings.name,
)
def test_a_narrowed_network_is_the_silenced_one(settings: ConvNet | Backbone):
    model = build(settings, 5, IMAGE_PX)
    channels = channels_of(model, IMAGE_PX)
    assert channels.cost().weights <= model.count_params(), "vectors of layers that are not followed are not counted"
    random = np.random.default_rng(1)
    keep: Keep = {
        name: np.sort(random.choice(group.size, group.size // 2, replace=False))
        for name, group in channels.groups.items()
    }
    narrow = channels.narrowed(model, {name: len(positions) for name, positions in keep.items()})
    channels.copy_kept(model, narrow, keep)
    for name, positions in keep.items():
        silence(model, channels.groups[name].readers, np.setdiff1d(np.arange(channels.groups[name].size), positions))
    pictures = random.integers(0, 256, (2, IMAGE_PX, IMAGE_PX, 3)).astype(np.uint8)
    expected, found = (network.predict_on_batch(pictures) for network in (model, narrow))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert narrow.count_params() < 0.6 * model.count_params()
    sizes = {name: len(positions) for name, positions in keep.items()}
    assert channels_of(narrow, IMAGE_PX).cost() == channels.cost(sizes)


def test_bit_for_bit_where_sums_are_exact():
    model = whole(build(ConvNet(l2=0.0), 5, 16))
    channels = channels_of(model, 16)
    keep: Keep = {name: np.arange(8, group.size) for name, group in channels.groups.items()}
    narrow = channels.narrowed(model, {name: len(positions) for name, positions in keep.items()})
    channels.copy_kept(model, narrow, keep)
    for layer in narrow.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 0.0
    for name in keep:
        silence(model, channels.groups[name].readers, np.arange(8))
    # From the scaled picture on, so that it can be whole numbers too.
    pictures = np.random.default_rng(2).integers(-1, 2, (3, 16, 16, 3)).astype(np.float32)
    outputs = [
        keras.Model(network.get_layer("normalise").output, network.get_layer("pool2").output).predict_on_batch(pictures)
        for network in (model, narrow)
    ]
    silenced, narrowed = outputs
    assert np.abs(narrowed).max() > 100
    np.testing.assert_array_equal(silenced[..., 8:], narrowed)


def test_the_groups_of_mobilenet_join_what_is_added_up():
    channels = channels_of(build(Backbone(name="mobilenet_v2"), 5, IMAGE_PX), IMAGE_PX)
    residual = channels.groups["block_1_project"]
    assert residual.makers == ("block_1_project", "block_2_project")
    assert residual.readers == ("block_2_expand", "block_3_expand")
    expanded = channels.groups["block_1_expand"]
    assert expanded.carriers == ("block_1_expand_BN", "block_1_depthwise", "block_1_depthwise_BN")
    assert channels.groups["Conv_1"].readers == ("probabilities",)
    assert channels.fixed == {"probabilities": "it makes the output"}


def test_a_recipe_with_channels_builds_the_narrow_network_also_for_training():
    for settings in (
        ConvNet(channels={"conv2": 24, "hidden": 40}),
        Backbone(name="mobilenet_v2", channels={"block_1_expand": 48, "Conv_1": 640}),
    ):
        plain, trained = build(settings, 5, IMAGE_PX), build_for_training(settings, 5)
        shapes = [[tuple(variable.shape) for variable in model.weights] for model in (plain, trained)]
        assert shapes[0] == shapes[1]
        for name, size in settings.channels.items():
            (layer,) = (layer for layer in layers_of(plain) if layer.name == name)
            assert layer.weights[0].shape[-1] == size


def test_layers_that_are_not_known_are_left_alone_and_named():
    inputs = keras.Input((8, 8, 3), dtype="float32")
    x = keras.layers.Conv2D(16, 3, name="first")(inputs)
    x = keras.layers.LayerNormalization(name="over_channels")(x)
    x = keras.layers.Conv2D(16, 3, name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    channels = channels_of(keras.Model(inputs, keras.layers.Dense(4, name="last")(x)), 8)
    assert list(channels.groups) == ["second"]
    assert "over_channels (LayerNormalization)" in channels.fixed["first"]
    with pytest.raises(InputError, match=r"'first' cannot be narrowed.*over_channels"):
        channels.narrowed(keras.Model(inputs, x), {"first": 8})
    with pytest.raises(InputError, match="has 16 channels"):
        channels.narrowed(keras.Model(inputs, x), {"second": 17})
    two = keras.Model(inputs, [x, x])
    with pytest.raises(InputError, match="one picture to one output"):
        channels_of(two, 8)
