"""Joined networks against the mean of what their members say, computed in NumPy."""

from __future__ import annotations

from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from tellapart.evaluation.calibration import at_temperature
from tellapart.models.build import build
from tellapart.models.embedding import feature_model
from tellapart.models.ensemble import heaviest, joined
from tellapart.models.layers import LayerReader, feature_layer, first_layer
from tellapart.models.temperature import with_temperature
from tellapart.settings import ConvNet


def network(image_px: int, seed: int) -> keras.Model:
    """Return a network whose probabilities are not all alike: its last layer is far from 0."""
    model = build(ConvNet(), 4, image_px, seed=seed)
    kernel, bias = model.get_layer("probabilities").get_weights()
    model.get_layer("probabilities").set_weights([30 * kernel, bias + np.arange(4)])
    return model


def pictures(image_px: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), np.uint8)
    return np.stack([cv2.resize(each, (image_px, image_px), interpolation=cv2.INTER_CUBIC) for each in coarse])


def say(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict_on_batch(images), np.float64)


def test_a_network_that_goes_on_from_one_members_maps_still_asks_the_other():
    model, images = joined([network(48, 0), network(24, 1)], [0.7, 0.3]), pictures(48)
    reader = LayerReader(model)
    maps = reader.read(images[:1], np.zeros(1, np.int64)).outputs
    resumed = reader.resume(images[:1], np.repeat(maps, 3, axis=0))
    assert resumed == pytest.approx(np.repeat(say(model, images[:1]), 3, axis=0), abs=1e-5)
    assert np.abs(reader.resume(images[:1], 0 * maps) - resumed[:1]).max() > 1e-3


def test_an_ensembles_embedding_is_its_members_side_by_side_also_after_a_file(tmp_path: Path):
    members, images = [network(48, 0), network(24, 1)], pictures(48)
    model = joined(members, [0.4, 0.6])
    model.save(tmp_path / "model.keras")
    alone = [joined([member], [1.0], 48) for member in members]
    parts = [np.asarray(feature_model(member).predict_on_batch(images)[0]) for member in alone]
    large = np.asarray(feature_model(members[0]).predict_on_batch(images)[0])
    assert parts[0] == pytest.approx(large / np.linalg.norm(large, axis=1, keepdims=True), abs=1e-5)
    for network_ in (model, keras.saving.load_model(tmp_path / "model.keras", compile=False)):
        embedding, probabilities = feature_model(network_).predict_on_batch(images)
        assert embedding == pytest.approx(np.hstack(parts), abs=1e-5)
        assert probabilities == pytest.approx(0.4 * say(alone[0], images) + 0.6 * say(alone[1], images), abs=1e-5)
        assert say(network_, images) == pytest.approx(probabilities, abs=1e-5), "the network is as it was"
        assert say(heaviest(network_), images) == pytest.approx(say(alone[1], images), abs=1e-5)
    assert heaviest(members[0]) is members[0]


def test_members_of_one_size_give_their_weighted_mean_and_the_file_opens_without_tellapart(tmp_path: Path):
    members, images = [network(32, seed) for seed in range(3)], pictures(32)
    model = joined(members, [0.5, 1.0, 0.5])
    expected = 0.25 * say(members[0], images) + 0.5 * say(members[1], images) + 0.25 * say(members[2], images)
    assert np.ptp(expected, axis=1).min() > 0.05
    assert say(model, images) == pytest.approx(expected, abs=1e-5)
    model.save(tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert np.array_equal(say(opened, images), say(model, images))
    assert {type(layer).__module__.split(".")[0] for layer in opened.layers} == {"keras"}
    assert say(with_temperature(opened, 2.0), images) == pytest.approx(at_temperature(expected, 2.0), abs=1e-5)
    assert say(joined(members[:1], [1.0]), images) == pytest.approx(say(members[0], images), abs=1e-5)


@pytest.mark.parametrize("small", [16, 24, 20])
def test_smaller_members_see_the_picture_as_opencv_would_shrink_it(small: int):
    """16 of 48 px is the mean of blocks, 24 too; 20 is blocks of two and then bilinear."""
    large, other, images = network(48, 0), network(small, 1), pictures(48)
    blocks = 48 // small
    shrunk = images.reshape(6, 48 // blocks, blocks, 48 // blocks, blocks, 3).mean(axis=(2, 4)).astype(np.float32)
    shrunk = np.stack([cv2.resize(each, (small, small), interpolation=cv2.INTER_LINEAR) for each in shrunk])
    expected = 0.3 * say(large, images) + 0.7 * say(other, np.rint(shrunk).astype(np.uint8))
    assert say(joined([large, other], [0.3, 0.7]), images) == pytest.approx(expected, abs=0.01)


def test_gradients_reach_every_member_and_heat_maps_are_of_the_heaviest():
    members, images = [network(32, 0), network(16, 1)], pictures(32)
    heavy = joined(members, [0.9, 0.1])
    assert feature_layer(heavy) is next(
        layer for layer in heavy.get_layer("member2").layers if layer.name == "batchnorm3"
    )
    assert heavy.get_layer("member2").input_shape[1] == 32
    targets = np.zeros(6, np.int64)
    probe = LayerReader(heavy, first_layer(heavy))
    assert probe.read(images, targets).gradients.shape == (6, 32, 32, 3)
    assert np.abs(probe.read(images, targets).gradients).max() > 0
    light = LayerReader(joined([members[1]], [1.0]))
    assert light.read(pictures(16), targets).probabilities == pytest.approx(say(members[1], pictures(16)), abs=1e-5)


def test_a_joined_network_can_be_a_member():
    members, images = [network(32, seed) for seed in range(3)], pictures(32)
    inner = joined(members[:2], [1.0, 1.0])
    expected = (say(members[0], images) + say(members[1], images)) / 4 + say(members[2], images) / 2
    assert say(joined([inner, members[2]], [0.5, 0.5]), images) == pytest.approx(expected, abs=1e-5)
