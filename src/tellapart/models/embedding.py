"""A network with its embedding laid open: what its last layer sees, by which photos are near each other or unknown."""

from __future__ import annotations

from typing import Any

import keras

from tellapart.errors import InputError
from tellapart.models.ensemble import members_of, mixture, picture_for


def feature_model(model: keras.Model) -> keras.Model:
    """Return the network with two outputs: its embedding, and its probabilities.

    The embedding is what the last dense layer sees. The last layer of an ensemble sees probabilities alone, which tell
    nothing of photos of no known class: there it is the members' own, each of norm 1, side by side, so that the
    cosine of two photos is the mean of the members' cosines.

    Raises:
        InputError: it has no dense layer.
    """
    members = members_of(model)
    if not members:
        dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
        if not dense:
            raise InputError(f"The network {model.name!r} has no Dense layer to take features from.")
        return keras.Model(model.inputs, [dense[-1].input, model.outputs[0]])
    embeddings, probabilities = [], []
    # Each member answers once for both outputs: taken from the graph as it stands, its embedding would cost it again.
    for number, member in enumerate(members, start=1):
        embedding, answer = feature_model(member)(picture_for(model, number))
        embeddings.append(unit(embedding))
        probabilities.append(answer)
    side_by_side = keras.layers.Concatenate(name="embedding")(embeddings) if len(members) > 1 else embeddings[0]
    return keras.Model(model.inputs, [side_by_side, mixture(model, probabilities)])


def unit(embedding: Any) -> Any:
    """Return a symbolic embedding as one vector of norm 1 for each picture."""
    return keras.layers.UnitNormalization(axis=-1)(keras.layers.Flatten()(embedding))
