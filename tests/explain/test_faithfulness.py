"""Faithfulness on a network whose truth is known: it looks at one corner and at nothing else."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest

from tellapart.evaluation.predict import predict_arrays
from tellapart.explain.faithfulness import Faith, weight_randomisation
from tellapart.explain.maps import grad_cam

PX = 32
CORNER = np.s_[:8, :8]


def corner_network() -> keras.Model:
    """Class 0 where the upper left corner is bright."""
    inputs = keras.Input((PX, PX, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Cropping2D(((0, PX - 8), (0, PX - 8)))(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    model.layers[-1].set_weights([np.array([[4.0, 0]] * 3, np.float32), np.array([-6.0, 0], np.float32)])
    return model


def pictures(count: int = 12) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 120, (count, PX, PX, 3)).astype(np.uint8)
    images[:, *CORNER] = 255
    return images


def test_the_true_map_beats_chance_and_its_opposite_does_not():
    model, images, targets = corner_network(), pictures(), np.zeros(12, np.int64)
    heat = np.zeros((12, PX, PX), np.float32)
    heat[:, *CORNER] = 1
    good, bad = map(Faith(partial(predict_arrays, model), images, targets).of, (heat, 1 - heat))
    assert good.insertion_gain[1].low > 0
    assert good.deletion_gain[1].low > 0
    assert bad.insertion_gain[1].high < 0
    assert bad.deletion_gain[1].high < 0
    assert good.score > bad.score
    assert good.insertion_interval.low <= good.insertion <= good.insertion_interval.high


def test_the_area_under_a_curve_by_hand():
    """All of the corner lies within the first sixteenth of the places: one step, then nothing changes."""
    model, images, targets = corner_network(), pictures(1), np.zeros(1, np.int64)
    heat = np.zeros((1, PX, PX), np.float32)
    heat[:, *CORNER] = 1
    deletion, insertion = Faith(partial(predict_arrays, model), images, targets).areas(heat)
    from tellapart.explain.maps import blurred

    shown, hidden = (float(model.predict_on_batch(part)[0, 0]) for part in (images, blurred(images)))
    assert deletion[0] == pytest.approx((shown + hidden) / 2 / 16 + hidden * 15 / 16, abs=0.01)
    assert insertion[0] == pytest.approx((shown + hidden) / 2 / 16 + shown * 15 / 16, abs=0.01)


@pytest.mark.integration
def test_maps_change_when_the_network_forgets_and_the_network_recovers():
    inputs = keras.Input((PX, PX, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = keras.layers.Conv2D(8, 3, activation="relu", padding="same", name="first")(x)
    x = keras.layers.Conv2D(8, 3, activation="relu", padding="same", name="second")(x)
    model = keras.Model(
        inputs, keras.layers.Dense(2, activation="softmax", name="classes")(keras.layers.GlobalAveragePooling2D()(x))
    )
    images, targets = pictures(4), np.array([0, 1, 0, 1])
    before = model.get_weights()
    sanity = weight_randomisation(model, images, targets, grad_cam)
    assert sanity.layers == ("classes", "second", "first")
    assert abs(sanity.correlation[-1]) < 0.9
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    edges = weight_randomisation(
        model, images, targets, lambda model, images, targets: images[..., 0] / np.float32(255)
    )
    assert edges.correlation == pytest.approx((1, 1, 1)), "a map that ignores the network is found out"
