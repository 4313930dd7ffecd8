"""The loops over pixels behind models/passes.py, compiled by Numba. Knows nothing about threads or memory.

Each function here returns a kernel for a number of channels: with that as a constant, LLVM makes vectors of the
innermost loop. Kernels take arrays of (num_images, height, width, channels), float32 or the bits of bfloat16 as
uint16, and (channels,) float32, and work on the pictures from `first` up to `last`. Rows are summed apart, in the
second half of `sums`: adding small to small keeps the digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import overload


class _Apart(CompilerBase):
    """Numba's compiler, told that no two arguments overlap: else LLVM checks all pairs at each pixel."""

    def define_pipelines(self) -> list[Any]:
        """Return Numba's own pipeline."""
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


@functools.cache
def compiled(kernel: Callable[[int], Any], channels: int) -> Any:
    """Compile one of the kernels below for a number of channels; what is compiled is kept on disk."""
    # Sums may be reordered, which is what lets LLVM make vectors of them; that a value is a number may not be assumed
    # (no nnan, no ninf), or a loss that is not finite would go unseen.
    options = {"reassoc", "contract", "arcp", "nsz"}
    return numba.njit(nogil=True, cache=True, fastmath=options, error_model="numpy", pipeline_class=_Apart)(
        kernel(channels)
    )


def _wide(stored):
    """Return a stored float32, or the bits of a bfloat16, as float32. Compiled only."""
    raise NotImplementedError


def _narrow(value, like):
    """Return a float32 as it is stored where `like` is: bfloat16 to the nearest, ties to even. Compiled only."""
    raise NotImplementedError


@overload(_wide, inline="always")
def _overload_wide(stored):
    if isinstance(stored, numba.types.Integer):
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


@overload(_narrow, inline="always")
def _overload_narrow(value, like):
    if not isinstance(like, numba.types.Integer):
        return lambda value, like: np.float32(value)

    def rounded(value, like):
        # Half of the last place that is kept, less one where it is even: adding it carries into the kept bits as
        # rounding does.
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return rounded


def look_up(channels: int) -> Any:
    def kernel(images, table, out, first, last):
        for i in range(first, last):
            for y in range(images.shape[1]):
                for x in range(images.shape[2]):
                    for k in range(channels):
                        out[i, y, x, k] = table[images[i, y, x, k]]

    return kernel


def max_forward(channels: int) -> Any:
    def kernel(raw, bias, sign, pooled, sums, first, last):
        zero = np.float32(0)
        for i in range(first, last):
            sums[i] = zero
            for y in range(pooled.shape[1]):
                for k in range(channels):
                    sums[i, 2, k] = zero
                    sums[i, 3, k] = zero
                for x in range(pooled.shape[2]):
                    for k in range(channels):
                        a = max(_wide(raw[i, 2 * y, 2 * x, k]) + bias[k], zero)
                        b = max(_wide(raw[i, 2 * y, 2 * x + 1, k]) + bias[k], zero)
                        c = max(_wide(raw[i, 2 * y + 1, 2 * x, k]) + bias[k], zero)
                        d = max(_wide(raw[i, 2 * y + 1, 2 * x + 1, k]) + bias[k], zero)
                        # A row's sums are kept apart and added to the picture's at its end: small to small keeps the
                        # digits.
                        sums[i, 2, k] += (a + b) + (c + d)
                        sums[i, 3, k] += (a * a + b * b) + (c * c + d * d)
                        s = sign[k]
                        largest = max(a * s, b * s, c * s, d * s)
                        pooled[i, y, x, k] = _narrow(largest, pooled[i, y, x, k])
                for k in range(channels):
                    sums[i, 0, k] += sums[i, 2, k]
                    sums[i, 1, k] += sums[i, 3, k]

    return kernel


def average_forward(channels: int) -> Any:
    def kernel(raw, bias, sums, first, last):
        zero = np.float32(0)
        for i in range(first, last):
            sums[i] = zero
            for y in range(raw.shape[1]):
                for k in range(channels):
                    sums[i, 2, k] = zero
                    sums[i, 3, k] = zero
                for x in range(raw.shape[2]):
                    for k in range(channels):
                        value = max(_wide(raw[i, y, x, k]) + bias[k], zero)
                        sums[i, 2, k] += value
                        sums[i, 3, k] += value * value
                for k in range(channels):
                    sums[i, 0, k] += sums[i, 2, k]
                    sums[i, 1, k] += sums[i, 3, k]

    return kernel


def line(channels: int) -> Any:
    def kernel(values, slope, offset, out, first, last):
        for i in range(first, last):
            for y in range(values.shape[1]):
                for x in range(values.shape[2]):
                    for k in range(channels):
                        out[i, y, x, k] = _narrow(_wide(values[i, y, x, k]) * slope[k] + offset[k], out[i, y, x, k])

    return kernel


def gradient_sums(channels: int) -> Any:
    def kernel(upstream, pooled, sums, first, last):
        for i in range(first, last):
            sums[i] = np.float32(0)
            for y in range(upstream.shape[1]):
                for x in range(upstream.shape[2]):
                    for k in range(channels):
                        value = _wide(upstream[i, y, x, k])
                        sums[i, 0, k] += value
                        sums[i, 1, k] += value * _wide(pooled[i, y, x, k])

    return kernel


def max_gradient(channels: int) -> Any:
    def kernel(raw, bias, sign, scale, upstream, constant, slope, out, sums, first, last):
        zero = np.float32(0)
        for i in range(first, last):
            sums[i] = zero
            for y in range(upstream.shape[1]):
                for k in range(channels):
                    sums[i, 1, k] = zero
                for x in range(upstream.shape[2]):
                    for k in range(channels):
                        a = max(_wide(raw[i, 2 * y, 2 * x, k]) + bias[k], zero)
                        b = max(_wide(raw[i, 2 * y, 2 * x + 1, k]) + bias[k], zero)
                        c = max(_wide(raw[i, 2 * y + 1, 2 * x, k]) + bias[k], zero)
                        d = max(_wide(raw[i, 2 * y + 1, 2 * x + 1, k]) + bias[k], zero)
                        s = sign[k]
                        largest = max(a * s, b * s, c * s, d * s)
                        # The first of the largest takes the whole gradient, and what is left for the others is 0: one
                        # winner, as in TensorFlow.
                        left = _wide(upstream[i, y, x, k]) * scale[k]
                        at_a = left if a * s == largest else zero
                        left = left - at_a
                        at_b = left if b * s == largest else zero
                        left = left - at_b
                        at_c = left if c * s == largest else zero
                        at_d = left - at_c
                        # ReLU: no gradient where r is 0, whatever the straight line says.
                        down_a = constant[k] + slope[k] * a + at_a if a > zero else zero
                        down_b = constant[k] + slope[k] * b + at_b if b > zero else zero
                        down_c = constant[k] + slope[k] * c + at_c if c > zero else zero
                        down_d = constant[k] + slope[k] * d + at_d if d > zero else zero
                        sums[i, 1, k] += (down_a + down_b) + (down_c + down_d)
                        like = raw[i, 2 * y, 2 * x, k]
                        out[i, 2 * y, 2 * x, k] = _narrow(down_a, like)
                        out[i, 2 * y, 2 * x + 1, k] = _narrow(down_b, like)
                        out[i, 2 * y + 1, 2 * x, k] = _narrow(down_c, like)
                        out[i, 2 * y + 1, 2 * x + 1, k] = _narrow(down_d, like)
                for k in range(channels):
                    sums[i, 0, k] += sums[i, 1, k]

    return kernel


def average_gradient(channels: int) -> Any:
    def kernel(raw, bias, upstream, slope, out, sums, first, last):
        zero = np.float32(0)
        for i in range(first, last):
            sums[i] = zero
            for y in range(raw.shape[1]):
                for k in range(channels):
                    sums[i, 1, k] = zero
                for x in range(raw.shape[2]):
                    for k in range(channels):
                        value = max(_wide(raw[i, y, x, k]) + bias[k], zero)
                        down = upstream[i, k] + slope[k] * value if value > zero else zero
                        sums[i, 1, k] += down
                        out[i, y, x, k] = _narrow(down, raw[i, y, x, k])
                for k in range(channels):
                    sums[i, 0, k] += sums[i, 1, k]

    return kernel
