"""Several networks as one: their probabilities, weighted. Knows nothing about how members or weights were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

_TINY = 1e-7
"""Probabilities are kept this far from 0 before the logarithm, as in the loss."""


def joined(members: Sequence[keras.Model], weights: Sequence[float]) -> keras.Model:
    """Return one network of plain Keras layers whose probabilities are the weighted mean of the members'.

    uint8 picture → each member, at its own size → mean, weighted by a Dense layer that does not learn → logarithm →
    Dense + softmax with the identity as its kernel. The last step gives back the mean; it is there so that the network
    ends as all others do: calibration divides that kernel, and the logarithms of the mean are its features.

    Pictures come at the size of the largest member. Smaller members get them averaged over blocks, by whole numbers,
    then bilinear: as the decoder shrinks pictures, but without its rounding, and from a picture that is shrunk already.

    The member with the largest weight comes last: heat maps, which look at the last feature maps, are of that one.

    Args:
        members: networks from (num_images, px, px, 3) uint8 to (num_images, num_classes) probabilities, in one order of
            classes.
        weights: of the members, above 0; divided by their sum.

    Returns:
        A model from (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32; it shares nothing
        with the members.
    """
    order = np.argsort(weights, kind="stable")
    image_px = max(int(member.input_shape[1]) for member in members)
    num_classes = int(members[0].output_shape[1])
    inputs = keras.Input((image_px, image_px, 3), dtype="uint8", name="image")
    picture = keras.layers.Rescaling(1.0, name="picture")(
        inputs
    )  # one layer that all see, for gradients to the picture
    said = [
        _as_layer(members[place], f"member{number}")(_resized(picture, int(members[place].input_shape[1]), number))
        for number, place in enumerate(order, start=1)
    ]
    every = keras.layers.Concatenate(name="said")(said) if len(said) > 1 else said[0]
    mean = keras.layers.Dense(num_classes, use_bias=False, trainable=False, name="weights")
    logarithms = keras.ops.log(keras.ops.maximum(mean(every), _TINY))
    last = keras.layers.Dense(num_classes, activation="softmax", name="probabilities")
    outputs = last(logarithms)
    shares = np.asarray(weights, np.float64)[order] / np.sum(weights)
    mean.set_weights([np.concatenate([share * np.eye(num_classes) for share in shares]).astype(np.float32)])
    last.set_weights([np.eye(num_classes, dtype=np.float32), np.zeros(num_classes, np.float32)])
    return keras.Model(inputs, outputs, name="ensemble")


def shrinking(member: keras.Model, image_px: int) -> keras.Model:
    """Return a member as it stands in an ensemble of larger pictures, alone.

    Args:
        member: as for `joined`.
        image_px: side of the pictures that the ensemble takes.
    """
    inputs = keras.Input((image_px, image_px, 3), dtype="uint8", name="image")
    picture = keras.layers.Rescaling(1.0, name="picture")(inputs)
    outputs = _as_layer(member, "member")(_resized(picture, int(member.input_shape[1]), 0))
    return keras.Model(inputs, outputs, name="shrinking")


def mixed(said: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """Return what the last layer of `joined` sees: the logarithm of the members' weighted mean, as float32.

    Args:
        said: (num_images, num_classes) probabilities of each member.
        weights: of the members, above 0.
    """
    mean = sum(weight * rows for weight, rows in zip(np.asarray(weights) / np.sum(weights), said, strict=True))
    return np.asarray(np.log(np.maximum(mean, _TINY)), np.float32)


def _as_layer(member: keras.Model, name: str) -> keras.Model:
    """Return a copy of a member that takes pictures as float32: an input of uint8 would cut off what resizing gave."""
    side = int(member.input_shape[1])
    copy = keras.models.clone_model(member, input_tensors=keras.Input((side, side, 3), dtype="float32", name="image"))
    copy.set_weights(member.get_weights())
    return keras.Model(copy.inputs[0], copy.outputs[0], name=name)


def _resized(picture: Any, side: int, number: int) -> Any:
    blocks = int(picture.shape[1]) // side
    if blocks > 1:
        picture = keras.layers.AveragePooling2D(blocks, name=f"shrink{number}")(picture)
    if int(picture.shape[1]) != side:
        picture = keras.layers.Resizing(side, side, interpolation="bilinear", name=f"resize{number}")(picture)
    return picture
