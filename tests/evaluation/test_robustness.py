"""Robustness of a predictor whose answers can be worked out, and quality ranges of photos that fail at a known one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tellapart.data.corrupt import CORRUPTIONS
from tellapart.data.quality import DIRECTIONS
from tellapart.evaluation.intervals import skewed_mean_interval
from tellapart.evaluation.robustness import QualityRange, Robustness, find_quality_range, robustness

LEVELS, TRUE = np.array([40, 100, 115, 200, 90]), np.array([0, 0, 0, 1, 1])
"""Plain grey pictures, and whether each is meant to be bright; the last one is not."""
LIMIT, PX, NETWORK_PX = 160, 40, 24


class Bright:
    """Names a picture bright (class 1) from a mean grey level of 160 on, and remembers what it saw and said."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []
        self.said: list[np.ndarray] = []

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        bright = pictures.mean(axis=(1, 2, 3)) > LIMIT
        self.seen.append(pictures)
        self.said.append(bright.astype(int))
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def measured() -> tuple[Robustness, Bright, list[tuple]]:
    pictures = np.repeat(LEVELS.astype(np.uint8), PX * PX * 3).reshape(-1, PX, PX, 3)
    pictures.flags.writeable = False
    predict, told = Bright(), []
    found = robustness(predict, pictures, TRUE, NETWORK_PX, progress=lambda *step: told.append(step))
    return found, predict, told


# Corruptions ----------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_every_corruption_is_measured_at_every_severity(measured):
    found, predict, told = measured
    runs = found.runs
    assert {(row.corruption, row.severity) for row in runs.itertuples()} == {
        (name, severity) for name in CORRUPTIONS for severity in range(1, 6)
    }
    assert len(runs) == 75
    assert all(row.group == CORRUPTIONS[row.corruption] for row in runs.itertuples())
    assert told == [("corrupting pictures", done, 75) for done in range(1, 76)]
    assert found.num_images == 5
    for pictures in predict.seen:
        assert (pictures.shape, pictures.dtype) == ((5, NETWORK_PX, NETWORK_PX, 3), np.uint8)


@pytest.mark.integration
def test_accuracy_under_each_corruption_by_hand(measured):
    """Brightness adds 25.5 a severity (of 255): 115 passes 160 at severity 2, 100 and 90 at 3, 40 at 5."""
    accuracy = {
        name: rows.sort_values("severity")["accuracy"].tolist() for name, rows in measured[0].runs.groupby("corruption")
    }
    assert measured[0].clean_accuracy == 4 / 5
    assert accuracy["brightness"] == pytest.approx([4 / 5, 3 / 5, 3 / 5, 3 / 5, 2 / 5])
    for name, group in CORRUPTIONS.items():
        if group != "weather":  # these leave the mean of a plain picture about where it is
            assert accuracy[name] == pytest.approx([4 / 5] * 5), name
    assert min(accuracy["fog"]) < 4 / 5, "fog is bright"


@pytest.mark.integration
def test_mean_corruption_error_and_its_interval_by_hand(measured):
    """Section 4.1 of Hendrycks & Dietterich 2019, from the table of accuracies; intervals over pictures, by SciPy."""
    found, predict, _ = measured
    wrong = np.array(predict.said) != TRUE  # as they are, then 75 runs
    assert wrong.shape == (76, 5)
    np.testing.assert_allclose(found.runs["accuracy"], 1 - wrong[1:].mean(axis=1))
    assert found.mean_corruption_error == pytest.approx(1 - found.runs["accuracy"].mean())
    assert found.relative == pytest.approx(found.mean_corruption_error - 1 / 5)
    of_each = wrong[1:].mean(axis=0)
    assert found.interval == skewed_mean_interval(of_each, bounds=(0, 1))
    assert found.relative_interval == skewed_mean_interval(of_each - wrong[0], bounds=(-1, 1))  # paired
    for row in found.runs.itertuples():
        ends = stats.binomtest(round(5 * row.accuracy), 5).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high))


@pytest.mark.integration
def test_each_picture_has_its_own_noise_and_has_it_again_next_time(measured):
    predict = Bright()
    pictures = np.full((2, PX, PX, 3), 100, np.uint8)
    robustness(predict, pictures, np.zeros(2, np.int64), NETWORK_PX)
    assert (predict.seen[0] == 100).all(), "as they are"
    first = predict.seen[1]  # gaussian_noise, severity 1
    assert not np.array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[1], measured[1].seen[1][1], err_msg="the second picture, of the same grey")


# Quality range -------------------------------------------------------------------------------------------------

ORDER = np.arange(1000)
MIXED = ORDER * 619 % 1000
"""The same numbers in an order that has nothing to do with `ORDER`."""


def qualities(**columns: np.ndarray) -> pd.DataFrame:
    """All measures; those that are not given say nothing of a photo."""
    return pd.DataFrame({name: MIXED.astype(float) for name in DIRECTIONS} | columns)


@pytest.mark.parametrize("measure", DIRECTIONS)
def test_the_range_ends_where_accuracy_falls_and_only_at_the_bad_end(measure: str):
    """Of 1,000 photos the 400 worst are named wrongly, half of them at each end where both are bad."""
    bad = DIRECTIONS[measure]
    wrong = {"low": ORDER < 400, "high": ORDER >= 600, "both": (ORDER < 200) | (ORDER >= 800)}[bad]
    found = find_quality_range(qualities(**{measure: ORDER / 10}), ~wrong)
    expected = {"low": (40, np.inf), "high": (-np.inf, 60), "both": (20, 80)}[bad]
    assert found.limits[measure] == pytest.approx(expected, abs=0.1)
    assert found.accuracy == 0.6
    inside = found.bins[found.bins["measure"] == measure].set_index("low")["inside"].to_numpy()
    kept = {"low": [0, 0, 1, 1, 1], "high": [1, 1, 1, 0, 0], "both": [0, 1, 1, 1, 0]}[bad]
    assert inside.astype(int).tolist() == kept
    for other in set(DIRECTIONS) - {measure}:  # nothing limits these but what was looked at, 1 of 100 left aside
        low = -np.inf if DIRECTIONS[other] == "high" else 9.99
        high = np.inf if DIRECTIONS[other] == "low" else 989.01
        assert found.limits[other] == pytest.approx((low, high)), other


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (ORDER >= 600, "sharp photos that are named wrongly are not too sharp"),
        ((ORDER >= 400) & (ORDER < 600), "a weakness in the middle is no end"),
        (MIXED < 100, "as many errors everywhere"),
        ((MIXED < 100) | (ORDER < 4), "chance explains that the least sharp 200 are a little worse"),
    ],
)
def test_what_does_not_fall_at_the_bad_end_sets_no_limit(wrong: np.ndarray, why: str):
    found = find_quality_range(qualities(sharpness=ORDER / 10, noise=99.9 - ORDER / 10), ~wrong)
    assert found.limits["sharpness"] == pytest.approx((0.999, np.inf)), why
    assert found.limits["noise"] == pytest.approx((-np.inf, 98.901)), why
    assert found.bins.loc[found.bins["measure"].isin(["sharpness", "noise"]), "inside"].all(), why


def test_the_ranges_hold_equal_numbers_and_their_accuracy_is_counted():
    correct = np.random.default_rng(0).random(1000) < 0.3 + 0.6 * ORDER / 1000
    bins = find_quality_range(qualities(contrast=ORDER / 10), correct).bins
    found = bins[bins["measure"] == "contrast"]
    expected = pd.Series(correct).groupby(pd.qcut(ORDER, 5, labels=False)).agg(["count", "sum", "mean"])
    assert found["num_images"].tolist() == expected["count"].tolist() == [200] * 5
    np.testing.assert_allclose(found["accuracy"], expected["mean"])
    np.testing.assert_allclose([*found["low"], found["high"].iloc[-1]], np.linspace(0, 99.9, 6))
    for row, hits in zip(found.itertuples(), expected["sum"], strict=True):
        ends = stats.binomtest(int(hits), 200).proportion_ci(method="wilson")
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx((ends.low, ends.high))


def test_a_measure_with_one_value_is_limited_to_it():
    """Where all photos are PNG, nothing is known of compressed ones."""
    found = find_quality_range(qualities(jpeg_quality=np.full(1000, 100.0)), MIXED >= 100)
    assert found.limits["jpeg_quality"] == (100, np.inf)
    (row,) = found.bins[found.bins["measure"] == "jpeg_quality"].itertuples()
    assert (row.num_images, row.accuracy, row.inside) == (1000, 0.9, True)


def test_photos_of_unknown_quality_are_left_out_but_count_for_the_accuracy():
    table, correct = qualities(sharpness=ORDER / 10), ORDER >= 400
    unknown = pd.DataFrame({name: [-1e6, 1e6] * 50 for name in DIRECTIONS}).assign(noise=np.nan)
    mixed = np.random.default_rng(0).permutation(1100)
    found = find_quality_range(
        pd.concat([table, unknown], ignore_index=True).iloc[mixed], np.append(correct, np.arange(100) < 50)[mixed]
    )
    expected = find_quality_range(table, correct)
    assert found.limits == expected.limits
    pd.testing.assert_frame_equal(found.bins, expected.bins)
    assert found.accuracy == pytest.approx((600 + 50) / 1100)


def test_photos_of_unknown_quality_do_not_make_the_others_look_bad():
    """Half of the known photos are classified correctly whatever their quality, so their quality limits nothing."""
    unknown = pd.DataFrame({name: np.full(1000, np.nan) for name in DIRECTIONS})
    known = qualities(brightness=ORDER / 10, noise=ORDER / 10)
    found = find_quality_range(
        pd.concat([known, unknown], ignore_index=True), np.append(MIXED % 2 == 0, np.ones(1000, bool))
    )
    assert found.limits["brightness"] == pytest.approx((0.999, 98.901))
    assert found.limits["noise"] == pytest.approx((-np.inf, 98.901))


def test_where_no_quality_is_known_nothing_is_limited():
    """The photos have been moved since the run, and are read from the cache."""
    found = find_quality_range(
        pd.DataFrame({name: [np.nan] * 4 for name in DIRECTIONS}), np.array([True, True, True, False])
    )
    assert found.accuracy == 0.75
    assert found.bins.empty
    assert found.outside(dict.fromkeys(DIRECTIONS, 50.0)) == []


def test_a_photo_is_outside_where_it_is_beyond_a_limit():
    found = QualityRange(
        {"sharpness": (5, np.inf), "noise": (-np.inf, 20), "brightness": (30, 220)}, pd.DataFrame(), 0.9
    )
    assert found.outside({"sharpness": 5, "noise": 20, "brightness": 220}) == []
    assert found.outside({"sharpness": 4.9, "noise": 3, "brightness": 29}) == ["sharpness", "brightness"]
    assert found.outside({"sharpness": 400, "noise": 20.1, "brightness": 221}) == ["noise", "brightness"]
