"""How much a channel matters is what the loss changes without it; the cheapest for what they save leave first."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tellapart.compress.importance import STEP, importance, kept_channels, sizes_of
from tellapart.models.build import build
from tellapart.models.channels import channels_of
from tellapart.models.layers import layers_of
from tellapart.settings import ConvNet

IMAGE_PX = 24


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build(ConvNet(width=0.5), 4, IMAGE_PX)


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (16, IMAGE_PX, IMAGE_PX, 3)).astype(np.uint8), random.integers(0, 4, 16)


def loss(model: keras.Model, batch: tuple[np.ndarray, np.ndarray]) -> float:
    probabilities = np.asarray(model(batch[0], training=False), np.float64)
    return float(-np.log(probabilities[np.arange(len(batch[1])), batch[1]]).mean())


def test_it_is_the_squared_slope_of_the_loss_when_a_channel_fades(model, batch):
    channels = channels_of(model, IMAGE_PX)
    scores = importance(model, channels, [batch])
    assert {name: len(values) for name, values in scores.items()} == {
        name: group.size for name, group in channels.groups.items()
    }
    (reader,) = (layer for layer in layers_of(model) if layer.name == "conv3")
    kernel, *rest = reader.get_weights()
    # Of the two that matter most: what small ones change is lost in the rounding of the loss.
    for channel in np.argsort(scores["conv2"])[-2:]:
        faded = []
        for share in (-0.002, 0.002):
            changed = kernel.copy()
            changed[:, :, channel] *= 1 + share
            reader.set_weights([changed, *rest])
            faded.append(loss(model, batch))
        reader.set_weights([kernel, *rest])
        slope = (faded[1] - faded[0]) / 0.004
        assert scores["conv2"][channel] == pytest.approx(slope**2, rel=0.05, abs=1e-10)


def test_batches_add_up_and_a_channel_that_nobody_reads_matters_nothing(model, batch):
    channels = channels_of(model, IMAGE_PX)
    (reader,) = (layer for layer in layers_of(model) if layer.name == "conv2")
    kernel, *rest = reader.get_weights()
    silenced = kernel.copy()
    silenced[:, :, 3] = 0
    reader.set_weights([silenced, *rest])
    scores = importance(model, channels, [batch, batch])
    once = importance(model, channels, [batch])
    reader.set_weights([kernel, *rest])
    np.testing.assert_allclose(scores["conv3"], 2 * once["conv3"], rtol=1e-4)
    assert scores["conv1"][3] == 0
    assert np.count_nonzero(scores["conv1"]) == 15


def test_the_share_that_is_left_is_kept_in_eights(model, batch):
    channels = channels_of(model, IMAGE_PX)
    random = np.random.default_rng(1)
    scores = {name: random.random(group.size) for name, group in channels.groups.items()}
    whole = channels.cost()
    for share in (0.8, 0.5):
        keep = kept_channels(channels, scores, share)
        cost = channels.cost(sizes_of(keep))
        left = (cost.multiplications / whole.multiplications + cost.weights / whole.weights) / 2
        assert share - 0.15 < left <= share
        for name, positions in keep.items():
            assert len(positions) % STEP == 0
            # Those that matter least are gone, whichever group they are of.
            gone = np.setdiff1d(np.arange(channels.groups[name].size), positions)
            assert scores[name][gone].max() < scores[name][positions].min()
            assert (np.diff(positions) > 0).all()
    assert kept_channels(channels, scores, 1.0) == {}


def test_no_group_loses_its_last_eight_channels(model):
    channels = channels_of(model, IMAGE_PX)
    keep = kept_channels(channels, {name: np.zeros(group.size) for name, group in channels.groups.items()}, 0.001)
    assert set(sizes_of(keep).values()) == {STEP}
