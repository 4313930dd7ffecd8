"""From settings to a network: which one, with which layers. Knows nothing about training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tellapart.models.backbones import BACKBONES, backbone_network
from tellapart.models.convnet import convnet, one_by_one
from tellapart.settings import Model

NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "convnet": convnet,
    **dict.fromkeys(BACKBONES, backbone_network),
}


def build(settings: Model, num_classes: int, image_px: int, *, seed: int = 0) -> keras.Model:
    """Build the network in plain Keras layers: what is saved, and opens without tellapart."""
    return NETWORKS[settings.name](settings, num_classes, image_px, seed=seed)


def build_for_training(settings: Model, num_classes: int, *, precision: str = "float32", seed: int = 0) -> keras.Model:
    """Build the network for any picture size, in the fastest layers that the backend has.

    Its variables are those of `build`, in the same order: `copy_weights` passes them on.
    """
    options: dict[str, Any] = {"dtype": precision, "seed": seed}
    # Imported for the backend in use only: each of the two needs what the other backend does not have.
    if keras.backend.backend() == "tensorflow":
        from tellapart.models.fused import FusedRescaling, fused, softmax

        model = NETWORKS[settings.name](settings, num_classes, None, chain=fused, rescaling=FusedRescaling, **options)
        model.get_layer("probabilities").activation = softmax
        return model
    chain = one_by_one
    if keras.backend.backend() == "jax":
        from tellapart.models.fused_jax import fused as chain
    return NETWORKS[settings.name](settings, num_classes, None, chain=chain, **options)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Give `target` the weights of `source`, another build of the same network."""
    target.set_weights(source.get_weights())
