"""A convolution block whose ReLU, BatchNormalization and pooling touch memory as little as they can.

On a processor these three cost as much as the convolution: each layer reads and writes every activation. Here one
pass over the convolution's output pools it and one sums it for the statistics; normalisation, a straight line per
channel, follows on the pooled values; on the way back one pass makes the whole gradient. XLA compiles the passes,
TensorFlow's oneDNN kernels convolve. Function, gradients and variables are those of the plain layers.
Knows nothing about which network uses it. Only for TensorFlow, only for training: what is saved are plain layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

_SPATIAL = [1, 2]


class FusedBlock(keras.layers.Layer):
    """Conv2D with ReLU, BatchNormalization and pooling as one layer.

    The plain layers do the work on a GPU, where the sides of the pictures are not known or not even, and while the
    normalisation is frozen in training.

    Args:
        conv: a `keras.layers.Conv2D` with ReLU, padding "same" and stride 1.
        batchnorm: a `keras.layers.BatchNormalization` over the last axis.
        pool: a `MaxPooling2D` of 2×2, or a `GlobalAveragePooling2D`.
        name: of the layer.
    """

    def __init__(self, conv: Any, batchnorm: Any, pool: Any, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)  # inputs come as they are; statistics stay float32
        self.conv, self.batchnorm, self.pool = conv, batchnorm, pool
        self._averages = isinstance(pool, keras.layers.GlobalAveragePooling2D)
        self._fuses = not tf.config.list_physical_devices("GPU")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the variables: the convolution's, then the normalisation's."""
        self.conv.build(input_shape)
        self.batchnorm.build(self.conv.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape after pooling."""
        shape: tuple[int | None, ...] = self.pool.compute_output_shape(self.conv.compute_output_shape(input_shape))
        return shape

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Map (num_images, height, width, channels) to pooled features, in the dtype of `pool`."""
        norm, sides = self.batchnorm, inputs.shape[1:3]
        fuses = self._fuses and None not in sides and (self._averages or not any(side % 2 for side in sides))
        if not fuses or (training and not norm.trainable):
            return self.pool(norm(self.conv(inputs), training=training))
        raw = tf.nn.conv2d(inputs, tf.cast(self.conv.kernel, inputs.dtype), strides=1, padding="SAME")
        bias, gamma, beta = (tf.convert_to_tensor(v) for v in (self.conv.bias, norm.gamma, norm.beta))
        if training:
            train = _train_average if self._averages else _train_max
            outputs, mean, variance = train(raw, bias, gamma, beta, norm.epsilon)
            keep = norm.momentum
            norm.moving_mean.assign(norm.moving_mean * keep + mean * (1 - keep))
            norm.moving_variance.assign(norm.moving_variance * keep + variance * (1 - keep))
        else:
            scale = gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon)
            pool = _average if self._averages else _max
            outputs = _line(pool(raw, bias, scale), tf.abs(scale), beta - scale * norm.moving_mean)
        return tf.cast(outputs, self.pool.compute_dtype)


def fused(x: Any, conv: Any, batchnorm: Any, pool: Any, *, name: str) -> Any:
    """Apply the three layers as one `FusedBlock`."""
    return FusedBlock(conv, batchnorm, pool, name)(x)


# Passes over memory. Pictures are (num_images, height, width, channels), the rest is per channel, all float32 but
# `raw`, the convolution's output without its bias. `scale` is the slope of the normalisation's line: where it is
# negative, the largest value after normalisation is the smallest before, so its sign goes into the pooling, and the
# line that follows has the slope's size.


def _pass(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for each combination of shapes and dtypes it meets."""

    @functools.cache
    def compiled(*_signature: tuple[Any, ...]) -> Any:
        return tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*tensors: Any) -> Any:
        return compiled(*((tensor.dtype, tuple(tensor.shape)) for tensor in tensors))(*tensors)

    return call


def _relu(raw: Any, bias: Any) -> Any:
    return tf.nn.relu(tf.cast(raw, tf.float32) + bias)


def _sign(scale: Any) -> Any:
    return tf.where(scale < 0, -1.0, 1.0)


def _cells(values: Any, side: int) -> list[Any]:
    """Return what stands first in each square of `side` × `side`, what stands second, and so on, row by row."""
    return [values[:, row::side, column::side] for row in range(side) for column in range(side)]


def _cells_to_sum(values: Any) -> list[Any]:
    side = next(side for side in (4, 2, 1) if values.shape[1] % side == 0 and values.shape[2] % side == 0)
    return _cells(values, side)


def _largest(raw: Any, bias: Any, scale: Any) -> tuple[list[Any], Any]:
    cells = [_relu(cell, bias) * _sign(scale) for cell in _cells(raw, 2)]
    return cells, tf.maximum(tf.maximum(cells[0], cells[1]), tf.maximum(cells[2], cells[3]))


@_pass
def _max(raw: Any, bias: Any, scale: Any) -> Any:
    """Max-pool in the direction of the slope."""
    return _largest(raw, bias, scale)[1]


@_pass
def _average(raw: Any, bias: Any, scale: Any) -> Any:
    """Average each picture, in the direction of the slope."""
    cells = [_relu(cell, bias) for cell in _cells_to_sum(raw)]
    return tf.reduce_mean(tf.add_n(cells), _SPATIAL) / len(cells) * _sign(scale)


@_pass
def _sums(raw: Any, bias: Any) -> tuple[Any, Any]:
    """Add up ReLU's outputs and their squares over small squares: the rest of the sum is little work."""
    cells = [_relu(cell, bias) for cell in _cells_to_sum(raw)]
    return tf.add_n(cells), tf.add_n([cell * cell for cell in cells])


@_pass
def _line(values: Any, slope: Any, offset: Any) -> Any:
    return values * slope + offset


@_pass
def _gradient_sums(upstream: Any, pooled: Any) -> tuple[Any, Any]:
    """Add up the gradient, and its products with the pooled values, over small squares."""
    ours, theirs = _cells_to_sum(upstream), _cells_to_sum(pooled)
    return tf.add_n(ours), tf.add_n([a * b for a, b in zip(ours, theirs, strict=True)])


@_pass
def _max_gradient(raw: Any, bias: Any, scale: Any, upstream: Any, constant: Any, slope: Any) -> Any:
    """Return where(ReLU is on, scale · upstream at the first largest of its square + constant + slope · ReLU)."""
    _, height, width, channels = raw.shape
    cells, largest = _largest(raw, bias, scale)
    winner = tf.where(cells[2] == largest, 2, 3)
    winner = tf.where(cells[0] == largest, 0, tf.where(cells[1] == largest, 1, winner))
    small, large = [-1, height // 2, 1, width // 2, 1, channels], [-1, height // 2, 2, width // 2, 2, channels]
    place = tf.reshape(tf.constant([0, 1, 2, 3], tf.uint8), [1, 1, 2, 1, 2, 1])
    wins = tf.reshape(tf.cast(winner, tf.uint8), small) == place
    relu = _relu(tf.reshape(raw, large), bias)
    gradient = tf.where(wins, tf.reshape(scale * tf.cast(upstream, tf.float32), small), 0.0) + constant + slope * relu
    return tf.cast(tf.reshape(tf.where(relu > 0, gradient, 0.0), tf.shape(raw)), raw.dtype)


@_pass
def _average_gradient(raw: Any, bias: Any, upstream: Any, slope: Any) -> Any:
    """Return where(ReLU is on, upstream of the picture + slope · ReLU)."""
    relu = _relu(raw, bias)
    return tf.cast(tf.where(relu > 0, upstream[:, None, None] + slope * relu, 0.0), raw.dtype)


# Normalisation over a batch (Ioffe & Szegedy 2015, section 3) after pooling. With x̂ = (r - mean) · inverse, y = gamma
# · x̂ + beta, N values r per channel and g = dL/dy where pooling put it:
#   dL/dr = gamma · inverse · (g - sum(g) / N - x̂ · sum(g · x̂) / N)
# which is scale · g + a straight line in r.


def _statistics(raw: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Return mean, biased variance, and the mean of each picture."""
    sums, squares = _sums(raw, bias)
    pixels = raw.shape[1] * raw.shape[2]
    per_picture = tf.reduce_sum(sums, _SPATIAL) / pixels
    mean = tf.reduce_mean(per_picture, 0)
    variance = tf.reduce_mean(tf.reduce_sum(squares, _SPATIAL), 0) / pixels - mean * mean
    return mean, tf.maximum(variance, 0.0), per_picture


def _line_of_gradient(mean: Any, inverse: Any, scale: Any, sums: tuple[Any, Any], raw: Any) -> tuple[Any, Any, Any]:
    """Return (constant, slope) of the gradient's straight line in r, and the gradient of gamma."""
    count = tf.cast(tf.size(raw) // raw.shape[3], tf.float32)
    gamma_gradient = (sums[1] - mean * sums[0]) * inverse
    slope = -scale * inverse * gamma_gradient / count
    return -scale * sums[0] / count - slope * mean, slope, gamma_gradient


def _train_max(raw: Any, bias: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def block(raw: Any, bias: Any, gamma: Any, beta: Any) -> Any:
        mean, variance, _ = _statistics(raw, bias)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse
        pooled = _max(raw, bias, scale)

        def gradient(upstream: Any, *_unused: Any) -> tuple[Any, ...]:
            total, product = (tf.reduce_sum(part, [0, *_SPATIAL]) for part in _gradient_sums(upstream, pooled))
            constant, slope, gamma_gradient = _line_of_gradient(
                mean, inverse, scale, (total, product * _sign(scale)), raw
            )
            down = _max_gradient(raw, bias, scale, upstream, constant, slope)
            return down, tf.cast(tf.raw_ops.BiasAddGrad(out_backprop=down), tf.float32), gamma_gradient, total

        return (_line(pooled, tf.abs(scale), beta - scale * mean), mean, variance), gradient

    outputs: tuple[Any, Any, Any] = block(raw, bias, gamma, beta)
    return outputs


def _train_average(raw: Any, bias: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def block(raw: Any, bias: Any, gamma: Any, beta: Any) -> Any:
        mean, variance, per_picture = _statistics(raw, bias)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse

        def gradient(upstream: Any, *_unused: Any) -> tuple[Any, ...]:
            total, product = tf.reduce_sum(upstream, 0), tf.reduce_sum(upstream * per_picture, 0)
            constant, slope, gamma_gradient = _line_of_gradient(mean, inverse, scale, (total, product), raw)
            per_pixel = scale * upstream / (raw.shape[1] * raw.shape[2]) + constant
            down = _average_gradient(raw, bias, per_pixel, slope)
            return down, tf.cast(tf.raw_ops.BiasAddGrad(out_backprop=down), tf.float32), gamma_gradient, total

        return (scale * per_picture + beta - scale * mean, mean, variance), gradient

    outputs: tuple[Any, Any, Any] = block(raw, bias, gamma, beta)
    return outputs


def make_deterministic() -> None:
    """Let TensorFlow use only operations that give the same bits each time, in this whole process."""
    tf.config.experimental.enable_op_determinism()
