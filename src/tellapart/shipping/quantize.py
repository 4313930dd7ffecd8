"""Turns a network's files into smaller ones: int8 where convolutions allow it. Knows nothing about bundles or labels.

ONNX by ONNX Runtime's own `quantize_static`: activations in uint8, weights in int8 with a scale for each channel, as
pairs of QuantizeLinear and DequantizeLinear that runtimes fuse into integer kernels. LiteRT by its converter. Both look
at pictures to learn the range of each activation; neither looks at labels.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.models.embedding import feature_model
from tellapart.models.layers import called, first_layer, layers_of, plain_clone
from tellapart.shipping.formats import quiet
from tellapart.shipping.litert_metadata import OFFSETS, with_buffer

NUM_CALIBRATION = 256
"""Pictures that the ranges of activations are learned from."""
_BATCH = 32
_KEPT = 0.99997
"""Share of a convolution's values that LiteRT's eight bits hold; larger ones are cut off."""
_Store = Callable[[str, NDArray[np.float32], int], tuple[list[Any], Any]]
"""(name, values, axis of the output channels) → the tensors that hold a kernel, and the node that makes it of them."""
_INTEGER_OPS = ("Conv", "Add", "Mul", "Clip", "Relu", "MaxPool", "Pad")


def equalised(model: keras.Model) -> keras.Model:
    """Return a network that says the same, whose convolutions give channels of like range.

    Where a normalisation follows a ReLU it cannot be folded into the convolution before it, and 8 bits must hold
    channels of very different ranges. ReLU passes on a positive factor, so that the normalisation's scales can go into
    the convolution's weights; what is left of it is a sign and an offset (cross-layer equalization: Nagel et al. 2019,
    "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1).
    """
    copy = _copy(model)
    for convolution, normalisation in _normalised_late(copy):
        gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in normalisation.get_weights())
        scale = gamma / np.sqrt(variance + normalisation.epsilon)
        size = np.maximum(np.abs(scale), 1e-12)
        convolution.set_weights([weights * size for weights in convolution.get_weights()])
        # With this variance the normalisation divides by 1.
        rest = np.zeros_like(mean), np.full_like(mean, 1 - normalisation.epsilon)
        normalisation.set_weights([np.sign(scale), beta - mean * scale, *rest])
    return copy


def clipped(model: keras.Model, pictures: NDArray[np.uint8]) -> keras.Model:
    """Return a network whose convolutions before a normalisation are cut off above almost all that they give.

    LiteRT's converter takes the largest value for the range of eight bits: where one in ten thousand is seven times as
    large as the others, little is left for those (docs/experiments.md). Cut off by ReLU6, which the kernels have, at a
    scale that the normalisation takes back.

    Args:
        model: as `equalised` gives it.
        pictures: (num_images, image_px, image_px, 3) uint8, to see what convolutions give.
    """
    copy = _copy(model)
    for convolution, normalisation in _normalised_late(copy):
        outputs = keras.Model(copy.inputs, convolution.output).predict(pictures, batch_size=_BATCH, verbose=0)
        factor = 6 / max(float(np.quantile(outputs, _KEPT)), 1e-12)
        convolution.set_weights([weights * factor for weights in convolution.get_weights()])
        convolution.activation = keras.activations.relu6
        gamma, *others = normalisation.get_weights()
        normalisation.set_weights([gamma / factor, *others])
    return copy


def without_last_normalisation(model: keras.Model) -> tuple[keras.Model, NDArray[np.float32] | None]:
    """Return a network that says the same, with the normalisation before the global average in the dense layer after.

    The mean of scaled values is the scaled mean. In eight bits it would round every value before the mean once more
    than needed, and with its offsets in the range. Only where another dense layer follows: a bundle's embedding is what
    the last one sees, and must not change.

    Returns:
        The network, and what has to be added to the feature maps before the average to make them a multiple of what
        they were, (channels,): heat maps want it. The network as it came and None, where there is no such layer.
    """
    kinds = (
        keras.layers.BatchNormalization,
        keras.layers.GlobalAveragePooling2D,
        keras.layers.Dense,
        keras.layers.Dense,
    )
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.Dropout)]
    last = layers[-len(kinds) :]
    if not all(map(isinstance, last, kinds)):
        return model, None
    normalisation, _, dense, _ = last
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in normalisation.get_weights())
    scale = gamma / np.sqrt(variance + normalisation.epsilon)

    def clone(layer: Any) -> Any:
        return keras.layers.Identity(name=layer.name) if layer is normalisation else plain_clone(layer)

    copy = keras.models.clone_model(model, clone_function=clone, call_function=called)
    for layer in model.layers:
        if layer.weights and layer is not normalisation:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    kernel, bias = (np.asarray(value, np.float64) for value in dense.get_weights())
    shift = beta - mean * scale
    copy.get_layer(dense.name).set_weights([kernel * scale[:, None], bias + shift @ kernel])
    return copy, np.divide(shift, scale, out=np.zeros_like(shift), where=np.abs(scale) > 1e-12).astype(np.float32)


def _copy(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _normalised_late(model: keras.Model) -> Iterator[tuple[keras.layers.Conv2D, keras.layers.BatchNormalization]]:
    """Yield the convolutions with a ReLU that a normalisation follows, with it."""
    for before, after in itertools.pairwise(layers_of(model)):
        is_followed = isinstance(after, keras.layers.BatchNormalization) and after.input is before.output
        if type(before) is keras.layers.Conv2D and is_followed and before.activation is keras.activations.relu:
            yield before, after


class OnnxQuantizer:
    """Writes int8 ONNX files of a float32 one. A context: its working files are gone after it.

    What comes before the first convolution and after the last is computed in float32: the picture's scaling, the pooled
    features and the head, which take no time and decide on probabilities. The head's weights are int8 in the file.

    Args:
        source: with an input "image".
        pictures: (num_images, image_px, image_px, 3) uint8, to learn the ranges of activations from.

    Attributes:
        layers: the convolutions, in the order in which they are computed.

    Raises:
        InputError: there are no pictures, or the graph has no convolution.
    """

    def __init__(self, source: Path, pictures: NDArray[np.uint8]) -> None:
        import onnx

        if not len(pictures):
            raise InputError("int8 takes photos to learn the range of activations from, and there are none.")
        self._pictures = pictures
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._folded, self._ranges = self._folder / "folded.onnx", self._folder / "ranges.json"
            graph = fold(source, self._folded)
            self._nodes = _by_convolution(graph)
            self.layers = tuple(self._nodes)
            if not self.layers:
                raise InputError(f"{source.name} has no convolutions: int8 would gain nothing.")
            onnx.save(graph, self._folded)
            self._scales = _scales_of_kernels(graph)
            self._kept = stack.pop_all()  # until the end of the context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    def write(self, target: Path, in_float: Collection[str] = ()) -> None:
        """Write an int8 file; convolutions that are named in `in_float`, and what follows each, stay in float32."""
        self._quantize(target, {name for layer in self.layers if layer not in in_float for name in self._nodes[layer]})
        weights_to_int8(target, target)  # of the layers after the last convolution, and of those in float

    def damages(self, num_pictures: int = 32) -> dict[str, float]:
        """Measure how far int8 in one convolution alone moves the answers.

        Args:
            num_pictures: of those for the ranges, that answers are compared on.

        Returns:
            Convolution → mean Kullback-Leibler divergence of the answers from those in float32, in nats, the largest
            first.
        """
        trial, pictures = self._folder / "trial.onnx", self._pictures[:num_pictures]
        expected = _probabilities(self._folded, pictures)
        found = {}
        for layer, nodes in self._nodes.items():
            self._quantize(trial, set(nodes))
            answers = _probabilities(trial, pictures)
            found[layer] = float((expected * np.log(expected / answers)).sum(axis=1).mean())
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _quantize(self, target: Path, nodes: Collection[str]) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        with quiet():
            quantize_static(
                self._folded,
                target,
                _Reader(self._pictures),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_INTEGER_OPS),
                nodes_to_quantize=sorted(nodes),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self._ranges,  # learned once, for every file
                extra_options={"TensorQuantOverrides": self._scales},
            )


def _scales_of_kernels(graph: Any) -> dict[str, list[dict[str, Any]]]:
    """Return, for each kernel that sums over channels, ONNX Runtime's setting of the scale of each output channel."""
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType

    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type == "Conv" and groups == 1 and node.input[1] in tensors:
            found[node.input[1]] = [
                {"axis": 0, "quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.array(0, np.int8)}
                for scale in scales_without_overflow(numpy_helper.to_array(tensors[node.input[1]]))
            ]
    return found


def scales_without_overflow(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what 1 stands for in each output channel of a kernel in int8, so that no sum of two products overflows.

    Processors without VNNI multiply bytes with `vpmaddubsw`, which adds two neighbouring products in 16 bits and cuts
    off what is larger, in ONNX Runtime and in OpenVINO alike: 255 × (127 + 127) is twice too large. A network in int8
    then says something else there than where it was proved. The usual mend gives all weights seven bits; here the scale
    only grows where two neighbours of one sign have a sum above 127 (docs/experiments.md).

    Args:
        kernel: (num_outputs, num_inputs, height, width) float32.

    Returns:
        (num_outputs,) float32.
    """
    # Kernels are read channel by channel within a place, in pairs; where their number is odd, pairs go across places.
    by_place = np.moveaxis(kernel.astype(np.float64), 1, -1).reshape(len(kernel), -1)
    orders = [by_place] if kernel.shape[1] % 2 == 0 else [by_place, kernel.astype(np.float64).reshape(len(kernel), -1)]
    step = 2 if kernel.shape[1] % 2 == 0 else 1
    largest = np.abs(by_place).max(axis=1)
    for row in orders:
        first, second = row[:, : row.shape[1] - 1 : step], row[:, 1::step]
        sums = np.where(first * second > 0, np.abs(first + second), 0)
        largest = np.maximum(largest, sums.max(axis=1, initial=0))
    # Rounding adds at most 1 to a sum: 255 × 128 still fits.
    return np.asarray(np.maximum(largest, np.finfo(np.float32).tiny * 127) / 127, np.float32)


def _probabilities(file: Path, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (answers,) = session.run(["probabilities"], {"image": pictures})
    return np.maximum(np.asarray(answers, np.float64), 1e-12)


def weights_to_int8(source: Path, target: Path) -> None:
    """Write an ONNX file whose kernels are int8 with a scale for each output channel; all arithmetic stays float32.

    Runtimes make float32 of them when they open the file, which is a quarter as large.
    """
    _with_kernels(source, target, _in_int8)


def weights_to_float16(source: Path, target: Path) -> None:
    """Write an ONNX file whose kernels are float16; all arithmetic stays float32, and the file is half as large."""
    _with_kernels(source, target, _in_float16)


def _with_kernels(source: Path, target: Path, store: _Store) -> None:
    """Write an ONNX file whose float32 kernels are stored in another way, from which a node makes float32 again."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(source)
    kernels: dict[str, int] = {}  # name → axis of the output channels
    for node in graph.graph.node:
        if node.op_type == "Conv":
            kernels[node.input[1]] = 0
        elif node.op_type == "MatMul":
            kernels[node.input[1]] = 1
        elif node.op_type == "Gemm":
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            kernels[node.input[1]] = 0 if transposed else 1
    nodes, tensors = [], []
    for tensor in graph.graph.initializer:
        values, axis = numpy_helper.to_array(tensor), kernels.get(tensor.name)
        if axis is None or values.dtype != np.float32 or values.ndim < 2:
            tensors.append(tensor)
            continue
        stored, node = store(tensor.name, values, axis)
        tensors += stored
        nodes.append(node)
    nodes += graph.graph.node
    for field, changed in ((graph.graph.initializer, tensors), (graph.graph.node, nodes)):
        del field[:]
        field.extend(changed)
    _shorten(graph)
    onnx.save(graph, target)


def _in_int8(name: str, values: NDArray[np.float32], axis: int) -> tuple[list[Any], Any]:
    import onnx
    from onnx import numpy_helper

    largest = np.abs(values).max(axis=tuple(at for at in range(values.ndim) if at != axis))
    scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
    shape = [-1 if at == axis else 1 for at in range(values.ndim)]
    integers = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
    names = f"{name}_int8", f"{name}_scale"
    node = onnx.helper.make_node("DequantizeLinear", names, [name], axis=axis)
    return [numpy_helper.from_array(integers, names[0]), numpy_helper.from_array(scale, names[1])], node


def _in_float16(name: str, values: NDArray[np.float32], axis: int) -> tuple[list[Any], Any]:
    import onnx
    from onnx import numpy_helper

    del axis
    stored, limit = f"{name}_float16", float(np.finfo(np.float16).max)
    node = onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT)
    # A value beyond the range would become infinite.
    return [numpy_helper.from_array(np.clip(values, -limit, limit).astype(np.float16), stored)], node


def _shorten(graph: Any) -> None:
    """Give tensors short names: those of Keras' paths, several for each layer, are a tenth of a small file."""
    kept = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    short: dict[str, str] = {"": ""}  # an input that is left out has no name

    def renamed(name: str) -> str:
        return name if name in kept else short.setdefault(name, f"t{len(short):x}")

    for node in graph.graph.node:
        node.name = ""
        for field in (node.input, node.output):
            names = [renamed(name) for name in field]
            del field[:]
            field.extend(names)
    for tensor in graph.graph.initializer:
        tensor.name = renamed(tensor.name)
    del graph.graph.value_info[:]


def fold(source: Path, target: Path) -> Any:
    """Return the graph with normalisations folded into convolutions, every node with a name; `target` is overwritten.

    ONNX Runtime would fold them itself when it opens the file, but between a convolution and its normalisation the
    quantizer would round.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath, options.log_severity_level = str(target), 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(target)
    for number, node in enumerate(graph.graph.node):
        node.name = node.name or f"node{number}"
    return graph


def _by_convolution(graph: Any) -> dict[str, tuple[str, ...]]:
    """Return convolution → its node and those after it that become int8 with it, all before the last convolution."""
    nodes = list(graph.graph.node)  # in the order in which they are computed
    after: set[str] = set()
    tensors: set[str] = set()
    for node in nodes:
        if node.op_type == "Conv" or tensors & set(node.input):
            after.add(node.name)
            tensors |= set(node.output)
    chosen: set[str] = set()
    tensors = set()
    for node in reversed(nodes):
        if node.op_type == "Conv" or (tensors & set(node.output) and node.name in after):
            chosen.add(node.name)
            tensors |= set(node.input)
    last = next((node for node in reversed(nodes) if node.op_type == "Conv"), None)
    # The last convolution's activation too, so that its output is not made in float32.
    if last is not None:
        chosen |= {
            node.name for node in nodes if node.op_type in ("Clip", "Relu") and set(node.input) & set(last.output)
        }
    found: dict[str, list[str]] = {}
    makers: dict[str, str] = {}  # tensor → the last convolution on the way to it
    for node in nodes:
        if node.op_type == "Conv":
            layer = _layer_of(node)
            layer = node.name if layer in found else layer
        else:
            layer = next((makers[tensor] for tensor in node.input[::-1] if tensor in makers), "")
        if not layer:
            continue
        makers |= dict.fromkeys(node.output, layer)
        if node.name in chosen and node.op_type in _INTEGER_OPS:
            found.setdefault(layer, []).append(node.name)
    return {layer: tuple(names) for layer, names in found.items()}


def _layer_of(node: Any) -> str:
    """Return the name of the Keras layer that a convolution was, as far as names of its tensors tell."""
    for text in (node.name, *node.output, *node.input[1:]):
        if match := re.search(r"([^/]+)/(?:convolution|depthwise|batchnorm)\b", text):
            return match[1]
    return str(node.name)


class _Reader:
    """Hands out pictures in batches, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self._batches = iter(np.array_split(pictures, max(1, len(pictures) // _BATCH)))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def litert_int8(network: keras.Model, pictures: NDArray[np.uint8], image_px: int) -> bytes:
    """Return a LiteRT file whose activations and weights are int8, from uint8 pictures to float32 outputs.

    Args:
        network: as `equalised` gives it; its first layer scales the picture.
        pictures: (num_images, image_px, image_px, 3) uint8, to learn the ranges of activations from.
        image_px: side of the pictures.
    """
    network, offsets = without_last_normalisation(clipped(network, pictures))
    content = _litert(network, image_px, lambda converter: _fully_int8(converter, pictures))
    return content if offsets is None else with_buffer(content, OFFSETS, offsets.tobytes())


def _fully_int8(converter: Any, pictures: NDArray[np.uint8]) -> None:
    import tensorflow as tf

    def representative() -> Iterator[list[NDArray[np.float32]]]:
        for picture in pictures:
            yield [picture[None].astype(np.float32)]
        # So that the input's scale is 1 and its zero 0: a byte of a picture is the number that goes in.
        levels = np.linspace(0, 255, pictures[0].size, dtype=np.float32)
        yield [levels.reshape(1, *pictures[0].shape)]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.float32


def _litert(network: keras.Model, image_px: int, change: Callable[[Any], None]) -> bytes:
    import tensorflow as tf

    # From the scaled picture on: the network's own input is uint8, and would round what the converter hands in.
    scale = first_layer(network)
    rest = keras.Model(scale.output, feature_model(network).outputs)
    module = tf.Module()
    module.variables_of_the_network = [variable.value for variable in network.variables]  # or they would not be saved

    @tf.function(input_signature=[tf.TensorSpec((1, image_px, image_px, 3), tf.float32, name="image")])  # type: ignore[untyped-decorator]
    def served(image: Any) -> dict[str, Any]:
        features, probabilities = rest(scale(image), training=False)
        flat = tf.reshape(features, (1, int(np.prod(features.shape[1:]))))
        return {"probabilities": tf.identity(probabilities), "embedding": tf.identity(flat)}

    module.served = served
    with tempfile.TemporaryDirectory() as folder, quiet():
        tf.saved_model.save(module, folder, signatures={"serving_default": served})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        change(converter)
        content: bytes = converter.convert()
    return content
