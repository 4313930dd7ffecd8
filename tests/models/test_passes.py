"""The passes compute what NumPy computes in float64."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tellapart.models import passes

DTYPES = pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
CHANNELS = 6


def activations(dtype: type, *, side: int = 8, seed: int = 0) -> NDArray:
    """Noise, with areas where the values of a square are equal and where ReLU is off."""
    raw = np.random.default_rng(seed).normal(size=(5, side, side, CHANNELS)).astype(dtype)
    raw[:, :4, :4] = 1.5
    raw[:, 4:, 4:] = -9
    return raw


def per_channel(seed: int) -> NDArray:
    values = np.random.default_rng(seed).normal(size=CHANNELS).astype(np.float32)
    values[:2] = -0.5, 0.75
    return values


def relu(raw: NDArray, bias: NDArray) -> NDArray:
    return np.maximum(raw.astype(np.float32) + bias, 0).astype(np.float64)


def squares(values: NDArray) -> NDArray:
    """Return (images, height / 2, width / 2, 4, channels): the pixels of each square, row by row."""
    count, height, width, channels = values.shape
    cells = values.reshape(count, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(count, height // 2, width // 2, 4, channels)


@DTYPES
def test_levels_are_looked_up(dtype: type):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, CHANNELS), np.uint8)
    table = np.random.default_rng(1).normal(size=256).astype(dtype)
    np.testing.assert_array_equal(passes.look_up(images, table), table[images])


@DTYPES
def test_max_pooling_goes_in_the_direction_of_the_slope_and_the_moments_are_of_all_pixels(dtype: type):
    raw, bias, scale = activations(dtype), per_channel(1), per_channel(2)
    pooled, mean, variance = passes.max_forward(raw, bias, scale)
    r = relu(raw, bias)
    expected = squares(r * np.where(scale < 0, -1, 1)).max(axis=3)
    assert pooled.dtype == dtype
    np.testing.assert_array_equal(pooled, expected.astype(np.float32).astype(dtype))
    np.testing.assert_allclose(mean, r.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, r.var((0, 1, 2)), rtol=1e-5)


@DTYPES
def test_averages_and_moments(dtype: type):
    raw, bias = activations(dtype, side=7), per_channel(1)
    averages, mean, variance = passes.average_forward(raw, bias)
    r = relu(raw, bias)
    np.testing.assert_allclose(averages, r.mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(mean, r.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variance, r.var((0, 1, 2)), rtol=1e-5)


@DTYPES
def test_a_line_is_rounded_as_the_dtype_rounds(dtype: type):
    values, slope, offset = activations(dtype), per_channel(3), per_channel(4)
    exact = values.astype(np.float64) * slope + offset
    tolerance = 2**-8 if dtype is ml_dtypes.bfloat16 else 1e-6
    np.testing.assert_allclose(passes.line(values, slope, offset).astype(np.float64), exact, rtol=tolerance, atol=1e-6)
    same = passes.line(values, np.full(CHANNELS, 1 + 2**-8, np.float32), np.zeros(CHANNELS, np.float32))
    ties = (values.astype(np.float32) * np.float32(1 + 2**-8)).astype(dtype)
    np.testing.assert_array_equal(same, ties)


@DTYPES
def test_sums_of_a_gradient(dtype: type):
    upstream, pooled = activations(dtype, seed=1), activations(dtype, seed=2)
    total, product = passes.gradient_sums(upstream, pooled)
    g, p = upstream.astype(np.float64), pooled.astype(np.float64)
    np.testing.assert_allclose(total, g.sum((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(product, (g * p).sum((0, 1, 2)), rtol=1e-5)


@DTYPES
def test_the_gradient_goes_to_the_first_largest_of_each_square_and_stops_where_relu_is_off(dtype: type):
    raw, bias, scale, constant, slope = activations(dtype), *(per_channel(seed) for seed in (1, 2, 3, 4))
    upstream = activations(dtype, side=4, seed=5)
    down, bias_gradient = passes.max_gradient(raw, bias, scale, upstream, constant, slope)
    r = relu(raw, bias)
    cells = squares(r)
    first = (cells * np.where(scale < 0, -1, 1)).argmax(axis=3)[:, :, :, None]
    routed = np.where(np.arange(4)[:, None] == first, scale * upstream.astype(np.float64)[:, :, :, None], 0)
    expected = np.where(cells > 0, routed + constant + slope * cells, 0)
    tolerance = 2**-8 if dtype is ml_dtypes.bfloat16 else 1e-5
    np.testing.assert_allclose(squares(down.astype(np.float64)), expected, rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(bias_gradient, expected.sum((0, 1, 2, 3)), rtol=1e-4)
    assert (expected == 0).any()
    assert ((cells == cells[:, :, :, :1]).all(axis=3) & (cells[:, :, :, 0] > 0)).any(), "ties were among them"


@DTYPES
def test_the_gradient_of_an_average(dtype: type):
    raw, bias, slope = activations(dtype, side=7), per_channel(1), per_channel(2)
    upstream = np.random.default_rng(0).normal(size=(5, CHANNELS)).astype(np.float32)
    down, bias_gradient = passes.average_gradient(raw, bias, upstream, slope)
    r = relu(raw, bias)
    expected = np.where(r > 0, upstream[:, None, None] + slope * r, 0)
    tolerance = 2**-8 if dtype is ml_dtypes.bfloat16 else 1e-5
    np.testing.assert_allclose(down.astype(np.float64), expected, rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(bias_gradient, expected.sum((0, 1, 2)), rtol=1e-4)


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    values, one, zero = activations(np.float32), np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32)
    kept = passes.line(values, one, zero)
    part = passes.line(values, one, one)[1:2]  # only a view of a view is left
    others = [passes.line(values, one, np.float32(number) * one) for number in range(2, 5)]
    np.testing.assert_array_equal(kept, values)
    np.testing.assert_array_equal(part, values[1:2] + 1)
    for number, other in enumerate(others, start=2):
        np.testing.assert_array_equal(other, values + number)
    address = passes.line(values, one, zero).ctypes.data
    assert passes.line(values, one, zero).ctypes.data == address
    assert address % 64 == 0


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    raw, bias, scale = activations(np.float32), per_channel(1), per_channel(2)
    found = []
    for count in (1, 3, 8):  # 8: more threads than pictures
        with ThreadPoolExecutor(count) as pool:
            monkeypatch.setattr(passes, "_threads", functools.partial(lambda *made: made, pool, count))
            upstream = passes.max_forward(raw, bias, scale)[0]
            found.append([*passes.max_forward(raw, bias, scale)[1:], *passes.gradient_sums(upstream, upstream)])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
