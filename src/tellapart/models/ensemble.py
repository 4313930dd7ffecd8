"""Several networks as one: their probabilities, weighted. Knows nothing about how members or weights were chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

_TINY = 1e-7
"""Probabilities are kept this far from 0 before the logarithm, as in the loss."""


def joined(members: Sequence[keras.Model], weights: Sequence[float], image_px: int = 0) -> keras.Model:
    """Return one network of plain Keras layers whose probabilities are the weighted mean of the members'.

    uint8 picture → each member, at its own size → mean, weighted by a Dense layer that does not learn → logarithm →
    Dense + softmax with the identity as its kernel. The last step gives back the mean; it is there so that the network
    ends as all others do: calibration divides that kernel.

    Pictures come at the size of the largest member. Smaller members get them averaged over blocks, by whole numbers,
    then bilinear: as the decoder shrinks pictures, but without its rounding, and from a picture that is shrunk already.

    The member with the largest weight comes last: heat maps, which look at the last feature maps, are of that one.

    Args:
        members: networks from (num_images, px, px, 3) uint8 to (num_images, num_classes) probabilities, in one order of
            classes.
        weights: of the members, above 0; divided by their sum.
        image_px: side of the pictures; 0: that of the largest member.

    Returns:
        A model from (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32; it shares nothing
        with the members.
    """
    order = np.argsort(weights, kind="stable")
    image_px = image_px or max(int(member.input_shape[1]) for member in members)
    num_classes = int(members[0].output_shape[1])
    inputs = keras.Input((image_px, image_px, 3), dtype="uint8", name="image")
    # One layer that all members see: gradients with respect to the picture are taken here.
    picture = keras.layers.Rescaling(1.0, name="picture")(inputs)
    # Names are the format of saved ensembles: `members_of`, `picture_for` and `mixture` go by "member1", "resize1",
    # "shrink1", "picture", "weights" and "probabilities".
    member_probabilities = [
        _as_layer(members[index], f"member{number}")(_resized(picture, int(members[index].input_shape[1]), number))
        for number, index in enumerate(order, start=1)
    ]
    # The weighted mean as one matrix: the members' probabilities side by side, times a stack of scaled identities.
    every = (
        keras.layers.Concatenate(name="said")(member_probabilities)
        if len(member_probabilities) > 1
        else member_probabilities[0]
    )
    mean = keras.layers.Dense(num_classes, use_bias=False, trainable=False, name="weights")
    # A probability of 0 would be minus infinity, and its gradient NaN.
    logarithms = keras.ops.log(keras.ops.maximum(mean(every), _TINY))
    last = keras.layers.Dense(num_classes, activation="softmax", name="probabilities")
    outputs = last(logarithms)
    shares = np.asarray(weights, np.float64)[order] / np.sum(weights)
    mean.set_weights([np.concatenate([share * np.eye(num_classes) for share in shares]).astype(np.float32)])
    last.set_weights([np.eye(num_classes, dtype=np.float32), np.zeros(num_classes, np.float32)])
    return keras.Model(inputs, outputs, name="ensemble")


def members_of(model: keras.Model) -> list[keras.Model]:
    """Return the members of a network that `joined` made, the heaviest last; of any other network none."""
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    return [layer for layer in nested if re.fullmatch(r"member\d+", layer.name)]


def picture_for(model: keras.Model, number: int) -> Any:
    """Return the symbolic picture, (num_images, px, px, 3) float32, that member `number`, from 1, of a network sees."""
    names = {layer.name for layer in model.layers}
    last = next(name for name in (f"resize{number}", f"shrink{number}", "picture") if name in names)
    return model.get_layer(last).output


def mixture(model: keras.Model, probabilities: Sequence[Any]) -> Any:
    """Return what a network that `joined` made says where its members say this; symbolic, (num_images, num_classes).

    By copies of its last layers: Keras no longer knows *the* input of a layer that stands in two networks.
    """
    every = keras.layers.Concatenate()(probabilities) if len(probabilities) > 1 else probabilities[0]
    mean = _again(model.get_layer("weights"), every)
    return _again(model.get_layer("probabilities"), keras.ops.log(keras.ops.maximum(mean, _TINY)))


def _again(layer: keras.layers.Layer, inputs: Any) -> Any:
    copy = type(layer).from_config(layer.get_config())
    outputs = copy(inputs)
    copy.set_weights(layer.get_weights())
    return outputs


def heaviest(model: keras.Model) -> keras.Model:
    """Return the member with the largest weight, for pictures of the ensemble's size; any other network as it is."""
    members = members_of(model)
    return keras.Model(model.inputs[0], members[-1](picture_for(model, len(members)))) if members else model


def _as_layer(member: keras.Model, name: str) -> keras.Model:
    """Return a copy of a member that takes pictures as float32: an input of uint8 would cut off what resizing gave."""
    side = int(member.input_shape[1])
    copy = keras.models.clone_model(member, input_tensors=keras.Input((side, side, 3), dtype="float32", name="image"))
    copy.set_weights(member.get_weights())
    return keras.Model(copy.inputs[0], copy.outputs[0], name=name)


def _resized(picture: Any, side: int, number: int) -> Any:
    # Bilinear resizing looks at four pixels only: shrinking by two and more would skip others, so blocks are averaged
    # first.
    blocks = int(picture.shape[1]) // side
    if blocks > 1:
        picture = keras.layers.AveragePooling2D(blocks, name=f"shrink{number}")(picture)
    if int(picture.shape[1]) != side:
        picture = keras.layers.Resizing(side, side, interpolation="bilinear", name=f"resize{number}")(picture)
    return picture
