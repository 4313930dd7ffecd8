"""Planted wrong labels are found."""

from __future__ import annotations

import numpy as np
import pytest

from tellapart.errors import InputError
from tellapart.evaluation.labels import _PENALTIES, _asked, out_of_sample, suspected_labels


def clusters(count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 3, count)
    return (3 * np.eye(3)[true] + rng.normal(0, 0.7, (count, 3))).astype(np.float32), true


def test_planted_errors_come_first():
    features, true = clusters()
    planted = np.arange(0, 600, 33)
    given = true.copy()
    given[planted] = (true[planted] + 1) % 3
    learned = np.eye(3)[given].astype(np.float32)  # a network that knows each label it was trained on by heart
    trained_on = np.arange(600) % 10 != 0
    softmax = np.exp(features) / np.exp(features).sum(axis=1, keepdims=True)
    probabilities = np.where(trained_on[:, None], learned, softmax)
    found = suspected_labels(given, out_of_sample(features, given, probabilities, trained_on, np.arange(600)))
    first = set(found["position"][: len(planted)])
    assert len(first & set(planted)) >= 0.9 * len(planted)
    top = found[found["position"].isin(planted)]
    assert (top["suggested"].to_numpy() == true[top["position"]]).mean() > 0.9
    assert found["suspected"][: len(planted)].mean() > 0.9
    assert found["suspected"].mean() < 0.08


def test_copies_do_not_vouch_for_each_other():
    """Two copies with the same wrong label: in another fold the copy would confirm it."""
    features, true = clusters(300)
    features[1] = features[0]
    given = true.copy()
    given[:2] = (true[0] + 1) % 3
    units = np.arange(300)
    units[1] = 0
    everything = np.ones(300, bool)
    found = out_of_sample(features, given, np.eye(3)[given], everything, units)
    assert (found[:2].argmax(axis=1) == true[0]).all()


def test_too_few_photos_to_be_divided_are_said_to_be():
    features, true = clusters(8)
    everything = np.ones(8, bool)
    with pytest.raises(InputError, match="Too few training photos"):
        out_of_sample(features, np.arange(8) % 3, np.eye(3)[true], everything, np.arange(8))
    features, _ = clusters(40)
    given = np.repeat([0, 1], [35, 5])
    units = np.concatenate([np.arange(35), np.full(5, 99)])  # the second class in one burst
    with pytest.raises(InputError, match="All training photos of a class are in one group"):
        out_of_sample(features, given, np.eye(2)[given], np.ones(40, bool), units)


def test_a_class_without_photos_is_no_hindrance():
    """Its column may still be suggested."""
    features, true = clusters()
    probabilities = np.exp(features) / np.exp(features).sum(axis=1, keepdims=True)
    given = np.minimum(true, 1)  # photos of the third class are filed under the second
    found = suspected_labels(given, probabilities.astype(np.float64))
    wrong = set(np.flatnonzero(true == 2))
    assert len(wrong & set(found["position"][: len(wrong)])) > 0.8 * len(wrong)
    assert (found["suggested"][:20] == 2).all()


def test_the_penalty_follows_the_photos():
    """100 features that say nothing beside three that do, then none: strong and weak penalties each have their turn."""
    rng, chosen = np.random.default_rng(0), []
    for useless in (100, 0):
        features, true = clusters(400)
        features = np.concatenate([features, rng.normal(size=(400, useless)).astype(np.float32)], axis=1)
        given = np.where(rng.random(400) < 0.1, (true + 1) % 3, true) if useless else true
        found = out_of_sample(features, given, np.eye(3)[given], np.ones(400, bool), np.arange(400))
        chosen.append(found[np.arange(400), true].mean())
        alone = [
            -np.log(np.maximum(_asked(features, given, *_half(), penalty, 3)[np.arange(200), given[200:]], 1e-9)).mean()
            for penalty in (_PENALTIES[0], _PENALTIES[-1])
        ]
        assert (alone[0] < alone[1]) == bool(useless), "the photos do differ in what they want"
    assert chosen[1] > 0.95
    assert chosen[0] > 0.7


def _half() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(200), np.arange(200, 400)
