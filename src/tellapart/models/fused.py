"""A convolution block whose ReLU, BatchNormalization and pooling touch memory as little as they can.

On a processor these three cost as much as the convolution: each layer reads and writes every activation. Here one
pass over the convolution's output pools it and sums it for the statistics; normalisation, a straight line per
channel, follows on the pooled values; on the way back one pass makes the whole gradient and the bias'. Numba compiles
the passes (models/passes.py), TensorFlow's oneDNN kernels convolve. Function, gradients and variables are those of
the plain layers.
Knows nothing about which network uses it. Only for TensorFlow, only for training: what is saved are plain layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tellapart.models import passes


class FusedBlock(keras.layers.Layer):
    """Conv2D with ReLU, BatchNormalization and pooling as one layer.

    The plain layers do the work on a GPU, where the sides of the pictures are not known or not even, and while the
    normalisation is frozen in training.

    Args:
        conv: a `keras.layers.Conv2D` with ReLU, padding "same" and stride 1.
        batchnorm: a `keras.layers.BatchNormalization` over the last axis, or None.
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
        if self.batchnorm is not None:
            self.batchnorm.build(self.conv.compute_output_shape(input_shape))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape after pooling."""
        shape: tuple[int | None, ...] = self.pool.compute_output_shape(self.conv.compute_output_shape(input_shape))
        return shape

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Map (num_images, height, width, channels) to pooled features, in the dtype of `pool`."""
        norm, sides = self.batchnorm, inputs.shape[1:3]
        fuses = self._fuses and None not in sides and (self._averages or not any(side % 2 for side in sides))
        if not fuses or (norm is not None and training and not norm.trainable):
            features = self.conv(inputs)
            return self.pool(features if norm is None else norm(features, training=training))
        # Without its bias: the pass that follows adds it, which saves one more reading and writing.
        raw = tf.nn.conv2d(inputs, tf.cast(self.conv.kernel, inputs.dtype), strides=1, padding="SAME")
        if norm is None:
            outputs = (_average if self._averages else _max)(raw, tf.convert_to_tensor(self.conv.bias))
            return tf.cast(outputs, self.pool.compute_dtype)
        bias, gamma, beta = (tf.convert_to_tensor(v) for v in (self.conv.bias, norm.gamma, norm.beta))
        if training:
            train = _train_average if self._averages else _train_max
            outputs, mean, variance = train(raw, bias, gamma, beta, norm.epsilon)
            keep = norm.momentum
            # As Keras' own layer does it: the variance is the biased one.
            norm.moving_mean.assign(norm.moving_mean * keep + mean * (1 - keep))
            norm.moving_variance.assign(norm.moving_variance * keep + variance * (1 - keep))
        else:
            # Outside training the statistics are known before the pass, so the whole line is.
            scale = gamma * tf.math.rsqrt(norm.moving_variance + norm.epsilon)
            offset = beta - scale * norm.moving_mean
            if self._averages:
                averages, _, _ = _average_forward(raw, bias)
                outputs = averages * scale + offset
            else:
                pooled, _, _ = _max_forward(raw, bias, scale)
                outputs = _line(pooled, tf.abs(scale), offset)
        return tf.cast(outputs, self.pool.compute_dtype)


class FusedRescaling(keras.layers.Rescaling):
    """Keras' own layer, which works out each of the 256 levels once and then looks it up, in one pass.

    Its cast, product and sum are three passes over numbers that TensorFlow multiplies slowly in bfloat16.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # By Keras itself: the same bits, whatever it rounds.
        self._table = super().call(tf.range(256)).numpy()
        self._looks_up = not tf.config.list_physical_devices("GPU")

    def __call__(self, inputs: Any, **named: Any) -> Any:
        """Pass the levels on to `call` as they are."""
        # Inside a graph Keras' layer takes itself for a part of a data pipeline: it casts the levels before `call`.
        return keras.layers.Layer.__call__(self, inputs, **named)

    def call(self, inputs: Any) -> Any:
        """Map (num_images, height, width, channels) uint8 to scaled values of the layer's dtype."""
        if not self._looks_up or inputs.dtype != tf.uint8:
            return super().call(inputs)
        return _operation(passes.look_up, (inputs, self._table), ((self._table.dtype, inputs.shape),))[0]


def softmax(logits: Any) -> Any:
    """Map (num_images, num_classes) logits to probabilities, as `keras.activations.softmax` does.

    oneDNN's takes a millisecond for a few rows (docs/experiments.md).
    """
    # The largest is taken off: its power is 1, and no other one overflows. It changes nothing, its gradient neither.
    powers = tf.exp(logits - tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True)))
    probabilities = powers / tf.reduce_sum(powers, -1, keepdims=True)
    # Where Keras' cross-entropy looks for logits: from probabilities it would lose digits.
    probabilities._keras_logits = logits
    return probabilities


def fused(x: Any, conv: Any, batchnorm: Any, pool: Any, *, name: str) -> Any:
    """Apply the three layers as one `FusedBlock`."""
    return FusedBlock(conv, batchnorm, pool, name)(x)


# Normalisation over a batch (Ioffe & Szegedy 2015, section 3) after pooling. With x̂ = (r - mean) · inverse, y = gamma
# · x̂ + beta, N values r per channel and g = dL/dy where pooling put it:
#   dL/dr = gamma · inverse · (g - sum(g) / N - x̂ · sum(g · x̂) / N)
# which is scale · g + a straight line in r. Where the slope, scale = gamma · inverse, is negative, the largest value
# after normalisation is the smallest before: pooling takes the largest of sign(scale) · r, and the line that follows
# has the slope's size.


def _line_of_gradient(mean: Any, inverse: Any, scale: Any, sums: tuple[Any, Any], raw: Any) -> tuple[Any, Any, Any]:
    """Return (constant, slope) of the gradient's straight line in r, and the gradient of gamma."""
    count = tf.cast(tf.size(raw) // raw.shape[3], tf.float32)
    gamma_gradient = (sums[1] - mean * sums[0]) * inverse
    slope = -scale * inverse * gamma_gradient / count
    return -scale * sums[0] / count - slope * mean, slope, gamma_gradient


def _train_max(raw: Any, bias: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def block(raw: Any, bias: Any, gamma: Any, beta: Any) -> Any:
        # The sign alone counts, and gamma has that of the slope: the slope itself is known only when this pass has
        # found the variance.
        pooled, mean, variance = _max_forward(raw, bias, gamma)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse

        def gradient(upstream: Any, *_unused: Any) -> tuple[Any, ...]:
            # Pooled values are sign(scale) · r; the sums are of r.
            total, product = _gradient_sums(upstream, pooled)
            sums = total, product * tf.where(scale < 0, -1.0, 1.0)
            constant, slope, gamma_gradient = _line_of_gradient(mean, inverse, scale, sums, raw)
            down, bias_gradient = _max_gradient(raw, bias, scale, upstream, constant, slope)
            return down, bias_gradient, gamma_gradient, total

        return (_line(pooled, tf.abs(scale), beta - scale * mean), mean, variance), gradient

    outputs: tuple[Any, Any, Any] = block(raw, bias, gamma, beta)
    return outputs


def _train_average(raw: Any, bias: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def block(raw: Any, bias: Any, gamma: Any, beta: Any) -> Any:
        averages, mean, variance = _average_forward(raw, bias)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse

        def gradient(upstream: Any, *_unused: Any) -> tuple[Any, ...]:
            total, product = tf.reduce_sum(upstream, 0), tf.reduce_sum(upstream * averages, 0)
            constant, slope, gamma_gradient = _line_of_gradient(mean, inverse, scale, (total, product), raw)
            per_pixel = scale * upstream / (raw.shape[1] * raw.shape[2]) + constant
            down, bias_gradient = _average_gradient(raw, bias, per_pixel, slope)
            return down, bias_gradient, gamma_gradient, total

        return (scale * averages + beta - scale * mean, mean, variance), gradient

    outputs: tuple[Any, Any, Any] = block(raw, bias, gamma, beta)
    return outputs


# Without normalisation: the same passes, with the slope 1 and a gradient's line of 0.


def _max(raw: Any, bias: Any) -> Any:
    one, none = tf.ones_like(bias), tf.zeros_like(bias)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def block(raw: Any, bias: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            return _max_gradient(raw, bias, one, upstream, none, none)

        return _max_forward(raw, bias, one)[0], gradient

    return block(raw, bias)


def _average(raw: Any, bias: Any) -> Any:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def block(raw: Any, bias: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            per_pixel = upstream / (raw.shape[1] * raw.shape[2])
            return _average_gradient(raw, bias, per_pixel, tf.zeros_like(bias))

        return _average_forward(raw, bias)[0], gradient

    return block(raw, bias)


# The passes as TensorFlow operations. Tensors and arrays share their memory.


def _max_forward(raw: Any, bias: Any, scale: Any) -> Any:
    count, height, width, channels = raw.shape
    pooled = (raw.dtype, (count, height // 2, width // 2, channels))
    return _operation(passes.max_forward, (raw, bias, scale), (pooled, _per(channels), _per(channels)))


def _average_forward(raw: Any, bias: Any) -> Any:
    count, channels = raw.shape[0], raw.shape[3]
    results = (_per(count, channels), _per(channels), _per(channels))
    return _operation(passes.average_forward, (raw, bias), results)


def _line(values: Any, slope: Any, offset: Any) -> Any:
    return _operation(passes.line, (values, slope, offset), ((values.dtype, values.shape),))[0]


def _gradient_sums(upstream: Any, pooled: Any) -> Any:
    channels = pooled.shape[3]
    return _operation(passes.gradient_sums, (upstream, pooled), (_per(channels), _per(channels)))


def _max_gradient(raw: Any, bias: Any, scale: Any, upstream: Any, constant: Any, slope: Any) -> Any:
    arrays = (raw, bias, scale, upstream, constant, slope)
    return _operation(passes.max_gradient, arrays, ((raw.dtype, raw.shape), _per(raw.shape[3])))


def _average_gradient(raw: Any, bias: Any, upstream: Any, slope: Any) -> Any:
    arrays = (raw, bias, upstream, slope)
    return _operation(passes.average_gradient, arrays, ((raw.dtype, raw.shape), _per(raw.shape[3])))


def _per(*shape: int | None) -> tuple[Any, Sequence[int | None]]:
    return tf.float32, shape


def _operation(
    function: Callable[..., Any], inputs: Sequence[Any], results: Sequence[tuple[Any, Sequence[int | None]]]
) -> Any:
    """Apply a function of NumPy arrays; `results` has the (dtype, shape) of each array that it returns."""
    # stateful=False: the passes depend on their arguments alone, and TensorFlow may leave out what nothing uses.
    outputs = tf.nest.flatten(tf.numpy_function(function, inputs, [dtype for dtype, _ in results], stateful=False))
    for output, (_, shape) in zip(outputs, results, strict=True):
        # numpy_function forgets shapes, and the layers that follow are built from them.
        output.set_shape(shape)
    return outputs


def make_deterministic() -> None:
    """Let TensorFlow use only operations that give the same bits each time, in this whole process."""
    tf.config.experimental.enable_op_determinism()
