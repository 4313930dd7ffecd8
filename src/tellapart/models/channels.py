"""Which channels of a network must leave together, and the same network with fewer of them.

A channel can leave where all layers that make it, carry it and read it are known here. Layers that are added up share
their channels; a depthwise convolution and a normalisation carry what they are given. What cannot be narrowed stays as
it is, with the reason. Knows nothing about which channels matter (`tellapart.compress.importance`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.models.layers import layers_of

Keep = Mapping[str, NDArray[np.int64]]
"""Name of a group → positions of the channels that stay, ascending."""

_CARRY = (
    keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.Dropout, keras.layers.Identity,
    keras.layers.SpatialDropout2D, keras.layers.ZeroPadding2D, keras.layers.Cropping2D, keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D,
    keras.layers.UpSampling2D, keras.layers.Rescaling,
)  # fmt: skip
"""Layers that treat each channel alone and have no weights."""
_JOIN = {"Add", "Subtract", "Multiply", "Maximum", "Minimum", "Average"}
"""Layers and operations of Keras that combine channel with channel."""
_OVER_CHANNELS = (keras.activations.softmax, keras.activations.log_softmax)


@dataclass(eq=False)
class _Space:
    """Channels that are known to be the same ones; joined to others through `parent`."""

    size: int
    fixed: str = ""
    parent: _Space | None = None

    def root(self) -> _Space:
        return self if self.parent is None else self.parent.root()

    def join(self, other: _Space) -> None:
        mine, theirs = self.root(), other.root()
        if mine is theirs:
            return
        if mine.size != theirs.size:  # one channel beside many is spread over them
            reason = "it is combined with another number of channels"
            mine.fixed, theirs.fixed = mine.fixed or reason, theirs.fixed or reason
            return
        theirs.parent = mine
        mine.fixed = mine.fixed or theirs.fixed


@dataclass(frozen=True)
class _Flow:
    """Stands for a tensor: whose channels are in its last axis, and its shape (1, ...)."""

    space: _Space
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Use:
    """A layer with weights.

    Attributes:
        layer: it.
        reads: the channels that its kernel reads, or that it carries.
        makes: those that it makes; where it carries, the same.
        positions: places of a picture that its kernel is applied at.
        is_carrier: whether it treats each channel alone.
    """

    layer: keras.layers.Layer
    reads: _Space
    makes: _Space
    positions: int
    is_carrier: bool = False

    @property
    def taps(self) -> int:
        """Weights for each pair of channels; of a carrier, for each channel."""
        kernel = self.layer.weights[0].shape
        return math.prod(kernel[:2]) if len(kernel) == 4 else 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only leave together.

    Attributes:
        name: of the first layer that makes them; recipes know the group by it.
        size: how many there are.
        makers: layers whose kernels make them.
        carriers: layers with weights that treat each channel alone.
        readers: layers whose kernels read them.
    """

    name: str
    size: int
    makers: tuple[str, ...]
    carriers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What a network takes.

    Attributes:
        multiplications: of kernels, for one picture.
        weights: of kernels, biases and normalisations.
    """

    multiplications: int
    weights: int


class Channels:
    """The channels of a network, by the layers that make them.

    Attributes:
        groups: name → those that can be narrowed.
        fixed: layer → why what it makes cannot be.
    """

    def __init__(self, uses: list[_Use], reshapes: dict[str, _Space]) -> None:
        self._uses, self._reshapes = uses, reshapes
        makers: dict[_Space, list[_Use]] = {}
        for use in uses:
            if not use.is_carrier:
                makers.setdefault(use.makes.root(), []).append(use)
        self.fixed = {use.layer.name: space.fixed for space, of in makers.items() if space.fixed for use in of}
        self._names = {space: of[0].layer.name for space, of in makers.items() if not space.fixed}
        self.groups = {
            name: ChannelGroup(
                name,
                space.size,
                tuple(use.layer.name for use in makers[space]),
                tuple(use.layer.name for use in uses if use.is_carrier and use.makes.root() is space),
                tuple(use.layer.name for use in uses if not use.is_carrier and use.reads.root() is space),
            )
            for space, name in self._names.items()
        }

    def cost(self, sizes: Mapping[str, int] | None = None) -> Cost:
        """Return the cost where groups have these sizes; others keep theirs."""
        multiplications = weights = 0
        for use in self._uses:
            read, made = (self._size(space, sizes or {}) for space in (use.reads, use.makes))
            of_kernel = (made if use.is_carrier else read * made) * use.taps
            vectors = len(use.layer.weights) - (len(use.layer.weights[0].shape) > 1)
            weights += vectors * made + (of_kernel if len(use.layer.weights[0].shape) > 1 else 0)
            multiplications += of_kernel * use.positions if len(use.layer.weights[0].shape) > 1 else 0
        return Cost(multiplications, weights)

    def narrowed(self, model: keras.Model, sizes: Mapping[str, int]) -> keras.Model:
        """Return the network with fewer channels, its weights drawn anew.

        Args:
            model: the network, or the model inside it that has the groups.
            sizes: name of a group → how many stay.

        Raises:
            InputError: there is no such group, or not so many channels.
        """
        for name, size in sizes.items():
            if name not in self.groups:
                reason = f": {self.fixed[name]}" if name in self.fixed else ""
                raise InputError(f"The channels of {name!r} cannot be narrowed in {model.name!r}{reason}.")
            if not 0 < size <= self.groups[name].size:
                raise InputError(f"{name!r} has {self.groups[name].size} channels. Expected 1 to as many, not {size}.")
        made = {use.layer.name: self._size(use.makes, sizes) for use in self._uses if not use.is_carrier}
        reshaped = {name: self._size(space, sizes) for name, space in self._reshapes.items()}

        def cloned(layer: Any) -> Any:
            if isinstance(layer, keras.Model):
                return keras.models.clone_model(layer, clone_function=cloned)
            config = layer.get_config()
            if layer.name in made:
                config["units" if isinstance(layer, keras.layers.Dense) else "filters"] = made[layer.name]
            if layer.name in reshaped:
                config["target_shape"] = (*config["target_shape"][:-1], reshaped[layer.name])
            return layer.__class__.from_config(config)

        return keras.models.clone_model(model, clone_function=cloned)

    def copy_kept(
        self,
        model: keras.Model,
        narrow: keras.Model,
        keep: Keep,
        instead: Mapping[str, list[NDArray[Any]]] | None = None,
    ) -> None:
        """Give the narrow network the weights of the channels that stay.

        Args:
            model: the network whose channels these are.
            narrow: it with fewer channels, as `narrowed` makes it; any build of the same layers.
            keep: name of a group → positions that stay.
            instead: name of a layer → weights in the shapes of the whole network's, to be taken in place of those.
        """
        targets = {layer.name: layer for layer in layers_of(narrow)}
        uses = {use.layer.name: use for use in self._uses}
        for layer in layers_of(model):
            if not layer.weights:
                continue
            arrays = (instead or {}).get(layer.name) or layer.get_weights()
            if layer.name in uses:
                use = uses[layer.name]
                reads, makes = (self._kept(space, keep) for space in (use.reads, use.makes))
                arrays = [_sliced(array, reads, makes, use.is_carrier) for array in arrays]
            targets[layer.name].set_weights(arrays)

    def _size(self, space: _Space, sizes: Mapping[str, int]) -> int:
        root = space.root()
        return sizes.get(self._names.get(root, ""), root.size)

    def _kept(self, space: _Space, keep: Keep) -> NDArray[np.int64]:
        root = space.root()
        return keep.get(self._names.get(root, ""), np.arange(root.size))


def channels_of(model: keras.Model, image_px: int) -> Channels:
    """Follow the channels of a network from the picture to the classes.

    Args:
        model: a functional model from one picture to one output; models inside it are followed too.
        image_px: side of the picture, for the multiplications.

    Raises:
        InputError: it has several inputs or outputs, as an ensemble may have, or is not functional.
    """
    if not hasattr(model, "_run_through_graph") or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise InputError(f"The network {model.name!r} is not a functional model from one picture to one output.")
    follower = _Follower()
    picture = _Flow(_Space(int(model.inputs[0].shape[-1]), "it is the picture"), (1, image_px, image_px, 3))
    output = follower.follow(model, picture)
    output.space.root().fixed = "it makes the output"
    return Channels(follower.uses, follower.reshapes)


class _Follower:
    """Goes through the layers as data does, and notes which channels each meets."""

    def __init__(self) -> None:
        self.uses: list[_Use] = []
        self.reshapes: dict[str, _Space] = {}

    def follow(self, model: keras.Model, flow: _Flow) -> _Flow:
        # Keras' own way through a graph, with values of ours in place of tensors. It is not public: the version is
        # pinned, and a test goes through every backbone.
        graph = model._functional if isinstance(model, keras.Sequential) else model
        output: _Flow = graph._run_through_graph([flow], call_fn=self._call)
        return output

    def _call(self, layer: Any, *args: Any, **options: Any) -> _Flow:
        flows = [flow for flow in keras.tree.flatten((args, options)) if isinstance(flow, _Flow)]
        flow = flows[0]
        if isinstance(layer, keras.Model):
            return self.follow(layer, flow)
        if type(layer).__name__ in _JOIN:
            for other in flows[1:]:
                flow.space.join(other.space)
            # One pixel beside a whole picture is spread over it: squeeze and excitation.
            return _Flow(flow.space, max((other.shape for other in flows), key=math.prod))
        if type(layer) is keras.layers.Conv2D and layer.groups == 1:
            return self._makes(layer, flow, layer.filters)
        if type(layer) is keras.layers.Dense:
            return self._makes(layer, flow, layer.units)
        if type(layer) is keras.layers.DepthwiseConv2D and layer.depth_multiplier == 1:
            return self._carries(layer, flow)
        if type(layer) is keras.layers.BatchNormalization and layer.axis in (-1, len(flow.shape) - 1):
            return self._carries(layer, flow)
        if isinstance(layer, keras.layers.Reshape) and _keeps_channels(layer, flow):
            self.reshapes[layer.name] = flow.space
            return _Flow(flow.space, (1, *layer.target_shape))
        if type(layer) in _CARRY and getattr(layer, "activation", None) not in _OVER_CHANNELS:
            return _Flow(flow.space, layer.compute_output_shape(flow.shape))
        return self._stops(layer, flows)

    def _makes(self, layer: keras.layers.Layer, flow: _Flow, size: int) -> _Flow:
        shape = tuple(layer.compute_output_shape(flow.shape))
        made = _Space(size, "its activation looks at all channels" if layer.activation in _OVER_CHANNELS else "")
        self.uses.append(_Use(layer, flow.space, made, math.prod(shape[1:-1])))
        return _Flow(made, shape)

    def _carries(self, layer: keras.layers.Layer, flow: _Flow) -> _Flow:
        shape = tuple(layer.compute_output_shape(flow.shape))
        self.uses.append(_Use(layer, flow.space, flow.space, math.prod(shape[1:-1]), is_carrier=True))
        return _Flow(flow.space, shape)

    @staticmethod
    def _stops(layer: Any, flows: list[_Flow]) -> _Flow:
        """Leave everything that an unknown layer sees as it is."""
        reason = f"{layer.name} ({type(layer).__name__}) sees it, of which it is not known what a missing channel does"
        for flow in flows:
            root = flow.space.root()
            root.fixed = root.fixed or reason
        shape = flows[0].shape
        # Operations and some layers, such as ConvNeXt's own, cannot say it, and change no shape.
        with contextlib.suppress(AttributeError, NotImplementedError):
            shape = tuple(layer.compute_output_shape([flow.shape for flow in flows] if flows[1:] else shape))
        return _Flow(_Space(int(shape[-1]), reason), shape)


def _keeps_channels(layer: keras.layers.Reshape, flow: _Flow) -> bool:
    """Whether the layer puts pooled channels into a picture of one pixel, or back."""
    size = flow.space.root().size
    return bool(layer.target_shape[-1] == size == math.prod(flow.shape) == math.prod(layer.target_shape))


def _sliced(array: NDArray[Any], reads: NDArray[np.int64], makes: NDArray[np.int64], is_carrier: bool) -> NDArray[Any]:
    """Return the part of a kernel, or of a vector of the channels that are made, that stays."""
    if array.ndim == 1:
        return array[makes]
    if is_carrier:  # (height, width, channels, 1)
        return array[:, :, makes]
    return array[..., reads, :][..., makes]
