"""The block of `tellapart.models.fused` for an accelerator under JAX: XLA compiles what one pass after another needs.

Pooling remembers which pixel of a window won, so that its gradient is one select: XLA's own gradient of max pooling
searches each window again and adds into memory. The statistics take one pass over the convolution's output, and
normalisation, a straight line per channel, follows on the pooled values. Function, gradients and variables are those
of the plain layers; of equal values in a window the first one wins, as there. Only for training: what is saved are
plain layers. Knows nothing about which network uses it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras


class FusedBlock(keras.layers.Layer):
    """Conv2D with ReLU, BatchNormalization and pooling as one layer.

    The plain layers do the work where nothing is learned, where the sides of the pictures are not even, and where
    there is no normalisation or it is frozen.

    Args:
        conv: a `keras.layers.Conv2D` with ReLU.
        batchnorm: a `keras.layers.BatchNormalization` over the last axis, or None.
        pool: a `MaxPooling2D` of 2×2, or a `GlobalAveragePooling2D`.
        name: of the layer.
    """

    def __init__(self, conv: Any, batchnorm: Any, pool: Any, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)  # inputs come as they are; statistics stay float32
        self.conv, self.batchnorm, self.pool = conv, batchnorm, pool
        self._averages = isinstance(pool, keras.layers.GlobalAveragePooling2D)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the variables: the convolution's, then the normalisation's."""
        self.conv.build(input_shape)
        if self.batchnorm is not None:
            self.batchnorm.build(self.conv.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape after pooling."""
        shape: tuple[int | None, ...] = self.pool.compute_output_shape(self.conv.compute_output_shape(input_shape))
        return shape

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Map (num_images, height, width, channels) to pooled features, in the dtype of `pool`."""
        norm, features = self.batchnorm, self.conv(inputs)
        even = None not in features.shape[1:3] and not any(side % 2 for side in features.shape[1:3])
        if norm is None or not (training and norm.trainable) or not (even or self._averages):
            return self.pool(features if norm is None else norm(features, training=training))
        block = _average if self._averages else _max
        gamma, beta = (jnp.asarray(variable.value, jnp.float32) for variable in (norm.gamma, norm.beta))
        outputs, mean, variance = block(norm.epsilon, features, gamma, beta)
        keep = norm.momentum
        norm.moving_mean.assign(norm.moving_mean * keep + mean * (1 - keep))
        norm.moving_variance.assign(norm.moving_variance * keep + variance * (1 - keep))
        return outputs.astype(self.pool.compute_dtype)


def fused(x: Any, conv: Any, batchnorm: Any, pool: Any, *, name: str) -> Any:
    """Apply the three layers as one `FusedBlock`."""
    return FusedBlock(conv, batchnorm, pool, name)(x)


# The formulas stand in models/fused.py: with x̂ = (r - mean) · inverse, y = gamma · x̂ + beta, N values r per channel and
# g = dL/dy where pooling put it,
#   dL/dr = gamma · inverse · (g - sum(g) / N - x̂ · sum(g · x̂) / N) = scale · g + constant + slope · r.


def _statistics(raw: Any, total: Any) -> tuple[Any, Any]:
    """Return mean and variance per channel of (num_images, height, width, channels), given its sum."""
    count = raw.size // raw.shape[-1]
    mean = total / count
    square = jnp.sum(jnp.square(raw.astype(jnp.float32)), axis=(0, 1, 2))
    return mean, jnp.maximum(square / count - mean**2, 0.0)


def _line_of_gradient(raw: Any, mean: Any, inverse: Any, scale: Any, total: Any, product: Any) -> tuple[Any, Any, Any]:
    """Return constant and slope of the gradient's straight line in r, and the gradient of gamma."""
    count = raw.size // raw.shape[-1]
    gamma_gradient = (product - mean * total) * inverse
    slope = -scale * inverse * gamma_gradient / count
    return -scale * total / count - slope * mean, slope, gamma_gradient


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max(epsilon: float, raw: Any, gamma: Any, beta: Any) -> tuple[Any, Any, Any]:
    """Normalise (num_images, height, width, channels) and pool it 2×2; return mean and variance as well."""
    outputs: tuple[Any, Any, Any] = _max_forward(epsilon, raw, gamma, beta)[0]
    return outputs


def _max_forward(epsilon: float, raw: Any, gamma: Any, beta: Any) -> tuple[Any, Any]:
    mean, variance = _statistics(raw, jnp.sum(raw.astype(jnp.float32), axis=(0, 1, 2)))
    inverse = jax.lax.rsqrt(variance + epsilon)
    scale = gamma * inverse
    # Where the line falls, the largest value after normalisation is the smallest before.
    falls = scale < 0
    # One byte for each pooled value says which pixel won. With it the gradient is a select: 2,473 µs became about
    # 1,340 for a step at 224 px (docs/experiments.md).
    best, winner = raw[:, ::2, ::2], jnp.zeros((), jnp.uint8)
    for index, (row, column) in enumerate(((0, 1), (1, 0), (1, 1)), start=1):
        other = raw[:, row::2, column::2]
        # Strictly: of equal values the first one wins, as in the plain layers.
        wins = jnp.where(falls, other < best, other > best)
        best, winner = jnp.where(wins, other, best), jnp.where(wins, jnp.uint8(index), winner)
    outputs = best.astype(jnp.float32) * scale + (beta - scale * mean)
    return (outputs.astype(raw.dtype), mean, variance), (raw, best, winner, mean, inverse, scale)


def _max_backward(epsilon: float, residuals: Any, upstream: Any) -> tuple[Any, Any, Any]:
    raw, best, winner, mean, inverse, scale = residuals
    del epsilon
    gradient = upstream[0].astype(jnp.float32)
    total, product = (jnp.sum(part, axis=(0, 1, 2)) for part in (gradient, gradient * best.astype(jnp.float32)))
    constant, slope, gamma_gradient = _line_of_gradient(raw, mean, inverse, scale, total, product)
    places = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    won = winner[:, :, None, :, None] == places
    # The gradient goes to the winner of each window only; the straight line goes to all pixels.
    from_pool = jnp.where(won, (gradient * scale)[:, :, None, :, None], 0.0)
    down = from_pool.reshape(raw.shape) + (constant + slope * raw.astype(jnp.float32))
    return down.astype(raw.dtype), gamma_gradient, total


_max.defvjp(_max_forward, _max_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(epsilon: float, raw: Any, gamma: Any, beta: Any) -> tuple[Any, Any, Any]:
    """Normalise (num_images, height, width, channels) and average it over pixels; return mean and variance as well."""
    outputs: tuple[Any, Any, Any] = _average_forward(epsilon, raw, gamma, beta)[0]
    return outputs


def _average_forward(epsilon: float, raw: Any, gamma: Any, beta: Any) -> tuple[Any, Any]:
    sums = jnp.sum(raw.astype(jnp.float32), axis=(1, 2))
    mean, variance = _statistics(raw, sums.sum(axis=0))
    inverse = jax.lax.rsqrt(variance + epsilon)
    scale, averages = gamma * inverse, sums / (raw.shape[1] * raw.shape[2])
    return (averages * scale + (beta - scale * mean), mean, variance), (raw, averages, mean, inverse, scale)


def _average_backward(epsilon: float, residuals: Any, upstream: Any) -> tuple[Any, Any, Any]:
    raw, averages, mean, inverse, scale = residuals
    del epsilon
    total, product = upstream[0].sum(axis=0), (upstream[0] * averages).sum(axis=0)
    constant, slope, gamma_gradient = _line_of_gradient(raw, mean, inverse, scale, total, product)
    per_pixel = scale * upstream[0] / (raw.shape[1] * raw.shape[2]) + constant
    down = per_pixel[:, None, None] + slope * raw.astype(jnp.float32)
    return down.astype(raw.dtype), gamma_gradient, total


_average.defvjp(_average_forward, _average_backward)
