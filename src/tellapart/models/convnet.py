"""The reference network: three convolutions, global average pooling, one hidden layer.

Knows nothing about data, losses or optimisers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tellapart.settings import ConvNet

Chain = Callable[..., Any]
"""Applies (convolution, normalisation or None, pooling) to a tensor, in turn or fused; `name` is the block's."""


def one_by_one(x: Any, conv: Any, batchnorm: Any, pool: Any, *, name: str) -> Any:
    """Apply the layers as they are."""
    del name
    return pool(conv(x) if batchnorm is None else batchnorm(conv(x)))


def convnet(
    settings: ConvNet,
    num_classes: int,
    image_px: int | None,
    *,
    chain: Chain = one_by_one,
    rescaling: type[keras.layers.Rescaling] = keras.layers.Rescaling,
    dtype: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Build the reference network.

    uint8 picture → [-1, 1] → three times (Conv2D 3×3 "same" + ReLU → BatchNormalization), with 32, 64 and
    128 channels and MaxPooling 2×2 after the first two → GlobalAveragePooling → Dense 256 + ReLU →
    Dropout → Dense + Softmax. 130,000 parameters; one of its last features sees 18 × 18 pixels.
    ``settings.width`` multiplies the channels, 256 among them; ``settings.channels`` says how many single layers have.

    Args:
        settings: width, dropout, L2, whether there is BatchNormalization, and its momentum.
        num_classes: length of the output.
        image_px: side of the input, or None for any size.
        chain: how the three layers of a block are applied; variables and their order are the same for all choices.
        rescaling: the layer that scales pictures, made as Keras' own is.
        dtype: "float32" or "mixed_bfloat16".
        seed: of the initial weights and dropout.

    Returns:
        A model from (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32
        probabilities.
    """
    # Each kernel takes the next seed: the order of layers decides on the initial weights.
    seeds = iter(range(seed, seed + 100))
    penalty = keras.regularizers.L2(settings.l2) if settings.l2 else None

    def kernel() -> dict[str, Any]:
        return {
            "kernel_initializer": keras.initializers.GlorotUniform(seed=next(seeds)),
            "kernel_regularizer": penalty,
        }

    inputs = keras.Input((image_px, image_px, 3), dtype="uint8", name="image")
    x = rescaling(1 / 127.5, offset=-1.0, dtype=dtype, name="normalise")(inputs)
    for block, full in enumerate((32, 64, 128), start=1):
        channels = settings.channels.get(f"conv{block}", _times(settings.width, full))
        # Averaging is in float32 even where convolutions are not: it adds thousands of values.
        pool = (
            keras.layers.MaxPooling2D(2, dtype=dtype, name=f"pool{block}")
            if block < 3
            else keras.layers.GlobalAveragePooling2D(dtype="float32", name="average")
        )
        # ReLU before normalisation before pooling: the fused blocks compute this order and no other.
        x = chain(
            x,
            keras.layers.Conv2D(
                channels, 3, padding="same", activation="relu", dtype=dtype, name=f"conv{block}", **kernel()
            ),
            keras.layers.BatchNormalization(momentum=settings.batchnorm_momentum, dtype=dtype, name=f"batchnorm{block}")
            if settings.batchnorm
            else None,
            pool,
            name=f"block{block}",
        )
    hidden = settings.channels.get("hidden", _times(settings.width, 256))
    x = keras.layers.Dense(hidden, activation="relu", dtype="float32", name="hidden", **kernel())(x)
    # Out of reach of the kernels' seeds.
    x = keras.layers.Dropout(settings.dropout, seed=seed + 50, dtype="float32", name="dropout")(x)
    # By this name the head is found, in saved networks too: to fit it, to measure it alone, to begin with another's.
    outputs = keras.layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities", **kernel())(
        x
    )
    return keras.Model(inputs, outputs, name="convnet")


def _times(width: float, channels: int) -> int:
    """Return so many times the channels, as a multiple of 8: vector registers hold eights."""
    return max(8, 8 * round(width * channels / 8))
