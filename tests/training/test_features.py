"""Features of photos: those from the cache are those that are computed, and only what it lacks is computed."""

from __future__ import annotations

import logging
from pathlib import Path

import keras
import numpy as np
import pytest

from held import Held, noise
from tellapart.models.build import build
from tellapart.settings import ConvNet
from tellapart.training import features
from tellapart.training.features import Extractor

LEVELS = noise(300, 16)


def network(seed: int = 0, image_px: int = 16) -> keras.Model:
    return build(ConvNet(width=0.25), 3, image_px, seed=seed)


class EnoughError(Exception):
    pass


class Counted:
    """A progress that knows how many photos went through the network in each call."""

    def __init__(self, most: int = 10_000) -> None:
        self.most, self.calls = most, []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.calls.append((done, total))
        if done >= self.most:
            raise EnoughError

    @property
    def computed(self) -> int:
        return self.calls[-1][0] if self.calls else 0


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor(network(), is_converted=False)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """What the layer before the head gives, by Keras' own `predict`."""
    model = network()
    return keras.Model(model.input, model.get_layer("average").output).predict(LEVELS, verbose=0)


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("features-*"))


def test_features_are_what_goes_into_the_head(extractor: Extractor, expected: np.ndarray):
    found = extractor(Held(LEVELS), None)
    assert (found.dtype, found.shape) == (np.float32, (300, extractor.num_features))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_from_the_cache_are_those_that_were_computed_bit_for_bit(tmp_path: Path, extractor: Extractor):
    """In another order, and under other names: what counts is the content."""
    first, again = Counted(), Counted()
    computed = extractor(Held(LEVELS), tmp_path, first)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(extractor(Held(LEVELS[order]), tmp_path, again), computed[order])
    assert (first.computed, again.computed) == (300, 0)


def test_a_part_in_the_cache_is_completed(tmp_path: Path, extractor: Extractor, expected: np.ndarray):
    """Photos of an earlier data set lie between new ones; the cache then holds all of them."""
    known, counted, last = np.arange(0, 300, 3), Counted(), Counted()
    extractor(Held(LEVELS[known]), tmp_path)
    np.testing.assert_allclose(extractor(Held(LEVELS), tmp_path, counted), expected, atol=1e-5)
    assert counted.calls[-1] == (200, 200)
    np.testing.assert_allclose(extractor(Held(LEVELS), tmp_path, last), expected, atol=1e-5)
    assert last.computed == 0


def test_what_an_interrupted_run_has_computed_is_not_computed_again(
    tmp_path: Path, extractor: Extractor, expected: np.ndarray
):
    with pytest.raises(EnoughError):
        extractor(Held(LEVELS), tmp_path, Counted(most=1))
    counted = Counted()
    np.testing.assert_allclose(extractor(Held(LEVELS), tmp_path, counted), expected, atol=1e-5)
    assert 0 < counted.computed < 300


def test_copies_of_a_photo_have_its_features(tmp_path: Path, extractor: Extractor, expected: np.ndarray):
    places = [4, 9, 4, 4, 7]
    for _ in range(2):
        np.testing.assert_allclose(extractor(Held(LEVELS[places]), tmp_path), expected[places], atol=1e-5)


def test_other_weights_another_size_and_another_network_have_folders_of_their_own(tmp_path: Path):
    models = [network(), network(seed=1), network(image_px=24), network()]
    models.append(keras.Model(models[0].input, models[0].output, name="other"))
    head = models[3].get_layer("probabilities")
    head.set_weights([weight + 1 for weight in head.get_weights()])
    counted = []
    for model in models:
        counted.append(Counted())
        extractor = Extractor(model, is_converted=False)
        extractor(Held(noise(5, model.input_shape[1])), tmp_path, counted[-1])
    assert [each.computed for each in counted] == [5, 5, 5, 0, 5], "the head has no part in features"
    assert len(folders(tmp_path)) == 4


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_cache(
    tmp_path: Path, extractor: Extractor, expected: np.ndarray, caplog: pytest.LogCaptureFixture
):
    """A file stands where the folder should be."""
    (tmp_path / "cache").write_text("")
    with caplog.at_level(logging.WARNING):
        found = extractor(Held(LEVELS), tmp_path / "cache")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "cannot be used" in caplog.text
    assert "features are computed anew" in caplog.text
    assert (tmp_path / "cache").read_text() == ""


def test_photos_that_another_decoder_read_have_features_of_their_own(
    tmp_path: Path, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
):
    """A new decoder gives other pixels for the same file."""
    monkeypatch.setattr(features, "DECODER_VERSION", features.DECODER_VERSION + 1)
    newer, counted = Extractor(network(), is_converted=False), Counted()
    for each in (extractor, newer):
        counted = Counted()
        each(Held(LEVELS[:5]), tmp_path, counted)
        assert counted.computed == 5
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("cached", [False, True])
def test_no_photos_have_no_features_and_no_others_are_computed(tmp_path: Path, extractor: Extractor, cached: bool):
    counted = Counted()
    found = extractor(Held(LEVELS[:0]), tmp_path if cached else None, counted)
    assert (found.dtype, found.shape) == (np.float32, (0, extractor.num_features))
    assert counted.computed == 0
