"""Shortcuts: the alarm of predictors that look at the border or at the centre, and shares of heat by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tellapart.records import Interval
from tellapart.report.shortcuts import Shortcuts, background_of, centre_mask, shortcuts

PX = 32
BORDER, CENTRE = np.s_[:, :4], np.s_[:, 10:22, 10:22]
"""What the two predictors look at."""


def striped(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures with upright (class 0) or level (class 1) stripes, 0, 1, 0, 1, …; blurring leaves none."""
    true = np.arange(count) % 2
    lines = np.indices((PX, PX)) // 2 % 2 * 255
    images = np.where(true[:, None, None] == 1, lines[0], lines[1])
    return np.repeat(images[..., None], 3, axis=-1).astype(np.uint8), true


def looks_at(place):
    """Return a predictor that sees level stripes (class 1) or none (class 0) at one place and is blind elsewhere."""

    def predict(pictures: np.ndarray) -> np.ndarray:
        assert (pictures.dtype, pictures.shape[1:]) == (np.uint8, (PX, PX, 3))
        part = pictures[place].astype(float)
        level = np.abs(np.diff(part, axis=1)).mean(axis=(1, 2, 3)) > 40
        return np.stack([~level, level], axis=1).astype(np.float32)

    return predict


def no_heat(count: int) -> np.ndarray:
    return np.zeros((count, PX, PX), np.float32)


def test_a_predictor_that_looks_at_the_border_raises_the_alarm():
    pictures, true = striped(40)
    found = shortcuts(looks_at(BORDER), pictures, true, no_heat(40))
    assert (found.accuracy, found.without_centre[0], found.only_centre[0]) == (1, 1, 0.5)
    assert found.alarm


def test_a_predictor_that_looks_at_the_centre_raises_none():
    pictures, true = striped(40)
    found = shortcuts(looks_at(CENTRE), pictures, true, no_heat(40))
    assert (found.accuracy, found.without_centre[0], found.only_centre[0]) == (1, 0.5, 1)
    assert not found.alarm


def test_a_few_photos_are_no_reason_for_an_alarm():
    pictures, true = striped(4)
    found = shortcuts(looks_at(BORDER), pictures, true, no_heat(4))
    assert found.without_centre[0] == 1
    assert not found.alarm


def test_accuracies_have_wilsons_intervals_and_chance_is_the_most_frequent_class():
    pictures, _ = striped(10)
    true = np.array([0, 1, 0, 1, 0, 1, 0, 0, 0, 0])  # two of ten are labelled wrongly
    found = shortcuts(looks_at(CENTRE), pictures, true, no_heat(10))
    assert (found.num_images, found.chance, found.accuracy) == (10, 0.7, 0.8)
    for (share, interval), hits in ((found.without_centre, 7), (found.only_centre, 8)):
        ends = stats.binomtest(hits, 10).proportion_ci(method="wilson")
        assert share == hits / 10
        assert (interval.low, interval.high) == pytest.approx((ends.low, ends.high))


@pytest.mark.parametrize(
    ("accuracy", "low", "alarm"),
    [(0.9, 0.71, True), (0.9, 0.69, False), (0.5, 0.51, True), (0.5, 0.5, False), (0.3, 0.45, False)],
)
def test_the_alarm_needs_more_than_half_of_what_is_known_above_chance(accuracy: float, low: float, alarm: bool):
    """Chance is one half: of 0.9 the half above it is 0.7."""
    found = Shortcuts(0, 0, 0, accuracy, (0.95, Interval(low, 1)), (0.5, Interval(0, 1)), 0.5, 100)
    assert found.alarm is alarm


def test_the_share_of_heat_on_the_border_by_hand():
    """The centre of 32 px is the square from 5 to 27, which has 484 of the 1,024 pixels."""
    pictures, true = striped(5)
    heat = no_heat(5)
    heat[0, 0, 0] = 0.3  # all on the border
    heat[1, 16, 16] = 1  # none
    heat[2] = 0.7  # as much as there is border
    heat[3, 4, 16], heat[3, 5, 16] = 1, 3  # a pixel outside the centre, and one just inside
    found = shortcuts(looks_at(CENTRE), pictures, true, heat)  # the last map is empty
    assert found.heat_on_border == pytest.approx((1 + 0 + 540 / 1024 + 1 / 4 + 0) / 5)


@pytest.mark.parametrize(("side", "length"), [(7, 5), (32, 22), (224, 158)])
def test_the_centre_is_a_square_in_the_middle_with_half_of_the_area(side: int, length: int):
    mask = centre_mask(side)
    assert mask.sum() == length**2
    assert mask[(side - length) // 2 : (side + length) // 2, (side - length) // 2 : (side + length) // 2].all()
    assert length**2 / side**2 == pytest.approx(0.5, abs=0.03)


def test_a_thing_on_a_plain_ground_is_not_background_and_heat_on_it_is_not_on_the_background():
    thing = np.zeros((PX, PX), bool)
    thing[9:22, 11:25] = True
    picture = np.where(thing[..., None], (220, 180, 30), (40, 60, 200)).astype(np.uint8)
    np.testing.assert_array_equal(background_of(picture), ~thing)
    heat = np.stack([thing, ~thing, np.ones_like(thing)]).astype(np.float32)
    found = shortcuts(looks_at(CENTRE), np.stack([picture] * 3), np.array([0, 0, 1]), heat)
    area = 1 - 13 * 14 / PX**2
    assert found.background_area == pytest.approx(area)
    assert found.heat_on_background == pytest.approx((0 + 1 + area) / 3)


def test_of_a_picture_of_one_colour_the_edge_is_the_background():
    edge = np.ones((40, 60), bool)
    edge[2:-2, 2:-2] = False  # a twentieth of the shorter side
    np.testing.assert_array_equal(background_of(np.full((40, 60, 3), 90, np.uint8)), edge)
