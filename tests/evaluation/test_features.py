"""Features: they are what goes into the last dense layer, and the nearest of them are scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

from drawing import save
from tellapart.data.batches import clean_batch_size
from tellapart.data.cache import Pictures
from tellapart.errors import InputError
from tellapart.evaluation.features import features_and_probabilities, nearest_neighbours
from tellapart.files import sha256

RNG = np.random.default_rng(0)
PX = 16


def network() -> keras.Model:
    """The mean colour, a hidden dense layer of five, and three classes."""
    inputs = keras.Input((PX, PX, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.Dense(5, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(0.5)(x)  # must be idle
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="classes")(x))


def test_features_are_the_inputs_of_the_last_dense_layer_in_the_order_of_the_photos(tmp_path: Path):
    images = RNG.integers(0, 256, (clean_batch_size(PX) + 3, PX, PX, 3), np.uint8)  # more than one batch
    images[:, :, :, 0] //= np.arange(1, len(images) + 1, dtype=np.uint8)[:, None, None]  # each has another red
    paths = [save(tmp_path / f"{number}.png", image) for number, image in enumerate(images)]
    pictures = Pictures(paths, [sha256(path.read_bytes()) for path in paths], PX)
    model = network()
    features, probabilities = features_and_probabilities(model, pictures)

    (hidden, bias), (kernel, offset) = (model.get_layer(name).get_weights() for name in ("hidden", "classes"))
    expected = np.maximum(images.mean(axis=(1, 2)) / 255 @ hidden + bias, 0)
    assert (features.dtype, probabilities.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities, softmax(expected @ kernel + offset, axis=1), atol=1e-5)


def test_a_network_without_a_dense_layer_has_no_features(tmp_path: Path):
    inputs = keras.Input((PX, PX, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Softmax()(x), name="bare")
    with pytest.raises(InputError, match="'bare' has no Dense layer"):
        features_and_probabilities(model, Pictures([], [], PX))


def test_nearest_neighbours_are_scikit_learns():
    queries = RNG.normal(size=(2500, 8)).astype(np.float32)  # compared in blocks of 1,024
    references = RNG.normal(size=(60, 8)).astype(np.float32)
    distances, expected = NearestNeighbors(n_neighbors=4, metric="cosine").fit(references).kneighbors(queries)
    positions, cosines = nearest_neighbours(queries, references, 4)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-5)
    apart = np.diff(distances, axis=1).min(axis=1) > 1e-5  # elsewhere rounding decides the order
    assert apart.sum() > 2000
    np.testing.assert_array_equal(positions[apart], expected[apart])


def test_the_length_of_a_feature_vector_does_not_count():
    references = np.array([[100, 1], [0.01, 0.02], [-1, 0]], np.float32)
    positions, cosines = nearest_neighbours(np.array([[3, 6]], np.float32), references, 2)
    assert positions.tolist() == [[1, 0]]
    np.testing.assert_allclose(cosines, [[1, (3 * 100 + 6 * 1) / np.sqrt(45 * 10001)]], atol=1e-6)


def test_equally_near_photos_are_each_named_once():
    references = np.array([[0, 1], [2, 0], [5, 0], [0, -1], [1, 0], [1, 0]], np.float32)
    positions, cosines = nearest_neighbours(np.array([[1, 0], [0, 1]], np.float32), references, 5)
    assert set(positions[0, :4]) == {1, 2, 4, 5}
    assert positions[1, 0] == 0
    assert all(len(set(row)) == 5 for row in positions.tolist())
    np.testing.assert_allclose(cosines, [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("num_references", "expected"),
    [(0, [[], [], []]), (1, [[0], [0], [0]]), (2, [[1, 0], [1, 0], [0, 1]])],
)
def test_with_fewer_photos_than_asked_for_there_are_fewer(num_references: int, expected: list[list[int]]):
    references = np.array([[1, 0], [1, 1]], np.float32)[:num_references]
    positions, cosines = nearest_neighbours(np.array([[0, 1], [0, 3], [1, 0]], np.float32), references, 3)
    assert positions.tolist() == expected
    assert cosines.shape == (3, num_references)


def test_features_that_are_all_zero_are_near_to_nothing():
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert nearest_neighbours(zero, np.concatenate([one, zero]))[1].tolist() == [[0, 0]]
    assert nearest_neighbours(one, np.concatenate([zero, one]))[0].tolist() == [[1, 0]]
