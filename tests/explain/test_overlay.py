"""Overlays and sheets."""

from __future__ import annotations

import numpy as np

from drawing import photo
from tellapart.explain.overlay import overlay, sheet


def test_cold_places_are_the_grey_picture_and_hot_ones_are_coloured():
    picture = photo(1, (80, 60))
    heat = np.zeros((60, 80), np.float32)
    heat[:, 40:] = 1
    shown = overlay(picture, heat)
    assert (shown.shape, shown.dtype) == ((60, 80, 3), np.uint8)
    grey = picture @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(shown[:, :38], grey[:, :38, None].repeat(3, axis=2), atol=2)
    red, green, blue = shown[:, 45:].reshape(-1, 3).mean(axis=0)
    assert red > blue + 20
    assert green > blue + 10


def test_small_maps_are_enlarged_and_wild_values_cut():
    picture = photo(2, (40, 30))
    np.testing.assert_array_equal(
        overlay(picture, np.full((2, 3), 9, np.float32)), overlay(picture, np.ones((30, 40), np.float32))
    )


def test_a_sheet_holds_each_picture_unstretched_with_its_text():
    red = np.zeros((20, 40, 3), np.uint8)
    red[..., 0] = 200
    page = sheet(
        [[(red, "wide"), (red.swapaxes(0, 1), "a name that is far too long for its cell")], [(red, "é")]], cell_px=100
    )
    assert page.shape[2] == 3
    found = (page[..., 0] == 200) & (page[..., 1] == 0)
    rows, columns = np.nonzero(found[:110, :106])
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (50, 100)
    assert found.sum() == 3 * 50 * 100
    assert (page[110:125, :100] < 128).any(), "the text"
