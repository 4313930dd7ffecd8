"""The paired statistics against SciPy and scikit-learn, by hand, and by what they promise over many data sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, log_loss

from tellapart.experiments.paired import (
    difference_interval,
    grouped_difference,
    grouped_mcnemar,
    holm,
    macro_f1,
    mcnemar,
    paired_bootstrap,
    photo_losses,
)
from tellapart.randomness import generator

RATES = np.array([0.87, 0.03, 0.04, 0.06])
"""Of photos that both got right, only the first, only the second, neither."""


def test_mcnemar_by_hand():
    assert mcnemar(0, 6) == pytest.approx(2 / 2**6)
    assert mcnemar(1, 4) == pytest.approx(2 * (1 + 5) / 2**5)
    assert mcnemar(2, 2) == 1
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 1), (3, 12), (12, 3), (80, 27), (400, 460), (7, 7)])
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second):
    expected = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_two_equally_good_models_are_told_apart_at_most_5_times_in_100():
    """400 pairs of 1,000 photos with flips enough that the exact test has little slack; 5 % would be 20."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(1_000, [0.80, 0.08, 0.08, 0.04], size=400)
    alarms = sum(mcnemar(int(first), int(second)) < 0.05 for _, first, second, _ in draws)
    assert 8 <= alarms <= 26  # the exact level there is 4.3 %; three standard deviations around it
    better = rng.multinomial(1_000, [0.80, 0.06, 0.10, 0.04], size=400)
    found = sum(mcnemar(int(first), int(second)) < 0.05 for _, first, second, _ in better)
    assert found > 320, "a difference of 4 points is found"


def test_holm_by_hand():
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.zeros(0)).tolist() == []


def three_classes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.choice(4, count, p=[0.6, 0.3, 0.1, 0.0])  # the last class does not occur, yet is named at times
    return true, *(rng.dirichlet(np.ones(4), count) * 0.6 + 0.4 * np.eye(4)[true] for _ in range(2))


def test_each_resample_is_as_scikit_learn_says():
    true, first, second = three_classes(120)
    counts = generator(7, "bootstrap of images").multinomial(120, np.full(120, 1 / 120), size=50)
    drawn: dict[str, list[float]] = {"accuracy": [], "f1_macro": [], "loss": []}
    for count in counts:
        photos = np.repeat(np.arange(120), count)
        one, two = ((true[photos], model[photos]) for model in (first, second))
        scores = [
            (
                accuracy_score(t, p.argmax(1)),
                f1_score(t, p.argmax(1), average="macro", zero_division=0),
                log_loss(t, p, labels=range(4)),
            )
            for t, p in (one, two)
        ]
        for name, before, after in zip(drawn, *scores, strict=True):
            drawn[name].append(after - before)
    found = paired_bootstrap(true, first, second, resamples=50, seed=7)
    for name, values in drawn.items():
        ends = found[name].low, found[name].high
        assert ends == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=1e-9), name
    once = np.ones((1, 120))
    expected = f1_score(true, first.argmax(1), average="macro", zero_division=0)
    assert macro_f1(once, true, first.argmax(1), 4) == pytest.approx(expected)
    assert photo_losses(true, first).mean() == pytest.approx(log_loss(true, first, labels=range(4)))


def test_the_seed_alone_decides_and_pairing_makes_intervals_narrow():
    true, first, _ = three_classes(300)
    second = first.copy()
    second[:3] = np.eye(4)[true[:3]]  # the same model, but for three photos
    found = paired_bootstrap(true, first, second, seed=1)
    assert found == paired_bootstrap(true, first, second, seed=1)
    assert found != paired_bootstrap(true, first, second, seed=2)
    assert found["accuracy"].high - found["accuracy"].low <= 0.03
    assert found["loss"].high <= 0


def test_intervals_of_the_difference_cover_it_95_times_in_100():
    """300 data sets of 400 photos, whose true difference is 1 point."""
    rng = np.random.default_rng(3)
    covered = {"bootstrap": 0, "Newcombe": 0}
    for _ in range(300):
        kinds = rng.choice(4, 400, p=RATES)
        true = np.zeros(400, np.int64)
        first, second = (np.eye(2)[np.where(np.isin(kinds, right), 0, 1)] for right in ([0, 1], [0, 2]))
        both, only_first, only_second, neither = map(int, np.bincount(kinds, minlength=4))
        found = {
            "bootstrap": paired_bootstrap(true, first, second, resamples=500)["accuracy"],
            "Newcombe": difference_interval(both, only_first, only_second, neither),
        }
        for name, interval in found.items():
            covered[name] += interval.low <= 0.01 <= interval.high
    for name, times in covered.items():
        assert times / 300 == pytest.approx(0.95, abs=0.035), name


def test_newcombes_interval_by_hand_and_at_its_ends():
    """Worked with the formulas of the paper: 36 both, 12 and 2 of one alone, none wrong for both, n = 50.

    Wilson: 48/50 0.8654 to 0.9890, 38/50 0.6259 to 0.8570; ad − bc = −24, so phi = −24 / √(48·2·38·12) = −0.1147.
    """
    found = difference_interval(36, 12, 2, 0)
    low = -0.2 - np.sqrt((0.76 - 0.6259) ** 2 + 2 * 0.1147 * (0.76 - 0.6259) * (0.9890 - 0.96) + (0.9890 - 0.96) ** 2)
    high = -0.2 + np.sqrt((0.8570 - 0.76) ** 2 + 2 * 0.1147 * (0.8570 - 0.76) * (0.96 - 0.8654) + (0.96 - 0.8654) ** 2)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)
    turned = difference_interval(36, 2, 12, 0)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    equal = difference_interval(27, 0, 0, 3)
    assert equal.low < 0 < equal.high, "30 photos without a flip do not prove two models equal"
    assert (difference_interval(0, 0, 0, 0).low, difference_interval(0, 0, 0, 0).high) == (-1, 1)
    assert difference_interval(20, 0, 0, 0).high < 0.2


# Photos in groups -----------------------------------------------------------------------------------------


def test_the_sign_flip_test_of_groups_by_hand():
    """Net differences of three groups: +2, +1, −1. Of eight ways to flip them, six lie as far from 0 as 2 does."""
    first = np.array([0, 0, 0, 1, 1, 1], bool)
    second = np.array([1, 1, 1, 0, 1, 1], bool)
    groups = np.array([5, 5, 7, 9, 9, 9])
    assert grouped_mcnemar(first, second, groups) == pytest.approx(6 / 8)
    assert grouped_mcnemar(first, second) == mcnemar(1, 3)
    assert grouped_mcnemar(first, second, np.arange(6)) == mcnemar(1, 3)


def test_near_copies_make_no_difference_out_of_chance():
    """80 objects, five photos each: as single photos two equal models differ 30 of 100 times, as groups at most 5."""
    rng, alarms, naive, held, plain = np.random.default_rng(8), 0, 0, 0, 0
    groups = np.repeat(np.arange(80), 5)
    for _ in range(400):
        first, second = (np.repeat(rng.random(80) < 0.8, 5) ^ (rng.random(400) < 0.05) for _ in range(2))
        alarms += grouped_mcnemar(first, second, groups) < 0.05
        naive += grouped_mcnemar(first, second) < 0.05
        ends, alone = grouped_difference(first, second, groups), grouped_difference(first, second)
        held += ends.low <= 0 <= ends.high
        plain += alone.low <= 0 <= alone.high
    assert alarms <= 0.05 * 400 + 3 * np.sqrt(0.05 * 0.95 * 400)
    assert naive > 80
    assert held / 400 == pytest.approx(0.95, abs=0.035)
    assert plain < 0.8 * 400


def test_a_bootstrap_of_groups_is_wider_and_of_single_photos_the_same():
    true, first, second = three_classes(200)
    plain = paired_bootstrap(true, first, second, resamples=200)
    assert paired_bootstrap(true, first, second, np.arange(200), resamples=200) == plain
    six = [np.repeat(each, 6, axis=0) for each in (true, first, second)]
    copies = paired_bootstrap(*six, np.repeat(np.arange(200), 6), resamples=200)
    for name, ends in plain.items():
        assert (copies[name].low, copies[name].high) == pytest.approx((ends.low, ends.high)), name
    single = paired_bootstrap(*six, resamples=200)["loss"]
    assert single.high - single.low < 0.6 * (plain["loss"].high - plain["loss"].low)
