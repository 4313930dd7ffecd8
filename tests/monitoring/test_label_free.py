"""What is said of photos without labels is near the truth where its assumption holds, and says how near."""

from __future__ import annotations

import numpy as np
import pytest

from tellapart.correctness import learn_correctness
from tellapart.monitoring.label_free import estimate_accuracy, estimate_shares


def photos(rng: np.random.Generator, shares: list[float], count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities and classes: the answer is drawn from the probabilities themselves."""
    true = rng.choice(len(shares), count, p=shares)
    seen = np.eye(len(shares))[true] / noise**2 + rng.normal(size=(count, len(shares))) / noise
    logits = seen + np.log(shares)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True), true


def right_at(amount: np.ndarray | float) -> np.ndarray | float:
    return 1 / (1 + np.exp(6 * amount - 3))


def damaged(rng: np.random.Generator, count: int, damage: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities, similarities and what is right, of a network that stays sure of damaged photos.

    Damage, from 0 to 1 and any where it is None, takes photos away from the known ones and makes answers wrong; how
    sure the network is tells right from wrong, but hardly falls.
    """
    amount = rng.random(count) if damage is None else np.full(count, damage)
    is_right = rng.random(count) < right_at(amount)
    sure = np.clip(rng.normal(0.92, 0.04, count) - 0.03 * ~is_right, 0.55, 0.999)
    similarity = 0.9 - 0.5 * amount + rng.normal(0, 0.02, count)
    return np.stack([sure, 1 - sure], axis=1), similarity, is_right


@pytest.mark.slow
def test_accuracy_is_estimated_where_photos_leave_those_that_are_known_and_a_network_stays_sure():
    rng, covered, errors = np.random.default_rng(0), 0, []
    for number in range(10):
        model = learn_correctness(*damaged(rng, 600, None), np.arange(600) // 2, seed=number)
        for damage in (0.0, 0.3, 0.7):
            came, similarity, is_right = damaged(rng, 500, damage)
            estimate = estimate_accuracy(model, came, similarity)
            errors.append(abs(estimate.value - is_right.mean()))
            covered += estimate.interval.low <= right_at(damage) <= estimate.interval.high
            assert came.max(axis=1).mean() > 0.85, "confidence alone says nothing"
    assert np.mean(errors) < 0.03
    # Similarities are seen with an error, which draws the ends towards the middle: a little below 95 %.
    assert covered >= 24, covered
    with pytest.raises(ValueError, match="no photos"):
        estimate_accuracy(model, came[:0], similarity[:0])


def test_nothing_is_learned_where_all_answers_are_alike_and_probabilities_of_0_and_1_are_no_trouble():
    came, similarity, is_right = damaged(np.random.default_rng(1), 50, None)
    assert learn_correctness(came, similarity, np.ones(50, bool), np.arange(50)) is None
    assert learn_correctness(came, similarity, np.zeros(50, bool), np.arange(50)) is None
    came[::3] = [1.0, 0.0]
    model = learn_correctness(came, similarity, is_right, np.arange(50))
    assert np.isfinite(model.coefficients).all()
    assert np.isfinite(model.mean_with_redraws(came, similarity)[1]).all()


def test_shares_of_classes_are_found_behind_their_confusions():
    """Of 100 photos of either class 80 are named rightly; then three of four photos are of the first."""
    known = np.repeat([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]], [80, 20, 80, 20], axis=0)
    true = np.repeat([0, 1], 100)
    came = np.repeat([[0.9, 0.1], [0.1, 0.9]], [650, 350], axis=0)  # 0.75 · 0.8 + 0.25 · 0.2
    shares = estimate_shares(known, true, came)
    np.testing.assert_allclose(shares.now, [0.75, 0.25], atol=1e-3)
    assert shares.low[0] < 0.75 < shares.high[0]
    assert shares.changed.tolist() == [0, 1]
    assert estimate_shares(known, np.repeat([0, 1], [198, 2]), came) is None, "a class that is hardly known"
    assert estimate_shares(known, true, came[:0]) is None


def test_classes_that_have_not_changed_are_seldom_called_changed_and_those_that_have_are():
    rng, alarms, found = np.random.default_rng(1), 0, 0
    for _ in range(60):
        known, true = photos(rng, [0.5, 0.3, 0.2], 600, 0.5)
        same, _ = photos(rng, [0.5, 0.3, 0.2], 500, 0.5)
        alarms += len(estimate_shares(known, true, same).changed) > 0
    for _ in range(10):
        known, true = photos(rng, [0.5, 0.3, 0.2], 600, 0.5)
        # The network is the old one: it expects the old shares.
        came, numbers = photos(rng, [0.5, 0.3, 0.2], 4000, 0.5)
        kept = rng.random(4000) < np.array([0.2, 0.3, 1.0])[numbers]
        shares = estimate_shares(known, true, came[kept])
        found += 2 in shares.changed
        np.testing.assert_allclose(shares.now, np.bincount(numbers[kept], minlength=3) / kept.sum(), atol=0.08)
    assert alarms <= 6, "one in twenty"
    assert found == 10
