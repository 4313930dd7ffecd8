"""Turns a Keras model into files that other runtimes open. Knows nothing about bundles or photos.

The one place beside models/ where TensorFlow stands: a SavedModel is the way to all the other formats.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tellapart.errors import BundleError, InputError
from tellapart.models.embedding import feature_model
from tellapart.models.layers import feature_layer, layers_of, output_of

OPSET = 18


def save_saved_model(model: keras.Model, folder: Path) -> None:
    """Write a SavedModel: "image" → "probabilities" and "embedding", as `feature_model` has them."""
    import tensorflow as tf

    image_px = int(model.input_shape[1])
    network = feature_model(model)
    module = tf.Module()
    # Attach the variables to the module: TensorFlow does not save a function with untracked variables.
    module.variables_of_the_network = [variable.value for variable in network.variables]

    @tf.function(input_signature=[tf.TensorSpec((None, image_px, image_px, 3), tf.uint8, name="image")])  # type: ignore[untyped-decorator]
    def served(image: Any) -> dict[str, Any]:
        features, probabilities = network(image, training=False)
        flat = tf.reshape(features, (tf.shape(features)[0], int(np.prod(features.shape[1:]))))
        return {"probabilities": tf.identity(probabilities), "embedding": tf.identity(flat)}

    module.served = served
    with quiet():
        tf.saved_model.save(module, str(folder), signatures={"serving_default": served})


def save_explanation(model: keras.Model, folder: Path) -> None:
    """Write a SavedModel that explains: "image", "target" → "heat", by Grad-CAM.

    "target" is (num_images,) int64; "heat" is (num_images, height, width) float32 at the size of the last feature maps,
    before ReLU and scaling (Selvaraju et al. 2017, equation 1).

    Raises:
        InputError: the network has no feature maps, or goes on from them in a way that is not written for here.
    """
    import tensorflow as tf

    image_px, features_at = int(model.input_shape[1]), feature_layer(model)
    head = _head(model, features_at)
    module = tf.Module()
    module.variables_of_the_network = [variable.value for variable in model.variables]  # as in `save_saved_model`

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[
            tf.TensorSpec((None, image_px, image_px, 3), tf.uint8, name="image"),
            tf.TensorSpec((None,), tf.int64, name="target"),
        ]
    )
    def served(image: Any, target: Any) -> dict[str, Any]:
        # Always float32: the heat maps must equal Keras' to a thousandth.
        # By running the whole network, not by a Keras model that ends there: the layer may stand inside a nested
        # network, where the outer one has no tensor of it.
        features = tf.cast(output_of(model, features_at, image), tf.float32)
        weights = _gradient_of_mean(features, target, head)
        return {"heat": tf.reduce_sum(features * weights[:, None, None, :], axis=-1)}

    module.served = served
    with quiet():
        tf.saved_model.save(module, str(folder), signatures={"serving_default": served})


def _head(model: keras.Model, features_at: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the dense layers after the feature maps, where there is nothing between but pooling and dropout."""
    layers = list(layers_of(model))
    layers_after = layers[layers.index(features_at) + 1 :]
    # None of these changes the gradient of a logit: dropout is off, and the softmax comes after the logits.
    transparent = (keras.layers.Dropout, keras.layers.Softmax, keras.layers.Flatten)
    if not layers_after or not isinstance(layers_after[0], keras.layers.GlobalAveragePooling2D):
        raise InputError(
            f"The last feature maps, {features_at.name!r}, are not followed by global average pooling, which "
            "is all that a bundle explains. tellapart explain RUN draws the heat maps of the run."
        )
    dense = [layer for layer in layers_after[1:] if not isinstance(layer, transparent)]
    known = (keras.activations.relu, keras.activations.linear)
    for layer in dense:
        if not isinstance(layer, keras.layers.Dense) or (layer is not dense[-1] and layer.activation not in known):
            raise InputError(
                f"From its feature maps to its classes the network goes through {layer.name!r}; a bundle explains "
                "networks with pooling and dense layers there. tellapart explain RUN draws the heat maps of the run."
            )
    return dense


def _gradient_of_mean(features: Any, target: Any, head: list[keras.layers.Layer]) -> Any:
    """Return the gradient of the target's logit with respect to the pooled features: (num_images, channels).

    Backpropagation written out, for ONNX has no gradients: through each dense layer by its transposed kernel, through
    ReLU where its output is positive.
    """
    import tensorflow as tf

    # Forward, to find which ReLUs are open; then backward through the transposed kernels.
    x, open_gates = tf.reduce_mean(features, axis=(1, 2)), []
    for layer in head[:-1]:
        x = tf.matmul(x, tf.convert_to_tensor(layer.kernel)) + tf.convert_to_tensor(layer.bias)
        gate = tf.cast(x > 0, tf.float32) if layer.activation is keras.activations.relu else tf.ones_like(x)
        x = x * gate
        open_gates.append(gate)
    gradient = tf.gather(tf.transpose(tf.convert_to_tensor(head[-1].kernel)), target)
    for layer, gate in zip(reversed(head[:-1]), reversed(open_gates), strict=True):
        gradient = tf.matmul(gradient * gate, tf.convert_to_tensor(layer.kernel), transpose_b=True)
    # The mean passes an equal part of the gradient to each pixel.
    pixels = tf.cast(tf.shape(features)[1] * tf.shape(features)[2], tf.float32)
    return gradient / pixels


@dataclass(frozen=True)
class Network:
    """A network in the forms that all others are made from.

    Attributes:
        model: the Keras model.
        saved_model: the folder that `save_saved_model` wrote.
        onnx: the file that `convert_to_onnx` wrote.
        precision: of the weights in a LiteRT file: "float32", "float16" or "int8-weights"; the others hold float32.
    """

    model: keras.Model
    saved_model: Path
    onnx: Path
    precision: str = "float32"


def _to_openvino(network: Network, folder: Path) -> Path:
    """Write OpenVINO's own format, float32."""
    import openvino

    path = folder / "openvino" / "model.xml"
    path.parent.mkdir()
    # By default OpenVINO stores float16 weights, but this file is held to the tolerance of float32.
    openvino.save_model(openvino.convert_model(network.onnx), path, compress_to_fp16=False)
    return path


def _to_litert(network: Network, folder: Path) -> Path:
    """Write a LiteRT (formerly TensorFlow Lite) file."""
    import tensorflow as tf

    path = folder / "model.tflite"
    with quiet():
        converter = tf.lite.TFLiteConverter.from_saved_model(str(network.saved_model))
        if network.precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]  # without calibration: of the weights, in int8
        if network.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())
    return path


def _to_saved_model(network: Network, folder: Path) -> Path:
    return Path(shutil.copytree(network.saved_model, folder / "saved_model"))


def _to_keras(network: Network, folder: Path) -> Path:
    path = folder / "model.keras"
    network.model.save(path)
    return path


FORMATS: dict[str, Callable[[Network, Path], Path]] = {
    "openvino": _to_openvino,
    "litert": _to_litert,
    "saved_model": _to_saved_model,
    "keras": _to_keras,
}
"""What can be added to ONNX: each writes a file or folder into a folder, and returns it."""

WITHOUT_EMBEDDING = frozenset({"keras"})
"""Formats whose files give probabilities alone."""


# tf2onnx reads its arguments from sys.argv: one process runs it once for each list of them. A SavedModel needs no
# Keras, which TensorFlow imports where it finds it; what is imported stays, so it is never looked through for garbage.
_TF2ONNX = """
import gc, json, sys
sys.modules["keras"] = None
gc.disable()
from tf2onnx.convert import main
gc.freeze()
gc.enable()
for sys.argv in json.loads(sys.argv[1]):
    main()
"""


def convert_to_onnx(files: Mapping[Path, Path]) -> None:
    """SavedModels → ONNX, for Keras' own export leaves constants of EfficientNet behind as inputs.

    In a process of its own: tf2onnx changes settings of TensorFlow that are the whole process's. One for all of them,
    since it takes longer to import TensorFlow than to convert a network.

    Args:
        files: SavedModel → where its ONNX file goes.

    Raises:
        BundleError: tf2onnx is not there or failed.
    """
    if importlib.util.find_spec("tf2onnx") is None:
        raise BundleError("Export needs the package tf2onnx, which is not installed: pip install tf2onnx.")
    common = ["--opset", str(OPSET), "--tag", "serve", "--signature_def", "serving_default"]
    calls = [["tf2onnx", "--saved-model", str(saved), "--output", str(path), *common] for saved, path in files.items()]
    completed = subprocess.run(
        [sys.executable, "-c", _TF2ONNX, json.dumps(calls)],
        capture_output=True, text=True, check=False, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    if completed.returncode or not all(path.is_file() for path in files.values()):
        last_lines = [line for line in completed.stderr.splitlines() if line.strip()][-1:] or ["no reason given"]
        raise BundleError(f"tf2onnx could not convert the network: {last_lines[0]}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' talk out of the way; what matters is checked by the parity gate."""
    # ONNX Runtime's quantizer asks the root logger, two lines for each file, and so has Python show all that it gets
    # from then on, unless there is a handler.
    root, silent = logging.getLogger(), logging.NullHandler()
    levels = {logger: logger.level for logger in (root, logging.getLogger("tensorflow"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    root.addHandler(silent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.removeHandler(silent)
            for logger, level in levels.items():
                logger.setLevel(level)
