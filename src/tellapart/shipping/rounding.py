"""Trains a network a little further with its weights and activations rounded to eight bits, as int8 will round them.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 3: rounding in the forward pass, its gradient that of the identity inside the range. Normalisations are folded
into convolutions before, and the teacher is the network as it was, so that no label is needed. Knows nothing about
files: what comes out is an ordinary network with other weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.models.layers import called, layers_of, plain_clone
from tellapart.records import Progress, no_progress

Pictures = NDArray[np.uint8]
_RATE = 2e-5
"""Highest rate of Adam; it falls to nothing along a cosine."""
_TINY = 1e-7


def folded(model: keras.Model) -> keras.Model:
    """Return a network that says the same, with normalisations inside the linear convolutions before them."""
    pairs = {
        after.name: before
        for before, after in itertools.pairwise(layers_of(model))
        if isinstance(after, keras.layers.BatchNormalization)
        and type(before) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        and before.activation is keras.activations.linear
        and after.input is before.output
    }
    convolutions = {before.name for before in pairs.values()}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=clone, call_function=called)
        if layer.name in pairs:
            return keras.layers.Identity(name=layer.name)
        config = layer.get_config()
        if layer.name in convolutions:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone, call_function=called)
    normalisations = {before.name: layer for layer in layers_of(model) if (before := pairs.get(layer.name)) is not None}
    sources = {layer.name: layer for layer in layers_of(model)}
    for layer in layers_of(copy):
        if not layer.weights:
            continue
        weights = sources[layer.name].get_weights()
        if layer.name in convolutions:
            gamma, beta, mean, variance = _vectors(normalisations[layer.name])
            scale = gamma / np.sqrt(variance + normalisations[layer.name].epsilon)
            kernel, bias = weights[0], weights[1] if len(weights) > 1 else np.zeros_like(mean)
            # A depthwise kernel is (height, width, channels, 1).
            is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            weights = [kernel * (scale[:, None] if is_depthwise else scale), beta + (bias - mean) * scale]
        layer.set_weights(weights)
    return copy


def _vectors(normalisation: keras.layers.BatchNormalization) -> list[NDArray[np.float64]]:
    """Return gamma, beta, mean and variance, also where one of the first two is left out."""
    mean, variance = (np.asarray(value, np.float64) for value in normalisation.get_weights()[-2:])
    gamma = np.asarray(normalisation.gamma, np.float64) if normalisation.scale else np.ones_like(mean)
    beta = np.asarray(normalisation.beta, np.float64) if normalisation.center else np.zeros_like(mean)
    return [gamma, beta, mean, variance]


def trained_for_int8(
    model: keras.Model,
    batches: Callable[[], Iterator[Pictures]],
    calibration: Pictures,
    *,
    epochs: int,
    num_batches: int,
    progress: Progress = no_progress,
) -> keras.Model:
    """Train a network to say what it says when its weights and activations are rounded to eight bits.

    Args:
        model: without normalisations that could be folded (`folded`).
        batches: makes an iterator over the training photos for each epoch, (num_images, image_px, image_px, 3) uint8.
        calibration: pictures that the ranges of activations are learned from.
        epochs: times over the training photos.
        num_batches: of an epoch.
        progress: called with ("training for int8", done, total).

    Returns:
        The same layers with other weights.
    """
    student = _rounded(model)
    activations = [layer for layer in layers_of(student) if isinstance(layer, RoundedActivation)]
    for start in range(0, len(calibration), 32):
        for layer in activations:
            layer.is_watching = True
        student(calibration[start : start + 32], training=False)
    for layer in activations:
        layer.is_watching = False
    schedule = keras.optimizers.schedules.CosineDecay(_RATE, max(1, epochs * num_batches))
    student.compile(keras.optimizers.Adam(schedule), loss="categorical_crossentropy", jit_compile=False)
    for epoch in range(epochs):
        for number, pictures in enumerate(batches()):
            student.train_on_batch(pictures, model.predict_on_batch(pictures))
            progress("training for int8", epoch * num_batches + number + 1, epochs * num_batches)
    copy = keras.models.clone_model(model, clone_function=plain_clone)
    trained = {layer.name: layer for layer in layers_of(student)}
    for layer in layers_of(copy):
        if layer.weights:
            layer.set_weights(trained[layer.name].get_weights())
    return copy


@keras.saving.register_keras_serializable("tellapart")
class RoundedActivation(keras.layers.Layer):
    """Rounds what goes through it to 256 levels of the range that it has watched."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_watching = False

    def build(self, input_shape: Any) -> None:
        """Make the ends of the range."""
        del input_shape
        self.low = self.add_weight(shape=(), initializer="zeros", trainable=False, name="low")
        self.high = self.add_weight(shape=(), initializer="zeros", trainable=False, name="high")

    def call(self, inputs: Any) -> Any:
        """Return them rounded; while it watches, as they are."""
        if self.is_watching:
            self.low.assign(keras.ops.minimum(self.low, keras.ops.min(inputs)))
            self.high.assign(keras.ops.maximum(self.high, keras.ops.max(inputs)))
            return inputs
        return keras.quantizers.fake_quant_with_min_max_vars(inputs, self.low, self.high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape as it is."""
        return input_shape


class _RoundedConv2D(keras.layers.Conv2D):
    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return super().convolution_op(inputs, _rounded_kernel(kernel, 3))


class _RoundedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    def call(self, inputs: Any) -> Any:
        outputs = keras.ops.depthwise_conv(
            inputs, _rounded_kernel(self.kernel, 2), strides=self.strides, padding=self.padding,
            dilation_rate=self.dilation_rate, data_format=self.data_format,
        )  # fmt: skip
        return self.activation(outputs + self.bias if self.use_bias else outputs)


class _RoundedDense(keras.layers.Dense):
    def call(self, inputs: Any, training: Any = None) -> Any:
        del training
        outputs = keras.ops.matmul(inputs, _rounded_kernel(self.kernel, 1))
        return self.activation(outputs + self.bias if self.use_bias else outputs)


_ROUNDED: dict[Any, Any] = {
    keras.layers.Conv2D: _RoundedConv2D,
    keras.layers.DepthwiseConv2D: _RoundedDepthwiseConv2D,
    keras.layers.Dense: _RoundedDense,
}


def _rounded_kernel(kernel: Any, axis: int) -> Any:
    """Return a kernel rounded to 255 levels around 0, for each of the channels that it makes."""
    others = [at for at in range(len(kernel.shape)) if at != axis]
    limit = keras.ops.maximum(keras.ops.max(keras.ops.abs(kernel), axis=others), _TINY)
    # Sums over channels, of which two neighbours must not overflow (`quantize.scales_without_overflow`); of the three
    # of the picture, pairs across places are left out here.
    if axis == 3:
        even = kernel.shape[2] // 2 * 2
        first, second = kernel[:, :, 0:even:2], kernel[:, :, 1:even:2]
        sums = keras.ops.where(first * second > 0, keras.ops.abs(first + second), 0.0)
        limit = keras.ops.maximum(limit, keras.ops.max(sums, axis=others)) if even else limit
    limit = keras.ops.stop_gradient(limit)
    return keras.quantizers.fake_quant_with_min_max_vars(kernel, -limit, limit, narrow_range=True, axis=axis)


def _rounded(model: keras.Model) -> keras.Model:
    """Return the network with rounded kernels, and rounded activations where int8 has tensors of its own."""
    names = _rounded_after(model)

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=clone, call_function=call)
        if isinstance(layer, keras.layers.Dropout):  # the teacher drops nothing
            return keras.layers.Identity(name=layer.name)
        kind = _ROUNDED.get(type(layer), type(layer))
        copy = kind.from_config(layer.get_config())
        if hasattr(layer, "activation"):
            copy.activation = layer.activation
        if isinstance(layer, keras.layers.BatchNormalization):
            copy.trainable = False  # as in prediction: its statistics are those that were measured
        return copy

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        outputs = called(layer, *inputs, **options)
        return RoundedActivation(name=f"{layer.name}_rounded")(outputs) if layer.name in names else outputs

    student = keras.models.clone_model(model, clone_function=clone, call_function=call)
    targets = {layer.name: layer for layer in layers_of(student)}
    for layer in layers_of(model):
        if layer.weights:
            targets[layer.name].set_weights(layer.get_weights())
    return student


def _rounded_after(model: keras.Model) -> set[str]:
    """Return the layers whose output int8 rounds: all but those whose activation follows, and the probabilities.

    A normalisation after the last convolution is computed in float32 in ONNX, and folded in LiteRT
    (`tellapart.shipping.quantize`).
    """
    layers = list(layers_of(model))
    last = max((at for at, layer in enumerate(layers) if isinstance(layer, keras.layers.Conv2D)), default=0)
    kinds = (
        keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.BatchNormalization, keras.layers.ReLU,
        keras.layers.Activation, keras.layers.Add, keras.layers.Multiply, keras.layers.Rescaling,
        keras.layers.GlobalAveragePooling2D,
    )  # fmt: skip
    names = set()
    for at, (layer, after) in enumerate(itertools.pairwise(layers)):
        is_activated = isinstance(after, keras.layers.ReLU | keras.layers.Activation) and after.input is layer.output
        is_late = at > last and isinstance(layer, keras.layers.BatchNormalization)
        if isinstance(layer, kinds) and not is_activated and not is_late:
            names.add(layer.name)
    return names
