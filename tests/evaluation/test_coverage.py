"""What 95 % intervals cover, in worlds whose truth is known; for many more: benchmarks/interval_coverage.py."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tellapart.evaluation.averages import averages, count
from tellapart.evaluation.calibration import calibration
from tellapart.evaluation.calibration_error import bin_of, calibration_error
from tellapart.evaluation.intervals import share_interval, skewed_mean_interval
from tellapart.evaluation.metrics import classification_metrics, photo_losses
from tellapart.evaluation.ranking import average_precision, roc_auc


def world(seed: int, prior: list[float], apart: float, sharpness: float = 1.0, pool: int = 60_000):
    """Return (true, probabilities) of endless photos of normal features; what is said is sharpened Bayes' rule."""
    rng = np.random.default_rng(seed)
    true = rng.choice(len(prior), pool, p=prior)
    features = apart * np.eye(len(prior))[true] + rng.normal(size=(pool, len(prior)))
    logits = apart * features + np.log(prior)
    said = np.exp(sharpness * (logits - logits.max(1, keepdims=True)))
    return true, said / said.sum(1, keepdims=True)


def held(intervals: list, truth: float, at_least: float = 0.95, slack: float = 0.0) -> None:
    """Fail where fewer hold the truth, or many more, than 95 in 100 by the noise of so many draws (3 deviations)."""
    share = np.mean([low <= truth <= high for low, high in intervals])
    noise = 3 * np.sqrt(0.05 * 0.95 / len(intervals)) + slack
    assert at_least - noise <= share <= max(at_least + noise, 0.95 + noise), f"{share:.3f} of {len(intervals)}"


SMALL = [0.5, 0.2, 0.15, 0.1, 0.05]


def test_averages_and_classes_with_few_photos():
    """150 photos of five classes, of which one has eight."""
    true, probabilities = world(0, SMALL, 2.2)
    predicted, rng, names = probabilities.argmax(1), np.random.default_rng(1), list("abcde")
    expected = averages(count(true, predicted, 5))
    smallest = averages(count((true == 4) + 0, (predicted == 4) + 0, 2))  # of two classes; its own F1 is the second
    found: dict[str, list] = {}
    for _ in range(500):
        rows = rng.integers(0, len(true), 150)
        ends = classification_metrics(true[rows], probabilities[rows], names)["intervals"]
        for name in (*expected, "loss"):
            found.setdefault(name, []).append(ends[name])
        found.setdefault("f1 of e", []).append(ends["per_class"]["e"]["f1"])
    for name, truth in expected.items():
        held(found[name], truth, slack=0.01)
    held(found["loss"], float(photo_losses(true, probabilities).mean()), slack=0.01)
    hits = ((true == 4) & (predicted == 4)).sum()
    truth = 2 * hits / ((true == 4).sum() + (predicted == 4).sum())
    held(found["f1 of e"], truth, slack=0.02)
    assert smallest["f1_macro"] > truth


def test_a_perfect_score_is_not_a_certain_one():
    """120 photos without a mistake: the rule of three allows one in 40 wrong."""
    true = np.arange(120) % 4
    found = classification_metrics(true, 0.01 + 0.96 * np.eye(4)[true], list("abcd"))
    for name in ("f1_macro", "f1_weighted", "precision_macro", "recall_macro", "recall_weighted"):
        low, high = found["intervals"][name]
        assert (found[name], high) == (pytest.approx(1), pytest.approx(1))
        assert 0.9 < low < 1 - 1 / 120, name
    low, high = found["intervals"]["per_class"]["a"]["f1"]
    assert 0.7 < low < 0.95
    assert high == 1


@pytest.mark.parametrize("photos", [100, 800])
@pytest.mark.parametrize("sharpness", [0.5, 2.5])
def test_the_calibration_error_of_a_network_that_is_off(sharpness: float, photos: int):
    true, probabilities = world(2, [0.4, 0.3, 0.2, 0.1], 1.5, sharpness)
    sure, right = probabilities.max(1), probabilities.argmax(1) == true
    truth = float(np.abs(np.bincount(bin_of(sure, 15), right - sure, minlength=15)).sum() / len(sure))
    assert truth > 0.05
    rng, ends, values = np.random.default_rng(3), [], []
    for _ in range(80):
        rows = rng.integers(0, len(sure), photos)
        found = calibration_error(right[rows], sure[rows])
        ends.append((found.interval.low, found.interval.high))
        values.append(found.value)
        assert found.interval.low <= found.value <= found.interval.high
    held(ends, truth, slack=0.01)
    assert np.mean(values) == pytest.approx(truth, abs=0.02), "not biased"


@pytest.mark.parametrize("photos", [100, 800])
def test_the_calibration_error_of_a_network_that_is_right_as_often_as_it_says(photos: int):
    """The truth, 0, is held at least 95 of 100 times; a percentile bootstrap held it never."""
    _, probabilities = world(4, [0.4, 0.3, 0.2, 0.1], 1.5)
    rng, ends, values, plain = np.random.default_rng(5), [], [], []
    for _ in range(60):
        said = probabilities[rng.integers(0, len(probabilities), photos)]
        true = (said.cumsum(1) < rng.random((photos, 1))).sum(1).clip(0, 3)
        found = calibration(true, said)
        ends.append((found.intervals["ece"].low, found.intervals["ece"].high))
        values.append(found.ece)
        plain.append(found.ece_plain)
    assert np.mean([low == 0 for low, _ in ends]) >= 0.95
    assert np.median(values) < 0.6 * np.median(plain)
    assert np.mean([high for _, high in ends]) > np.mean(plain), "what was seen by chance could be true"


@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_brier_score_and_loss_of_a_good_network(sharpness: float):
    """97 of 100 right: a few photos make up most of the loss, and Student's t held 80 to 92 of 100."""
    true, probabilities = world(6, [0.5, 0.3, 0.2], 3.2, sharpness)
    brier = ((probabilities - np.eye(3)[true]) ** 2).sum(1)
    losses, rng = photo_losses(true, probabilities), np.random.default_rng(7)
    found: dict[str, list] = {"brier": [], "loss": []}
    for _ in range(800):
        rows = rng.integers(0, len(true), 300)
        for name, values, top in (("brier", brier, 2.0), ("loss", losses, 16.2)):
            ends = skewed_mean_interval(values[rows], bounds=(0, top))
            found[name].append((ends.low, ends.high))
    held(found["brier"], float(brier.mean()), slack=0.015)
    held(found["loss"], float(losses.mean()), slack=0.015)


@pytest.mark.parametrize("apart", [1.5, 3.0])
def test_average_precision_and_areas_of_a_rare_class(apart: float):
    true, probabilities = world(8, [0.9, 0.1], apart)
    positive, score = true == 1, probabilities[:, 1]
    truth, rng, ends = average_precision_score(positive, score), np.random.default_rng(9), []
    area_truth, areas = roc_auc(positive, score)[0], []
    for _ in range(500):
        rows = rng.integers(0, len(true), 250)
        value, interval = average_precision(positive[rows], score[rows])
        assert value == pytest.approx(average_precision_score(positive[rows], score[rows]), abs=1e-9)
        ends.append((interval.low, interval.high))
        interval = roc_auc(positive[rows], score[rows])[1]
        areas.append((interval.low, interval.high))
    held(ends, truth, slack=0.015)
    held(areas, area_truth, slack=0.02)


# Photos in groups -----------------------------------------------------------------------------------------


def grouped(rng: np.random.Generator, num_groups: int, share: float = 0.85):
    """Return (right, groups): groups of one to six photos, right together seven times of eight."""
    groups = np.repeat(np.arange(num_groups), rng.choice([1, 1, 2, 4, 6], num_groups))
    together, alone = rng.random(num_groups)[groups], rng.random(len(groups))
    return np.where((rng.random(num_groups) < 7 / 8)[groups], together, alone) < share, groups


@pytest.mark.parametrize("num_groups", [40, 150])
def test_shares_and_means_of_photos_in_groups(num_groups: int):
    """As single photos they held 70 of 100."""
    rng, shares, means, naive = np.random.default_rng(10), [], [], []
    for _ in range(800):
        right, groups = grouped(rng, num_groups)
        ends, mean = share_interval(right, groups), skewed_mean_interval(right + 0.0, groups, bounds=(0, 1))
        shares.append((ends.low, ends.high))
        means.append((mean.low, mean.high))
        ends = share_interval(right)
        naive.append((ends.low, ends.high))
    held(shares, 0.85, slack=0.01)
    held(means, 0.85, slack=0.02)
    assert np.mean([low <= 0.85 <= high for low, high in naive]) < 0.85


def test_metrics_of_photos_in_groups():
    """Six near copies of each of 60 photos are worth about 60 photos, in every metric."""
    true, probabilities = world(11, SMALL, 2.2)
    rng, found = np.random.default_rng(12), {}
    expected = averages(count(true, probabilities.argmax(1), 5))
    expected["loss"] = float(photo_losses(true, probabilities).mean())
    for _ in range(300):
        rows = np.repeat(rng.integers(0, len(true), 60), 6)
        ends = classification_metrics(true[rows], probabilities[rows], list("abcde"), np.arange(360) // 6)["intervals"]
        for name in expected:
            found.setdefault(name, []).append(ends[name])
    for name, truth in expected.items():
        share = np.mean([low <= truth <= high for low, high in found[name]])
        assert share > 0.90, (name, share)


def test_groups_of_single_photos_change_nothing():
    true, probabilities = world(13, SMALL, 2.0, pool=300)
    alone = np.random.default_rng(14).permutation(300)
    plain = classification_metrics(true, probabilities, list("abcde"))
    assert classification_metrics(true, probabilities, list("abcde"), alone) == plain
    assert plain["num_groups"] == 300
    assert repr(calibration(true, probabilities, alone)) == repr(calibration(true, probabilities))  # has NaN
    assert roc_auc(true == 0, probabilities[:, 0], alone) == roc_auc(true == 0, probabilities[:, 0])
    assert average_precision(true == 0, probabilities[:, 0], alone) == average_precision(true == 0, probabilities[:, 0])


def test_one_group_is_worth_one_photo():
    right, one = np.array([True] * 30), np.zeros(30, int)
    assert share_interval(right, one) == share_interval(right[:1])
    assert skewed_mean_interval(right + 0.0, one, bounds=(0, 1)).low == 0
