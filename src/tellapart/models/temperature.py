"""A temperature inside a network: same classes, more or less sure. Knows nothing about how it is fitted."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.models.layers import layers_of


def with_temperature(model: keras.Model, temperature: float, shift: NDArray[np.float64] | None = None) -> keras.Model:
    """Return a copy of a network with its logits divided by `temperature` (Guo et al. 2017, section 4.2).

    The division goes into the weights of the last layer: the network stays one of plain layers and costs nothing more.

    Args:
        model: the network.
        temperature: above 0.
        shift: (num_classes,), is added to the logits before they are divided; None: nothing.

    Raises:
        InputError: the network does not end with a Dense layer and a softmax, or has no bias to shift.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    everything = list(layers_of(copy))
    layers = [layer for layer in everything if not isinstance(layer, keras.layers.Softmax)]
    last = layers[-1]
    is_softmax = getattr(last, "activation", None) is keras.activations.softmax or len(layers) < len(everything)
    if not isinstance(last, keras.layers.Dense) or not is_softmax:
        raise InputError(f"The network ends with {last.name!r}. Expected a Dense layer with a softmax.")
    # Kernel and bias alike: logits are linear in both. The shift goes to the bias first, and is divided with it.
    weights = [np.asarray(weight) for weight in last.get_weights()]
    if shift is not None:
        if len(weights) < 2:
            raise InputError(f"The last layer {last.name!r} has no bias. Expected one, to move the network by.")
        weights[1] = weights[1] + shift
    last.set_weights([weight / temperature for weight in weights])
    return copy
