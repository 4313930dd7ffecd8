"""Convolution and BatchNormalization on TensorFlow's fused kernels: the same function, less memory traffic.

Keras adds the bias with a broadcast addition, whose gradient is slow, and builds BatchNormalization from
separate moments and arithmetic. Here they are `BiasAdd` and `FusedBatchNormV3`, which oneDNN runs on all
cores. Variables, their names and their order are Keras' own, so weights pass to and from the plain layers.
Knows nothing about which network uses them. Only for the TensorFlow backend, only for training: what is
saved are the plain layers.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class FusedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with stride 1 and no dilation, its bias added by `BiasAdd`."""

    def call(self, inputs: Any) -> Any:
        """Map (num_images, height, width, channels) to (num_images, height, width, filters)."""
        outputs = tf.nn.conv2d(inputs, self.kernel, strides=1, padding=self.padding.upper())
        outputs = tf.nn.bias_add(outputs, tf.cast(self.bias, outputs.dtype))
        return self.activation(outputs)


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` over the last axis of pictures, as one fused kernel."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise (num_images, height, width, channels); in training also move the running statistics."""
        del mask
        scale, offset = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not (training and self.trainable):
            mean = tf.convert_to_tensor(self.moving_mean)
            variance = tf.convert_to_tensor(self.moving_variance)
            return tf.raw_ops.FusedBatchNormV3(
                x=inputs, scale=scale, offset=offset, mean=mean, variance=variance,
                epsilon=self.epsilon, is_training=False,
            )[0]  # fmt: skip
        empty = tf.zeros([0], tf.float32)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=empty, variance=empty,
            epsilon=self.epsilon, is_training=True,
        )  # fmt: skip
        # The kernel returns the unbiased variance; Keras keeps the biased one.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        variance *= (count - 1) / count
        keep = self.momentum
        self.moving_mean.assign(self.moving_mean * keep + mean * (1 - keep))
        self.moving_variance.assign(self.moving_variance * keep + variance * (1 - keep))
        return outputs


def make_deterministic() -> None:
    """Let TensorFlow use only operations that give the same bits each time, in this whole process."""
    tf.config.experimental.enable_op_determinism()
