"""Networks of `keras.applications` with their preprocessing inside and a head of our own. Knows nothing about training.

Each is one line of `BACKBONES`. Their pretrained weights come by Keras' own download, which keeps them in its cache, or
from a file.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tellapart.data.cache import default_cache
from tellapart.errors import InputError
from tellapart.models.channels import channels_of
from tellapart.settings import Backbone

_ANY_PX = 64
"""Where the channels of a network of any size are followed."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures, from 0 to 1; red, green, blue."""


@dataclass(frozen=True)
class Architecture:
    """A network to begin from.

    Attributes:
        make: its name in `keras.applications`.
        file: that Keras downloads, without the top.
        prepare: returns the layer that gives it what it was trained on, from RGB values 0 to 255.
        reads_bgr: whether its weights were trained on blue, green, red; ours are turned round when they are loaded.
    """

    make: str
    file: str
    prepare: Callable[..., keras.layers.Layer]
    reads_bgr: bool = False


def _as_it_is(**options: Any) -> keras.layers.Layer:
    """The network does it itself: only the type changes."""
    return keras.layers.Rescaling(1.0, **options)


def _signed(**options: Any) -> keras.layers.Layer:
    """From -1 to 1 (keras.applications.imagenet_utils, mode "tf")."""
    return keras.layers.Rescaling(1 / 127.5, offset=-1.0, **options)


def _centred(**options: Any) -> keras.layers.Layer:
    """Less the mean (mode "caffe", in our order of channels)."""
    return keras.layers.Rescaling([1.0] * 3, offset=[-123.68, -116.779, -103.939], **options)


def _standardised(**options: Any) -> keras.layers.Layer:
    """Mean 0 and standard deviation 1 (mode "torch")."""
    scale = [1 / (255 * std) for std in _STD]
    return keras.layers.Rescaling(scale, offset=[-m / s for m, s in zip(_MEAN, _STD, strict=True)], **options)


def _efficientnet(**options: Any) -> keras.layers.Layer:
    """Make up for a division by the square root of the deviation, which Keras leaves out unless it downloads itself."""
    return keras.layers.Rescaling(
        [1 / math.sqrt(std) for std in _STD],
        offset=[255 * mean * (1 - 1 / math.sqrt(std)) for mean, std in zip(_MEAN, _STD, strict=True)],
        **options,
    )


_KERNELS = "_weights_tf_dim_ordering_tf_kernels_notop.h5"

BACKBONES: dict[str, Architecture] = {
    "mobilenet_v2": Architecture(
        "MobileNetV2", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", _signed
    ),
    "mobilenet_v3_small": Architecture(
        "MobileNetV3Small", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", _as_it_is
    ),
    "mobilenet_v3_large": Architecture(
        "MobileNetV3Large", "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", _as_it_is
    ),
    "resnet50": Architecture("ResNet50", f"resnet50{_KERNELS}", _centred, reads_bgr=True),
    "densenet121": Architecture("DenseNet121", f"densenet121{_KERNELS}", _standardised),
    "efficientnet_b0": Architecture("EfficientNetB0", "efficientnetb0_notop.h5", _efficientnet),
    "efficientnet_v2_b0": Architecture("EfficientNetV2B0", "efficientnetv2-b0_notop.h5", _as_it_is),
    "convnext_tiny": Architecture("ConvNeXtTiny", "convnext_tiny_notop.h5", _as_it_is),
}


def backbone_network(
    settings: Backbone,
    num_classes: int,
    image_px: int | None,
    *,
    chain: Any = None,
    rescaling: Any = None,
    dtype: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Build a backbone with a head, without pretrained weights.

    uint8 picture → what the backbone was trained on → backbone → GlobalAveragePooling → Dropout → Dense + Softmax.

    Args:
        settings: which, dropout, and the L2 penalty of the head.
        num_classes: length of the output.
        image_px: side of the input, or None for any size.
        chain: not used: these networks are Keras' own.
        rescaling: not used.
        dtype: "float32" or "mixed_bfloat16".
        seed: of all initial weights, of drop-connect and dropout.

    Returns:
        A model from (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32 probabilities.
    """
    del chain, rescaling
    # The policy holds for the whole process: it is put back whatever happens in between.
    known, before = BACKBONES[settings.name], keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)  # the only way to tell keras.applications
    try:
        make = getattr(keras.applications, known.make)
        with _seeded(seed):
            # Of any size, also where the pictures have one: Keras pads by whether the sides that it is told are odd,
            # and the network that is trained, which sees several sizes, would not be the one that is saved.
            inside = make(include_top=False, weights=None, input_shape=(None, None, 3))
    finally:
        keras.config.set_dtype_policy(before)
    inputs = keras.Input((image_px, image_px, 3), dtype="uint8", name="image")
    x = known.prepare(dtype=dtype, name="normalise")(inputs)
    # `features_of` cuts the network here, by this name.
    x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="average")(inside(x))
    # Pooling and head stay in float32: they take no time, and bfloat16 would round probabilities to
    # three digits.
    x = keras.layers.Dropout(settings.dropout, seed=seed + 50, dtype="float32", name="dropout")(x)
    outputs = keras.layers.Dense(
        num_classes,
        activation="softmax",
        dtype="float32",
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        kernel_regularizer=keras.regularizers.L2(settings.l2) if settings.l2 else None,
        name="probabilities",
    )(x)
    model = keras.Model(inputs, outputs, name=settings.name)
    return channels_of(model, image_px or _ANY_PX).narrowed(model, settings.channels) if settings.channels else model


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give every layer that is built inside a seed that follows from `seed`.

    keras.applications takes no seed. Its initialisers and its drop-connect draw theirs from Python's `random` when
    they are made (`keras.random.make_default_seed`), so that is what is seeded, and put back as it was.
    """
    before = random.getstate()
    # Only while the layers are made: whoever draws from `random` afterwards gets what they would have got.
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def inside_of(model: keras.Model) -> keras.Model:
    """Return the backbone inside a model made by `backbone_network`."""
    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


def load_pretrained(model: keras.Model, settings: Backbone) -> None:
    """Give the backbone inside a model its pretrained weights; the head keeps its own.

    Args:
        model: made by `backbone_network`.
        settings: ``weights`` is "imagenet" or a file that Keras can read (``.weights.h5`` or ``.h5``).

    Raises:
        InputError: they cannot be downloaded, the file is missing, or it holds another network's weights.
    """
    known, inside = BACKBONES[settings.name], inside_of(model)
    path = at_hand(settings.name) if settings.weights == "imagenet" else Path(settings.weights)
    if path is None:
        inside.set_weights(_downloaded(settings.name, known))
    else:
        _load_file(inside, settings.name, path)
    if known.reads_bgr:
        # Once, in the weights: a layer that reverses the channels of pictures would stay in every export.
        first = next(layer for layer in inside.layers if isinstance(layer, keras.layers.Conv2D))
        kernel, *rest = first.get_weights()
        first.set_weights([kernel[:, :, ::-1, :], *rest])


def _downloaded(name: str, known: Architecture) -> list[Any]:
    """Return the weights as Keras downloads or remembers them."""
    make = getattr(keras.applications, known.make)
    try:
        # 224: Keras chooses MobileNetV2's file by the size. Only the weights are taken.
        source = make(include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    except Exception as error:  # Keras raises a bare one where a download fails
        match = re.search(r"(https?://\S+?/([\w.-]+\.h5))", str(error))
        # Keras names the address in its text only. Any other error is not about the download.
        if match is None:
            raise
        raise InputError(
            f"The weights of {name} could not be downloaded, and Keras has none in its cache. Bring {match[2]} "
            "from a machine that can (there it lies in ~/.keras/models), and put it on the shelf here: "
            f"tellapart weights add FILE --model {name}."
        ) from error
    weights: list[Any] = source.get_weights()
    return weights


def shelf() -> Path:
    """Return the folder of weights that were brought to this machine, or downloaded, for tellapart."""
    return default_cache() / "weights"


def at_hand(name: str) -> Path | None:
    """Return the file with a network's weights, from the shelf before Keras' own folder; None: there is none."""
    # What was brought here by hand goes before what Keras has downloaded.
    on_shelf = (shelf() / f"{name}{suffix}" for suffix in (".weights.h5", ".h5"))
    keras_home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return next((path for path in (*on_shelf, keras_home / "models" / BACKBONES[name].file) if path.is_file()), None)


def _load_file(inside: keras.Model, name: str, path: Path) -> None:
    if not path.is_file():
        raise InputError(
            f"The weights {path} do not exist. Expected a file of {name} without its top (.weights.h5, .h5), "
            'or "imagenet" to have Keras download it.'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of each layer that it does not find, and then raises
            inside.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} does not hold the weights of {name} without its top: {reason}") from error


def freeze(model: keras.Model, unfreeze: float) -> None:
    """Let only the head and the upper part of the backbone learn, and keep all of its BatchNormalization as it is.

    A frozen BatchNormalization uses the statistics of the photos that the backbone was trained on: batches of a few
    pictures would spoil them.

    Args:
        model: made by `backbone_network`.
        unfreeze: share of the backbone's layers that learn, counted from the top, 0 to 1.
    """
    inside = inside_of(model)
    # Layers are counted from input to output; those from `first` on learn.
    first = len(inside.layers) - round(unfreeze * len(inside.layers))
    for position, layer in enumerate(inside.layers):
        layer.trainable = position >= first and not isinstance(layer, keras.layers.BatchNormalization)


def features_of(model: keras.Model) -> keras.Model:
    """Return the part of a model up to the head: pictures to (num_images, num_features) float32."""
    return keras.Model(model.input, model.get_layer("average").output)
