"""Slices: a planted weakness is found, and chance is not mistaken for one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact

from tellapart.evaluation.slices import SMALLEST, slices


def photos(count: int = 800, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    properties = pd.DataFrame({
        "width": rng.integers(50, 500, count),
        "format": rng.choice(["jpeg", "png"], count),
        "grey": rng.random(count) < 0.2,
        "path": [f"{number}.jpg" for number in range(count)],
        "mode": "RGB",
    })  # fmt: skip
    return rng.random(count) < 0.9, properties


def test_a_planted_weakness_comes_first_and_only_it():
    correct, properties = photos()
    weak = (properties["format"] == "png").to_numpy() & (np.arange(800) % 3 == 0)
    found = slices(correct & ~weak, properties)
    assert (found[0].column, found[0].value) == ("format", "png")
    assert found[0].is_worse
    assert found[0].accuracy < found[0].interval.high
    assert not any(part.is_worse for part in found[1:])
    assert {part.column for part in found} == {"width", "format", "grey"}, "names and constants are no properties"
    assert sum(part.num_images for part in found if part.column == "width") == 800


def test_chance_alone_raises_no_alarm():
    """In 100 data sets without any weakness, about five may have a false alarm, not five in each."""
    alarms = sum(any(part.is_worse for part in slices(*photos(400, seed))) for seed in range(100))
    assert alarms <= 8


def test_corrected_p_values_by_hand():
    correct = np.array([True] * 45 + [False] * 15 + [True] * 60)
    properties = pd.DataFrame({"half": ["a"] * 60 + ["b"] * 60, "third": ["x", "y", "z"] * 40})
    found = {(part.column, part.value): part for part in slices(correct, properties)}
    halves = fisher_exact([[45, 15], [60, 0]]).pvalue
    assert found["half", "a"].p_value == pytest.approx(5 * halves)  # the smallest of five
    assert found["half", "b"].p_value == pytest.approx(5 * halves)
    assert found["third", "x"].p_value == 1.0


def test_small_slices_and_unknown_numbers_are_left_out():
    correct = np.ones(60, bool)
    properties = pd.DataFrame({
        "rare": ["a"] * (SMALLEST - 1) + ["b"] * (61 - SMALLEST),
        "sharpness": [np.nan] * 60,
        "same": [1.0] * 60,
    })  # fmt: skip
    assert [(part.column, part.value) for part in slices(correct, properties)] == [("rare", "b")]


def test_near_copies_in_a_slice_raise_no_alarm():
    """Each of 60 objects was taken eight times, on one of two days: without groups, chance alarms in most data sets."""
    alarms = naive = 0
    groups = np.repeat(np.arange(60), 8)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        correct = np.repeat(rng.random(60) < 0.8, 8)
        properties = pd.DataFrame({"day": np.repeat(rng.choice(["Mon", "Tue"], 60), 8)})
        alarms += any(part.is_worse for part in slices(correct, properties, groups))
        naive += any(part.is_worse for part in slices(correct, properties))
    assert alarms <= 5
    assert naive > 20
    correct, properties = photos()
    assert slices(correct, properties, np.arange(800)) == slices(correct, properties)
    weak = np.repeat(np.arange(60) < 30, 8)
    worst = slices(~weak | (groups % 3 == 0), pd.DataFrame({"day": np.where(weak, "Mon", "Tue")}), groups)[0]
    assert (worst.value, worst.is_worse) == ("Mon", True), "what groups cannot explain is still found"
