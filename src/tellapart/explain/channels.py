"""Which channel of a layer carries which class? Knows nothing about how that is shown."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.explain.maps import Targets
from tellapart.models.layers import Floats, Images, LayerReader


@dataclass(frozen=True)
class Channels:
    """The channels of a layer.

    Attributes:
        layer: its name.
        importance: (num_channels, num_classes) float32: by how much the log-probability of a class falls on its own
            photos when the channel is silenced, on average.
        strongest: (num_channels, k) positions of the photos that excite each channel most, by its mean output.
    """

    layer: str
    importance: Floats
    strongest: NDArray[np.int64]


def channel_importance(
    model: keras.Model,
    images: Images,
    targets: Targets,
    num_classes: int,
    *,
    layer: keras.layers.Layer | None = None,
    top: int = 6,
) -> Channels:
    """Silence each channel in turn and see what the network forgets (ablation; Morcos et al. 2018, section 3.1).

    A silenced channel shows its mean over the photos, which says nothing about any of them.

    Args:
        model: maps uint8 pictures to probabilities.
        images: (num_images, height, width, 3) uint8; a few dozen of each class are enough.
        targets: (num_images,) their true class numbers.
        num_classes: of the network.
        layer: with feature maps; None: the last one.
        top: photos to name for each channel.
    """
    reader = LayerReader(model, layer)
    reading = reader.read(images, targets)
    excitement = reading.outputs.mean(axis=(1, 2))
    mean = excitement.mean(axis=0)
    before = _log(reading.probabilities, targets)
    importance = np.zeros((excitement.shape[1], num_classes), np.float32)
    # One copy serves all channels: each is restored after its turn. Only the network behind the layer is computed,
    # since nothing before it changes.
    silenced = reading.outputs.copy()
    for channel in range(excitement.shape[1]):
        silenced[..., channel] = mean[channel]
        fall = before - _log(reader.resume(images[:1], silenced), targets)
        silenced[..., channel] = reading.outputs[..., channel]
        for number in range(num_classes):
            if (targets == number).any():
                importance[channel, number] = fall[targets == number].mean()
    strongest = np.argsort(-excitement, axis=0, kind="stable")[:top].T
    return Channels(reader.layer.name, importance, strongest)


def _log(probabilities: Floats, targets: Targets) -> Floats:
    # The floor keeps an underflowed probability from making the mean infinite.
    return np.asarray(np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-7)), np.float32)
