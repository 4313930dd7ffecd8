"""Which channels of a network matter least, and how many of each group stay. Knows nothing about files.

A channel is taken out by setting to zero what its readers make of it. To first order that changes the loss by the sum
of weight times gradient over those weights: the Taylor criterion of Molchanov et al. 2019, "Importance Estimation for
Neural Network Pruning", with a gate at the readers' side, so that convolutions without a normalisation have one too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.models.channels import Channels, Keep
from tellapart.models.layers import kernel_gradients, layers_of
from tellapart.records import Progress, no_progress

Scores = dict[str, NDArray[np.float64]]
"""Name of a group → (size,): how much the loss changes without each channel, squared."""

STEP = 8
"""Channels leave in eights, and as many stay at least: vector registers and integer kernels hold eights."""


def importance(
    model: keras.Model,
    channels: Channels,
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]],
    *,
    num_batches: int = 0,
    progress: Progress = no_progress,
) -> Scores:
    """Measure how much each channel matters.

    Args:
        model: the network whose channels these are.
        channels: of the model.
        batches: (num_images, image_px, image_px, 3) uint8 pictures with (num_images,) class numbers.
        num_batches: how many there are, for `progress`.
        progress: called with ("weighing channels", done, total).
    """
    readers = {name for group in channels.groups.values() for name in group.readers}
    layers = [layer for layer in layers_of(model) if layer.name in readers]
    kernels = [np.asarray(layer.get_weights()[0], np.float64) for layer in layers]
    gradients = kernel_gradients(model, layers)
    total: dict[str, NDArray[np.float64]] = {name: np.zeros(group.size) for name, group in channels.groups.items()}
    for done, (images, numbers) in enumerate(batches, start=1):
        change = {
            layer.name: _by_input(kernel * np.asarray(gradient, np.float64))
            for layer, kernel, gradient in zip(layers, kernels, gradients(images, numbers), strict=True)
        }
        for name, group in channels.groups.items():
            # The sum over all readers before it is squared: what one loses another may win.
            total[name] += np.sum([change[reader] for reader in group.readers], axis=0) ** 2
        progress("weighing channels", done, num_batches or done)
    return total


def _by_input(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum for each channel that a kernel reads: its last axis but one."""
    total: NDArray[np.float64] = values.sum(axis=tuple(axis for axis in range(values.ndim) if axis != values.ndim - 2))
    return total


def kept_channels(channels: Channels, scores: Mapping[str, NDArray[np.float64]], share: float) -> Keep:
    """Choose the channels that stay, so that a share of the network is left.

    Again and again the eight channels leave whose loss is smallest for what they save; what is saved is the mean of
    the shares of multiplications and of weights.

    Args:
        channels: of the network.
        scores: as `importance` gives them.
        share: of the cost that is to be left, 0 to 1.

    Returns:
        Group → positions that stay, of the groups that lose any. More than `share` is left where none can lose more.
    """
    whole = channels.cost()
    order = {name: np.argsort(values, kind="stable") for name, values in scores.items()}
    ordered = {name: np.concatenate([[0.0], np.cumsum(scores[name][order[name]])]) for name in order}
    sizes = {name: group.size for name, group in channels.groups.items()}

    def left(sizes: Mapping[str, int]) -> float:
        cost = channels.cost(sizes)
        return (cost.multiplications / whole.multiplications + cost.weights / whole.weights) / 2

    now = left(sizes)
    while now > share:
        best: tuple[float, str, float] | None = None
        for name, size in sizes.items():
            fewer = _fewer(size)
            if fewer < STEP:
                continue
            then, gone = left(sizes | {name: fewer}), channels.groups[name].size
            lost = ordered[name][gone - fewer] - ordered[name][gone - size]
            price = float(lost) / max(now - then, 1e-12)
            if best is None or price < best[0]:
                best = price, name, then
        if best is None:
            break
        sizes[best[1]], now = _fewer(sizes[best[1]]), best[2]
    return {
        name: np.sort(order[name][channels.groups[name].size - size :])
        for name, size in sizes.items()
        if size < channels.groups[name].size
    }


def _fewer(size: int) -> int:
    """Return the next smaller multiple of `STEP`."""
    return (size - 1) // STEP * STEP


def sizes_of(keep: Keep) -> dict[str, int]:
    """Return how many channels each group keeps, as recipes have it."""
    return {name: len(positions) for name, positions in sorted(keep.items())}
