"""The paired statistics against SciPy and scikit-learn, by hand, and by what they promise over many data sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, log_loss

from tellapart.evaluation.paired import (
    difference_interval,
    differences,
    f1_difference,
    grouped_difference,
    grouped_mcnemar,
    holm,
    mcnemar,
    photo_losses,
)


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


def four_classes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])
    return true, *(rng.dirichlet(np.ones(4), count) * 0.6 + 0.4 * np.eye(4)[true] for _ in range(2))


def test_what_is_gained_lies_inside_and_a_model_has_gained_nothing_on_itself():
    true, first, second = four_classes(300)
    found = differences(true, first, second)
    gained = {
        "accuracy": accuracy_score(true, second.argmax(1)) - accuracy_score(true, first.argmax(1)),
        "f1_macro": np.subtract(*(f1_score(true, said.argmax(1), average="macro") for said in (second, first))),
        "loss": log_loss(true, second, labels=range(4)) - log_loss(true, first, labels=range(4)),
    }
    for name, value in gained.items():
        assert found[name].low < value < found[name].high, name
    turned = differences(true, second, first)
    for name, ends in found.items():
        assert (turned[name].low, turned[name].high) == pytest.approx((-ends.high, -ends.low)), name
    itself = differences(true, first, first)
    assert (itself["loss"].low, itself["loss"].high) == (0, 0)
    for name in ("accuracy", "f1_macro"):
        assert itself[name].low == pytest.approx(-itself[name].high), name
        assert 0 < itself[name].high < 0.05, "300 photos do not prove two models equal"


def test_pairing_makes_intervals_narrow():
    true, first, other = four_classes(300)
    second = first.copy()
    second[:3] = np.eye(4)[true[:3]]  # the same model, but for three photos
    near, far = differences(true, first, second), differences(true, first, other)
    for name, ends in near.items():
        assert ends.high - ends.low < 0.6 * (far[name].high - far[name].low), name
    assert near["loss"].high <= 0


def test_perfect_models_have_as_much_room_as_their_own_intervals():
    true = np.repeat(np.arange(3), 40)
    ends = f1_difference(true, true, true, 3)
    assert ends.low == pytest.approx(-ends.high)
    assert 0.02 < ends.high < 0.1


def test_intervals_of_the_difference_cover_it_95_times_in_100():
    """300 data sets of 400 photos; the truths of F1 and loss are taken from 400,000 photos."""
    rng = np.random.default_rng(3)

    def photos(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        true = rng.choice(3, count, p=[0.6, 0.3, 0.1])
        hard = rng.normal(size=(count, 3))
        logits = (np.eye(3)[true] * 3 + hard + 0.4 * rng.normal(size=(count, 3)) for _ in range(2))
        first, second = (np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in logits)
        return true, first, second**0.7 / (second**0.7).sum(1, keepdims=True)

    true, *both = photos(400_000)
    macro = [f1_score(true, said.argmax(1), average="macro") for said in both]
    losses = [photo_losses(true, said).mean() for said in both]
    truth = {"accuracy": 0.0, "f1_macro": macro[1] - macro[0], "loss": losses[1] - losses[0]}
    covered = dict.fromkeys(truth, 0)
    for _ in range(300):
        for name, ends in differences(*photos(400)).items():
            covered[name] += ends.low <= truth[name] <= ends.high
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


def test_copies_of_all_photos_change_nothing_where_they_are_known_for_groups():
    true, first, second = four_classes(200)
    plain = differences(true, first, second)
    assert differences(true, first, second, np.arange(200)) == plain
    six = [np.repeat(each, 6, axis=0) for each in (true, first, second)]
    copies, single = differences(*six, np.repeat(np.arange(200), 6)), differences(*six)
    for name, ends in plain.items():
        width = ends.high - ends.low
        assert copies[name].high - copies[name].low == pytest.approx(width, rel=0.1), name
        assert single[name].high - single[name].low < 0.6 * width, name
