"""Passes over activations in memory: ReLU, batch statistics, pooling and their gradients, compiled by Numba.

TensorFlow's kernels read and write every activation once per layer, and XLA works out each square again for each of
its four pixels. Here one pass makes all that a block needs. Arrays are NumPy's, float32 or bfloat16; sums are float32
within a picture and float64 over pictures, so results do not depend on how many threads there are. Knows nothing
about TensorFlow or Keras.

A block's values, for a convolution's output `raw` of shape (num_images, height, width, channels) without its bias:
r = ReLU(raw + bias); BatchNormalization is a straight line in r; where the line falls, the largest value after it is
the smallest before, so pooling takes the largest of sign · r.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.models import kernels

Floats = NDArray[np.float32]
Activations = NDArray[Any]
"""(num_images, height, width, channels) float32 or bfloat16."""

_MOST_BLOCKS = 32
"""Blocks of memory that are kept: a step of the reference network needs eight."""
_ALIGNMENT = 64
"""Bytes: TensorFlow takes over arrays that begin at such an address, and copies others."""


def look_up(images: NDArray[np.uint8], table: Activations) -> Activations:
    """Return the value in `table`, (256,), of each level in `images`, in their shape and the dtype of the table."""
    out = _empty(images.shape, table.dtype)
    _run(kernels.look_up, images, _bits(table), _bits(out))
    return out


def max_forward(raw: Activations, bias: Floats, scale: Floats) -> tuple[Activations, Floats, Floats]:
    """Pool sign(scale) · r over squares of 2 × 2.

    Args:
        raw: height and width even.
        bias: (channels,).
        scale: (channels,) slope of the normalisation; only its sign counts.

    Returns:
        (num_images, height / 2, width / 2, channels) in the dtype of `raw`; and r's mean and biased variance over
        all pixels, (channels,) each.
    """
    count, height, width, channels = raw.shape
    # Neither is zeroed: a kernel begins each picture's sums with 0 and writes every value, or numbers of an earlier
    # step show.
    pooled = _empty((count, height // 2, width // 2, channels), raw.dtype)
    sums = np.empty((count, 4, channels), np.float32)
    # Where the slope is negative the smallest value is pooled, as the largest of -r.
    _run(kernels.max_forward, _bits(raw), bias, _sign(scale), _bits(pooled), sums)
    return pooled, *_moments(sums, height * width)


def average_forward(raw: Activations, bias: Floats) -> tuple[Floats, Floats, Floats]:
    """Average r over each picture.

    Returns:
        (num_images, channels); and r's mean and biased variance over all pixels, (channels,) each.
    """
    count, height, width, channels = raw.shape
    sums = np.empty((count, 4, channels), np.float32)
    _run(kernels.average_forward, _bits(raw), bias, sums)
    return sums[:, 0] / np.float32(height * width), *_moments(sums, height * width)


def line(values: Activations, slope: Floats, offset: Floats) -> Activations:
    """Return slope · values + offset, both per channel, in the shape and dtype of `values`."""
    out = _empty(values.shape, values.dtype)
    _run(kernels.line, _bits(values), slope, offset, _bits(out))
    return out


def gradient_sums(upstream: Activations, pooled: Activations) -> tuple[Floats, Floats]:
    """Return the sums over all pixels of `upstream` and of `upstream` · `pooled`, (channels,) each."""
    sums = np.empty((len(upstream), 2, upstream.shape[3]), np.float32)
    _run(kernels.gradient_sums, _bits(upstream), _bits(pooled), sums)
    with np.errstate(invalid="ignore", over="ignore"):
        total, product = sums.sum(0, dtype=np.float64).astype(np.float32)
    return total, product


def max_gradient(
    raw: Activations, bias: Floats, scale: Floats, upstream: Activations, constant: Floats, slope: Floats
) -> tuple[Activations, Floats]:
    """Return the gradient of `raw`, and its sum over all pixels: the gradient of the bias.

    Where r is above 0 it is scale · upstream, at the first largest of each square, + constant + slope · r.

    Args:
        raw: height and width even.
        bias: (channels,).
        scale: (channels,) slope of the normalisation.
        upstream: (num_images, height / 2, width / 2, channels), in the dtype of `raw`.
        constant: (channels,).
        slope: (channels,).
    """
    out = _empty(raw.shape, raw.dtype)
    sums = np.empty((len(raw), 2, raw.shape[3]), np.float32)
    _run(
        kernels.max_gradient, _bits(raw), bias, _sign(scale), scale, _bits(upstream), constant, slope, _bits(out), sums
    )
    return out, _total(sums)


def average_gradient(raw: Activations, bias: Floats, upstream: Floats, slope: Floats) -> tuple[Activations, Floats]:
    """Return the gradient of `raw`, where(r > 0, upstream of its picture + slope · r, 0), and its sum over all pixels.

    Args:
        raw: the convolution's output.
        bias: (channels,).
        upstream: (num_images, channels).
        slope: (channels,).
    """
    out = _empty(raw.shape, raw.dtype)
    sums = np.empty((len(raw), 2, raw.shape[3]), np.float32)
    _run(kernels.average_gradient, _bits(raw), bias, upstream, slope, _bits(out), sums)
    return out, _total(sums)


# Around the kernels.


def _moments(sums: Floats, pixels: int) -> tuple[Floats, Floats]:
    """Return mean and biased variance from each picture's sum and sum of squares; a NaN stays one."""
    with np.errstate(invalid="ignore", over="ignore"):  # a loss that is not finite is reported by who sees it
        # Sums of sums, in float64 over pictures: off by 0.00001 where oneDNN's float32 statistics were off by 0.02 in
        # outputs of size 118 (docs/decisions.md). Rounding may still bring a variance below 0.
        mean, square = sums[:, :2].mean(0, dtype=np.float64) / pixels
        return mean.astype(np.float32), np.maximum(square - mean * mean, 0).astype(np.float32)


def _total(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        total: Floats = sums[:, 0].sum(0, dtype=np.float64).astype(np.float32)
    return total


def _sign(scale: Floats) -> Floats:
    return np.where(scale < 0, np.float32(-1), np.float32(1))


def _empty(shape: tuple[int, ...], dtype: Any) -> Activations:
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = _memory.take(size + _ALIGNMENT)
    # A little more memory than asked for, begun at the next address that TensorFlow takes without a copy.
    start = -memory.ctypes.data % _ALIGNMENT
    values: Activations = memory[start : start + size].view(dtype).reshape(shape)
    return values


class _Memory:
    """Blocks that are used again once nothing refers to them: the kernel zeroes new memory, slower than a pass."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[NDArray[np.uint8]] = []
        # Counted, not assumed: the list and getrefcount's own argument are references too.
        self._idle = self._references([np.empty(0, np.uint8)], 0)

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return a block of `size` bytes that no array lies in."""
        with self._lock:
            for index in range(len(self._blocks)):
                # Reference counts tell whether a tensor still lies in the block; every view of it counts.
                if self._blocks[index].size == size and self._references(self._blocks, index) == self._idle:
                    self._blocks.append(self._blocks.pop(index))
                    return self._blocks[-1]
            # The front of the list is what has not been used for longest.
            self._blocks = [*self._blocks[1 - _MOST_BLOCKS :], np.empty(size, np.uint8)]
            return self._blocks[-1]

    @staticmethod
    def _references(blocks: list[NDArray[np.uint8]], index: int) -> int:
        return sys.getrefcount(blocks[index])


_memory = _Memory()


def _bits(values: Activations) -> NDArray[Any]:
    """Return bfloat16 as its bits: Numba does not know the dtype."""
    # A view: the same memory under another type.
    return values if values.dtype == np.float32 else values.view(np.uint16)


def _run(kernel: Callable[[int], Any], *arrays: NDArray[Any]) -> None:
    """Run the kernel over all pictures, an equal part in each thread."""
    function, count = kernels.compiled(kernel, arrays[0].shape[-1]), len(arrays[0])
    # Each picture is summed by one thread and pictures in one order, so the number of threads changes no bit.
    pool, threads = _threads()
    # The calling thread takes the first part: TensorFlow waits for it anyway.
    mine, *others = itertools.pairwise(count * part // threads for part in range(threads + 1))
    waiting = [pool.submit(function, *(*arrays, *part)) for part in others]
    function(*arrays, *mine)
    for future in waiting:
        # Raises what the part raised.
        future.result()


@functools.cache
def _threads() -> tuple[ThreadPoolExecutor, int]:
    # The processors that this process may use, which in a container are fewer than there are.
    # Processes must not be forked from this one: the child would have the pool without its threads, and wait for ever.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(count, thread_name_prefix="passes"), count
