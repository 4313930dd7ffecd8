"""What is said of photos without labels is near the truth where its assumption holds, and says how near."""

from __future__ import annotations

import numpy as np
import pytest

from tellapart.monitoring.label_free import estimate_accuracy, estimate_shares


def photos(rng: np.random.Generator, shares: list[float], count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities and classes: the answer is drawn from the probabilities themselves."""
    true = rng.choice(len(shares), count, p=shares)
    seen = np.eye(len(shares))[true] / noise**2 + rng.normal(size=(count, len(shares))) / noise
    logits = seen + np.log(shares)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True), true


@pytest.mark.parametrize("method", ["confidence", "confidence difference"])
def test_accuracy_is_estimated_where_photos_become_harder_and_its_interval_covers_it(method):
    """Probabilities that stay calibrated, which is what these two need."""
    rng, covered, apart = np.random.default_rng(0), 0, []
    many, classes = photos(rng, [0.25] * 4, 40_000, 0.8)
    right = float((many.argmax(axis=1) == classes).mean())
    for _ in range(30):
        known, true = photos(rng, [0.25] * 4, 800, 0.5)
        came, _ = photos(rng, [0.25] * 4, 500, 0.8)
        estimate = estimate_accuracy(known, true, came, method=method)
        apart.append(estimate.value - right)
        covered += estimate.interval.low <= right <= estimate.interval.high
        assert (known.argmax(axis=1) == true).mean() - right > 0.1, "they are harder"
    assert abs(np.mean(apart)) < 0.03
    assert covered >= 25


def test_thresholds_are_the_confidences_that_as_many_exceed_as_are_right():
    known = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    true = np.array([0, 0, 0, 1])  # three of four
    came = np.array([[0.61, 0.39], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    assert estimate_accuracy(known, true, came).value == 0.5
    assert estimate_accuracy(known, np.zeros(4, np.int64), came).value == 0.75, "all right: as sure as the least sure"
    assert estimate_accuracy(known, true, came, method="confidence").value == pytest.approx(came.max(axis=1).mean())
    differs = estimate_accuracy(known, true, came, method="confidence difference").value
    assert differs == pytest.approx(came.max(axis=1).mean() - known.max(axis=1).mean() + 0.75)
    with pytest.raises(ValueError, match="no photos"):
        estimate_accuracy(known, true, came[:0])


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
