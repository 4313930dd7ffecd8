"""Photos of no known class: by hand, and what is promised of known ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tellapart.errors import InputError
from tellapart.unknown import REFUSED, UnknownDetector, condensed, decide, fit_detector, load_detector


def by_hand() -> UnknownDetector:
    """Return references along the axes, and one on the diagonal of the first two: (0.6, 0.8)."""
    references = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float16)
    return UnknownDetector(references, np.array([0, 0, 2]), 0.9, 0.05, 40)


def test_the_similarity_is_the_largest_cosine_by_hand(tmp_path: Path):
    detector = by_hand()
    photos = np.array([[2, 0, 0], [0, 5, 0], [3, 4, 0], [0, -1, 1], [0, 0, 0]], np.float32)
    expected = [1.0, 0.8, 1.0, 1 / np.sqrt(2), 0.0]
    np.testing.assert_allclose(detector.similarity(photos), expected, atol=1e-3)
    known, cosines = detector.similarity_by_class(photos)
    assert known.tolist() == [0, 2]
    np.testing.assert_allclose(cosines[:, 1], [0, 0, 0, 1 / np.sqrt(2), 0], atol=1e-3)
    np.testing.assert_array_equal(cosines.max(axis=1), detector.similarity(photos))
    assert detector.is_unknown(detector.similarity(photos)).tolist() == [False, True, False, True, True]
    assert detector.is_unknown(np.array([np.nan, 0.9, 0.89], np.float32)).tolist() == [True, False, True]
    detector.save(tmp_path / "unknown.npz")
    again = load_detector(tmp_path / "unknown.npz")
    assert again is not None
    np.testing.assert_array_equal(again.similarity(photos), detector.similarity(photos))
    assert (again.threshold, again.refused, again.num_held_out) == (0.9, 0.05, 40)


def test_what_cannot_tell_calls_nothing_unknown(tmp_path: Path):
    assert decide(None, np.ones((2, 3), np.float32), 2) == decide(by_hand(), None, 2) == [(False, None)] * 2
    assert decide(by_hand(), np.array([[0, 1, 0]], np.float32), 1)[0] == (True, pytest.approx(0.8, abs=1e-3))
    assert load_detector(tmp_path / "nowhere.npz") is None
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"bad\.npz cannot be read"):
        load_detector(tmp_path / "bad.npz")


@pytest.mark.parametrize(("count", "may"), [(19, 0), (38, 0), (39, 1), (99, 4), (100, 4), (119, 5)])
def test_of_few_held_out_photos_fewer_are_refused_than_may_be(count: int, may: int):
    """Of n photos the (k - 1) below the threshold, k = 5 % of n + 1 rounded down: by hand."""
    random = np.random.default_rng(count)
    learned, held_out = (random.normal(size=(size, 8)).astype(np.float32) for size in (50, count))
    detector = fit_detector(learned, np.arange(50) % 2, held_out)
    assert detector.is_unknown(detector.similarity(held_out)).sum() == may


def test_new_known_photos_are_refused_as_often_as_promised():
    """On average over many validation sets: exactly k / (n + 1), where photos are drawn alike."""
    random, shares = np.random.default_rng(7), []
    learned, new = (random.normal(size=(count, 6)).astype(np.float32) for count in (60, 2000))
    references = fit_detector(learned, np.zeros(60, np.int64), learned)
    for _ in range(300):
        held_out = random.normal(size=(30, 6)).astype(np.float32)
        detector = fit_detector(learned, np.zeros(60, np.int64), held_out)
        shares.append(detector.is_unknown(detector.similarity(new)).mean())
    assert np.mean(shares) == pytest.approx(1 / 31, abs=0.005)
    assert np.mean(shares) <= REFUSED
    np.testing.assert_array_equal(references.references, detector.references)


@pytest.mark.parametrize(("count", "said"), [(0, "no validation photos"), (18, "only 18 validation photos")])
def test_too_few_held_out_photos_give_no_decision_and_it_is_said_why(count: int, said: str):
    photos = np.ones((4, 3), np.float32)
    with pytest.raises(InputError, match=f"There are {said} to set a threshold on that refuses 5% .* takes 19"):
        fit_detector(photos, np.arange(4) % 2, np.ones((count, 3), np.float32))


def test_many_photos_become_the_means_of_their_clusters_and_few_stay():
    random = np.random.default_rng(0)
    centres = np.eye(4, 16)
    many = (np.repeat(centres, 500, axis=0) + random.normal(scale=0.02, size=(2000, 16))).astype(np.float32)
    few = -np.eye(2, 16).astype(np.float32)
    numbers = np.repeat([5, 1], [2000, 2])
    references, classes = condensed(np.concatenate([many, few]), numbers, most_bytes=2 * 16 * 2 * 40)
    assert classes.tolist() == [1] * 2 + [5] * 40
    np.testing.assert_array_equal(references[:2], few)
    np.testing.assert_allclose(np.linalg.norm(references.astype(np.float32), axis=1), 1, atol=2e-3)
    assert (references[2:].astype(np.float32) @ centres.T).max(axis=1).min() > 0.99
    again, _ = condensed(np.concatenate([many, few]), numbers, most_bytes=2 * 16 * 2 * 40)
    np.testing.assert_array_equal(again, references)
