"""Weights for the layers that read fewer channels, so that they make what they made of all. Knows nothing about files.

What a layer makes of its inputs is linear in them, and the channels of a network resemble one another: what those that
leave brought can mostly be had from those that stay. The weights that come nearest on training photos, by least
squares, are found without any training (He, Zhang, Sun 2017, "Channel Pruning for Accelerating Very Deep Neural
Networks").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.models.channels import Channels, Keep
from tellapart.models.layers import inputs_noted, layers_of
from tellapart.randomness import generator
from tellapart.records import Progress, no_progress

_POSITIONS = 80
"""Places of a picture that are drawn for each layer: of 512 pictures that is ten times as many as most layers have
inputs."""
_MOST_INPUTS = 2500
"""A layer with more keeps its weights: the matrix of its inputs would fill the memory."""
_RIDGE = 0.01
"""Is added to the diagonal, as a share of its mean: the best of 0.01, 0.001 and 0.0001 on photos9's validation photos
for MobileNetV2 with nine tenths of its cost, where it mattered little (docs/experiments.md)."""

Moments = dict[str, NDArray[np.float64]]
"""Name of a layer → (num_inputs + 1, num_inputs + 1): sums of the products of its inputs, the last of which is 1."""


def reconstructed(
    model: keras.Model,
    channels: Channels,
    keep: Keep,
    batches: Iterable[NDArray[np.uint8]],
    *,
    num_batches: int = 0,
    progress: Progress = no_progress,
) -> dict[str, list[NDArray[np.float32]]]:
    """Return weights with which layers make of the channels that stay what they made of all.

    Args:
        model: the whole network.
        channels: of the model.
        keep: name of a group → positions that stay.
        batches: (num_images, image_px, image_px, 3) uint8 pictures to learn from; they need no labels.
        num_batches: how many there are, for `progress`.
        progress: called with ("fitting what is left", done, total).

    Returns:
        Name of a layer → its weights in the shapes of the whole network's, for `Channels.copy_kept`; what belongs to
        channels that leave is as it was.
    """
    kept = {reader: keep[name] for name, group in channels.groups.items() if name in keep for reader in group.readers}
    readers = [layer for layer in layers_of(model) if layer.name in kept and _num_inputs(layer) <= _MOST_INPUTS]
    moments = _moments(model, readers, batches, num_batches=num_batches, progress=progress)
    return {layer.name: _fitted(layer, kept[layer.name], moments[layer.name]) for layer in readers}


def _moments(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    batches: Iterable[NDArray[np.uint8]],
    *,
    num_batches: int,
    progress: Progress,
) -> Moments:
    """Sum the products of the layers' inputs over some places of all pictures."""
    total: Moments = {layer.name: np.zeros((_num_inputs(layer) + 1,) * 2) for layer in layers}
    rng = generator(0, "places")

    def note(layer: keras.layers.Layer, inputs: Any) -> None:
        seen = patches(layer, inputs)
        seen = seen.reshape(len(seen), -1, seen.shape[-1])
        if seen.shape[1] > _POSITIONS:
            seen = seen[:, np.sort(rng.permutation(seen.shape[1])[:_POSITIONS])]
        rows = seen.reshape(-1, seen.shape[-1]).astype(np.float64)
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        total[layer.name] += rows.T @ rows

    with inputs_noted(layers, note):
        for done, images in enumerate(batches, start=1):
            model(images, training=False)
            progress("fitting what is left", done, num_batches or done)
    return total


def patches(layer: keras.layers.Layer, inputs: Any) -> NDArray[np.float32]:
    """Return what a layer's kernel is multiplied with.

    Args:
        layer: a Dense or an ungrouped Conv2D.
        inputs: (num_images, ..., channels).

    Returns:
        (num_images, ..., num_inputs), the inputs in the order of the kernel's axes but the last, row by row.
    """
    if isinstance(layer, keras.layers.Conv2D):
        if layer.kernel_size == (1, 1) and layer.strides == (1, 1):
            return np.asarray(inputs, np.float32)  # the usual case, and no copy of it
        inputs = keras.ops.image.extract_patches(
            inputs, layer.kernel_size, strides=layer.strides, dilation_rate=layer.dilation_rate, padding=layer.padding
        )
    return np.asarray(inputs, np.float32)


def _fitted(
    layer: keras.layers.Layer, kept: NDArray[np.int64], moments: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """Return the layer's weights, fitted to make of the channels that stay what it made of all."""
    weights: list[NDArray[np.float32]] = layer.get_weights()
    kernel = weights[0].astype(np.float64)
    flat = kernel.reshape(-1, kernel.shape[-1])
    taps = len(flat) // kernel.shape[-2]
    stay = (np.arange(taps)[:, None] * kernel.shape[-2] + kept).ravel()
    gone = np.setdiff1d(np.arange(len(flat)), stay)
    has_bias = len(weights) > 1
    # The constant takes part where the layer has a bias to hold it.
    learns = np.append(stay, len(flat)) if has_bias else stay
    # Behind a global mean a picture has one place, so that there may be fewer rows than inputs: without the ridge there
    # would be many solutions, and the one found might fit these pictures alone.
    of_kept = moments[np.ix_(learns, learns)]
    of_kept += np.eye(len(learns)) * _RIDGE * np.trace(of_kept) / len(learns)
    change = np.linalg.solve(of_kept, moments[np.ix_(learns, gone)] @ flat[gone])
    flat[stay] += change[: len(stay)]
    weights[0] = flat.reshape(kernel.shape).astype(np.float32)
    if has_bias:
        weights[1] = (weights[1] + change[-1]).astype(np.float32)
    return weights


def _num_inputs(layer: keras.layers.Layer) -> int:
    return math.prod(layer.weights[0].shape[:-1])
