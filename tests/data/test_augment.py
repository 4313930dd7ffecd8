"""Random changes against Keras' own preprocessing layers, and the ranges they are drawn from."""

from __future__ import annotations

import cv2
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from drawing import photo
from tellapart.data.augment import Change, apply, draw_changes, warp_matrix
from tellapart.settings import Augment

SIDE = 96


def by_keras(picture: NDArray[np.uint8], change: Change) -> NDArray[np.float32]:
    """Apply `change` with one Keras layer per part, in the order of the module's docstring."""
    layers, side = keras.layers, picture.shape[0]
    images = picture[None].astype(np.float32)
    if change.flip:
        flips = {"flips": np.ones((1, 1, 1, 1), bool), "input_shape": images.shape}
        images = layers.RandomFlip("horizontal").transform_images(images, transformation=flips)
    if change.angle:
        layer, zero = layers.RandomRotation(0.5), np.zeros(1, np.float32)
        matrix = layer._compute_affine_matrix(
            center_x=0.5, center_y=0.5, angle=zero + np.float32(np.degrees(change.angle)), scale=zero + 1,
            translate_x=zero, translate_y=zero, shear_x=zero, shear_y=zero, height=side, width=side,
        )  # fmt: skip
        images = layer.transform_images(images, transformation={"rotation_matrix": matrix})
    if change.shift != (0.0, 0.0):
        # Keras moves the picture by the translation, which is moving the window the other way.
        moves = {"translations": -np.array([change.shift], np.float32) * side}
        images = layers.RandomTranslation(0.5, 0.5).transform_images(images, transformation=moves)
    if change.zoom != 1.0:
        zooms = dict.fromkeys(("height_zoom", "width_zoom"), np.full((1, 1), change.zoom, np.float32))
        images = layers.RandomZoom(0.5).transform_images(images, transformation=zooms)
    if change.contrast != 1.0:
        factor = {"contrast_factor": np.full((1, 1, 1, 1), change.contrast, np.float32)}
        images = layers.RandomContrast(0.5).transform_images(images, transformation=factor)
    if change.brightness:
        delta = {"rgb_delta": np.full((1, 1, 1, 1), 255 * change.brightness, np.float32)}
        images = layers.RandomBrightness(0.5).transform_images(images, transformation=delta)
    return np.asarray(images)[0]


@pytest.mark.parametrize(
    "change",
    [
        Change(flip=True),
        Change(angle=0.3),
        Change(angle=-1.2),
        Change(zoom=0.8),
        Change(zoom=1.2),
        Change(shift=(0.1, -0.05)),
        Change(contrast=1.2),
        Change(contrast=0.8),
        Change(brightness=0.1),
        Change(contrast=1.2, brightness=-0.2),
    ],
    ids=lambda change: str({k: v for k, v in vars(change).items() if v != getattr(Change(), k)}),
)
def test_each_part_is_what_keras_does(change):
    picture = photo(1, (SIDE, SIDE))
    difference = np.abs(apply(picture, change, SIDE) - by_keras(picture, change))
    assert difference.max() <= 0.5 + 1e-2, "rounding to whole grey levels is all that may differ"


@pytest.mark.parametrize("flip", [False, True])
def test_parts_compose_in_the_order_of_keras_layers(flip):
    picture = cv2.GaussianBlur(photo(2, (SIDE, SIDE)), (0, 0), 3)  # Keras resamples it three times
    change = Change(flip=flip, angle=0.4, shift=(0.06, -0.1), zoom=0.85, contrast=1.1, brightness=-0.05)
    difference = np.abs(apply(picture, change, SIDE) - by_keras(picture, change))
    assert difference[16:-16, 16:-16].mean() < 0.5
    assert difference.mean() < 1.0, "the border is reflected as Keras reflects it"


def test_drawn_parameters_fill_the_ranges_of_the_keras_layers():
    augment = Augment(translation=0.1, brightness=0.15)
    rng = np.random.default_rng(0)
    changes = draw_changes(augment, rng, 20_000)
    images = np.zeros((20_000, 1, 1, 1), np.float32)
    layers = keras.layers
    drawn = {
        "angle": np.radians(layers.RandomRotation(0.2, seed=1).get_random_transformation(images)["angle"]),
        "zoom": layers.RandomZoom(0.2, seed=1).get_random_transformation(images)["height_zoom"],
        # Keras documents RandomContrast(0.2) as this pair, and draws from [1, 1.2] (3.15).
        "contrast": layers.RandomContrast((0.2, 0.2), seed=1).get_random_transformation(images)["contrast_factor"],
        "shift": layers.RandomTranslation(0.1, 0.1, seed=1).get_random_transformation(images)["translations"],
    }
    drawn["brightness"] = layers.RandomBrightness(0.15, seed=1).get_random_transformation(images)["rgb_delta"] / 255
    expected = {"angle": (0, 0.4 * np.pi), "zoom": (1, 0.2), "contrast": (1, 0.2), "shift": (0, 0.1)}
    expected["brightness"] = (0, 0.15)
    for name, (middle, reach) in expected.items():
        ours = getattr(changes, name)
        for values in (ours, np.asarray(drawn[name])):
            assert values.min() == pytest.approx(middle - reach, abs=0.002 * reach)
            assert values.max() == pytest.approx(middle + reach, abs=0.002 * reach)
            assert values.mean() == pytest.approx(middle, abs=0.02 * reach)
            assert values.std() == pytest.approx(reach / np.sqrt(3), rel=0.02), "uniform"
    assert np.mean(changes.flip) == pytest.approx(0.5, abs=0.015)
    columns = [changes.angle, changes.zoom, changes.contrast, changes.brightness, *changes.shift.T, changes.flip]
    assert np.abs(np.corrcoef(columns) - np.eye(7)).max() < 0.03, "independent of each other"


def test_the_same_generator_draws_the_same_and_no_range_draws_the_identity():
    nothing = Augment(flip=False, rotation=0, zoom=0, contrast=0)
    for name, value in vars(draw_changes(nothing, np.random.default_rng(3), 4)).items():
        np.testing.assert_array_equal(value, np.broadcast_to(getattr(Change(), name), value.shape))
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    draw_changes(nothing, first, 4)
    draw_changes(Augment(translation=0.2), second, 4)
    assert first.random() == second.random(), "settings shift no later draw"


def test_many_matrices_are_those_of_one_change_each():
    changes = draw_changes(Augment(translation=0.1), np.random.default_rng(5), 6)
    for number, matrix in enumerate(warp_matrix(changes, 96, 64)):
        one = Change(**{name: values[number] for name, values in vars(changes).items()})
        np.testing.assert_allclose(matrix, warp_matrix(one, 96, 64), rtol=1e-14)


def test_the_identity_returns_the_picture_itself():
    picture = photo(4, (SIDE, SIDE))
    np.testing.assert_array_equal(apply(picture, Change(), SIDE), picture)


@pytest.mark.parametrize("side", [64, 128])
def test_a_larger_or_smaller_source_is_scaled_by_bilinear_interpolation(side):
    picture = photo(5, (SIDE, SIDE))
    plain = cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR)
    result = apply(picture, Change(), side)
    inner = np.abs(result.astype(int) - plain)[2:-2, 2:-2]
    assert inner.max() <= 2
    changed = Change(flip=True, angle=0.5, shift=(0.1, 0.02), zoom=0.9)
    both = apply(picture, changed, side).astype(int)
    after = cv2.resize(apply(picture, changed, SIDE), (side, side), interpolation=cv2.INTER_LINEAR)
    assert np.abs(both - after)[8:-8, 8:-8].mean() < 1.5, "scaling and changing are one and the same warp"
