"""Each operation against Pillow's, which the paper used, or against Keras' layer where Pillow skips pixels."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from drawing import photo
from tellapart.data import randaugment as module
from tellapart.data.randaugment import OPERATIONS, randaugment

SIDE = 96
STRENGTHS = (-1.0, -0.3, 0.1, 0.7, 1.0)


def picture_of(seed: int) -> NDArray[np.uint8]:
    """Return a photo with noise that leaves out the darkest and brightest levels, a different range per channel."""
    noise = np.random.default_rng(seed).integers(-9, 10, (SIDE, SIDE, 3))
    return np.clip(photo(seed, (SIDE, SIDE)) * 0.8 + noise + 20, [20, 9, 30], [230, 240, 200]).astype(np.uint8)


def ours(picture: NDArray[np.uint8], name: str, strength: float) -> NDArray[np.int64]:
    changed = picture.copy()
    OPERATIONS[name](changed, strength)
    return changed.astype(np.int64)


TABLES = {
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 * (1 - abs(strength))),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_those_of_pillow_bit_for_bit(name):
    for seed, strength in enumerate(STRENGTHS):
        picture = picture_of(seed)
        np.testing.assert_array_equal(ours(picture, name, strength), TABLES[name](Image.fromarray(picture), strength))


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_a_picture_of_one_level_stays_as_it_is(name):
    flat = np.full((SIDE, SIDE, 3), (0, 7, 255), np.uint8)
    np.testing.assert_array_equal(ours(flat, name, 1.0), flat)


@pytest.mark.parametrize("name", ["brightness", "contrast", "color", "sharpness"])
def test_blends_are_those_of_pillow(name):
    for seed, strength in enumerate(STRENGTHS):
        picture = picture_of(seed)
        enhance = getattr(ImageEnhance, name.capitalize())(Image.fromarray(picture))
        difference = ours(picture, name, strength) - np.asarray(enhance.enhance(1 + 0.9 * strength), np.int64)
        inner = difference[1:-1, 1:-1]  # Pillow does not smooth the outermost pixels
        assert np.abs(inner).max() <= 2, "Pillow rounds grey and smoothed pictures, and cuts off the result"
        assert np.abs(inner).mean() < 0.65
        assert 0.2 < inner.mean() < 0.6 or strength == -1.0, "Pillow is half a level darker: it cuts off"


def moved_by_keras(picture: NDArray[np.uint8], name: str, strength: float) -> NDArray[np.float32]:
    layers, images = keras.layers, picture[None].astype(np.float32)
    axis = int(name.endswith("y"))
    if name == "rotate":
        layer, zero = layers.RandomRotation(0.5), np.zeros(1, np.float32)
        matrix = layer._compute_affine_matrix(
            center_x=0.5, center_y=0.5, angle=zero + np.float32(30 * strength), scale=zero + 1,
            translate_x=zero, translate_y=zero, shear_x=zero, shear_y=zero, height=SIDE, width=SIDE,
        )  # fmt: skip
        return np.asarray(layer.transform_images(images, transformation={"rotation_matrix": matrix}))[0]
    amounts = np.zeros((1, 2), np.float32)
    if name.startswith("shear"):
        amounts[0, axis] = 0.3 * strength
        layer, key = layers.RandomShear(1.0, 1.0), "shear_factor"
    else:
        amounts[0, axis] = 0.45 * strength * SIDE
        layer, key = layers.RandomTranslation(0.5, 0.5), "translations"
    return np.asarray(layer.transform_images(images, transformation={key: amounts}))[0]


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_moves_are_those_of_keras_layers(name):
    for seed, strength in enumerate(STRENGTHS):
        picture = photo(seed, (SIDE, SIDE))
        difference = np.abs(ours(picture, name, strength) - moved_by_keras(picture, name, strength))
        assert difference.max() <= 0.5 + 1e-2, "rounding to whole grey levels is all that may differ"


def test_strength_zero_changes_nothing_but_where_strength_means_nothing():
    picture = picture_of(0)
    changed = {name for name in OPERATIONS if not np.array_equal(ours(picture, name, 0.0), picture)}
    assert changed == {"autocontrast", "equalize"}


def test_all_operations_and_signs_are_equally_likely(monkeypatch):
    drawn: list[tuple[str, float]] = []
    recorders = {name: lambda _, strength, name=name: drawn.append((name, strength)) for name in OPERATIONS}
    monkeypatch.setattr(module, "OPERATIONS", recorders)
    rng = np.random.default_rng(0)
    for _ in range(5000):
        randaugment(np.zeros((2, 2, 3), np.uint8), 2, 0.3, rng)
    kinds, counts = np.unique([f"{name} {strength}" for name, strength in drawn], return_counts=True)
    assert (len(kinds), counts.sum()) == (2 * 14, 10_000)
    assert stats.chisquare(counts).pvalue > 0.01
    pairs = np.unique([f"{a[0]} {b[0]}" for a, b in zip(drawn[::2], drawn[1::2], strict=True)], return_counts=True)
    assert stats.chisquare(pairs[1]).pvalue > 0.01, "the second does not depend on the first"


def test_one_generator_state_gives_one_picture():
    first, second = picture_of(1), picture_of(1)
    randaugment(first, 3, 0.5, np.random.default_rng(5))
    randaugment(second, 3, 0.5, np.random.default_rng(5))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, picture_of(1))
