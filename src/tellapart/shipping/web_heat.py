"""Heat maps for a page that needs no server: the feature maps of its LiteRT model, and the layers that follow them.

Where a network ends with a global average and dense layers, Grad-CAM (Selvaraju et al. 2017) needs no second network:
the gradient of a class's score is worked out from those layers' weights. So the model gives its last feature maps as
one more output, and the page computes the rest (``page/heat.js``). Knows nothing about pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Bundle
from tellapart.bundles.runtimes import reference_pictures
from tellapart.errors import InputError
from tellapart.explain.overlay import to_heat
from tellapart.shipping.litert_metadata import OFFSETS

FEATURES = "features"
"""The output that is added to the model."""
_MODEL = b"TFL3"
"""Identifier of the FlatBuffer."""
_PASSED_ON = ("RESHAPE", "QUANTIZE", "DEQUANTIZE")
_HIGHEST = {"NONE": np.inf, "RELU": np.inf, "RELU6": 6.0}
"""Fused activation → its largest value."""


@dataclass(frozen=True)
class Layer:
    """A dense layer after the average.

    Attributes:
        rows: (num_outputs, num_inputs) int8, the kernel in 127ths of the largest weight of each row.
        scales: (num_outputs,) float32, what 1 stands for in each row.
        bias: (num_outputs,) float32.
        lowest: its outputs are cut off below; `highest` above. Infinite where nothing is cut off.
    """

    rows: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32]
    lowest: float
    highest: float

    @property
    def kernel(self) -> NDArray[np.float32]:
        """The weights, (num_outputs, num_inputs)."""
        return self.rows * self.scales[:, None]


@dataclass(frozen=True)
class LaidOpen:
    """A LiteRT model whose last feature maps can be read.

    Attributes:
        model: with the output "features", (1, height, width, channels) float32.
        size: (height, width) of these maps.
        offsets: (channels,) float32, to be added to the feature maps for heat maps alone (`litert_metadata.OFFSETS`).
        layers: what follows their average, in order; the last gives what goes into softmax.
    """

    model: bytes
    size: tuple[int, int]
    offsets: NDArray[np.float32]
    layers: tuple[Layer, ...]


def lay_open(model: bytes) -> LaidOpen:
    """Return a LiteRT model with its last feature maps as one more output.

    Args:
        model: with the signature "serving_default" and its output "probabilities".

    Raises:
        InputError: something else than a global average and dense layers follows the feature maps.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    graph = _Graph(parsed, schema)
    signature = next(one for one in parsed.signatureDefs if one.signatureKey == b"serving_default")
    if any(output.name == FEATURES.encode() for output in signature.outputs):
        raise InputError(f"it has an output {FEATURES!r} already")
    at = next(output.tensorIndex for output in signature.outputs if output.name == b"probabilities")
    layers: list[Layer] = []
    while True:
        kind, inputs, options = graph.maker(at)
        if kind == "FULLY_CONNECTED":
            layers.insert(0, graph.layer(inputs, options))
        elif kind == "MEAN":
            break
        elif kind not in _PASSED_ON and not (kind == "SOFTMAX" and not layers):
            raise InputError(f"before its answer the network has {kind}, where only dense layers were expected")
        at = inputs[0]
    features = inputs[0]
    shape = list(graph.tensors[features].shape)
    if len(shape) != 4 or shape[1] * shape[2] == 1 or not layers or layers[0].rows.shape[1] != shape[3]:
        raise InputError(f"the network averages an array of shape {shape}, which is no feature maps")
    offsets = np.zeros(shape[3], np.float32)
    for entry in parsed.metadata or []:
        if entry.name == OFFSETS.encode():
            offsets = np.frombuffer(np.asarray(parsed.buffers[entry.buffer].data, np.uint8).tobytes(), np.float32)
    opened = schema.TensorMapT()
    opened.name, opened.tensorIndex = FEATURES.encode(), graph.in_float(features)
    signature.outputs.append(opened)
    parsed.subgraphs[0].outputs = [*parsed.subgraphs[0].outputs, opened.tensorIndex]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(parsed.Pack(builder), file_identifier=_MODEL)
    return LaidOpen(bytes(builder.Output()), (shape[1], shape[2]), offsets, tuple(layers))


def grad_cam(opened: LaidOpen, features: NDArray[np.float32], target: int) -> NDArray[np.float32]:
    """Return what the page computes: each place's part in the score of a class, before negative parts are left out.

    Args:
        opened: the model.
        features: (height, width, channels) float32, its output.
        target: the class number.
    """
    inputs, passed, layers = features.mean(axis=(0, 1)), [], opened.layers
    for layer in layers[:-1]:
        outputs = layer.kernel @ inputs + layer.bias
        passed.append((outputs > layer.lowest) & (outputs < layer.highest))
        inputs = np.clip(outputs, layer.lowest, layer.highest)
    gradient = layers[-1].kernel[target]
    for layer, open_ in zip(layers[-2::-1], passed[::-1], strict=True):
        gradient = (gradient * open_) @ layer.kernel
    return np.asarray((features + opened.offsets) @ gradient, np.float32)


def difference_of(opened: LaidOpen, bundle: Bundle) -> float:
    """Hold the maps of a page against those of a bundle's own graph, on its reference images.

    Returns:
        The mean difference of maps that are scaled to [0, 1] each, 0 to 1.
    """
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    pictures = reference_pictures(bundle)
    session = onnxruntime.InferenceSession(bundle.explain_path, providers=["CPUExecutionProvider"])
    runner = Interpreter(model_content=opened.model).get_signature_runner("serving_default")
    differences = []
    for picture in pictures:
        outputs = runner(image=picture[None])
        target = int(outputs["probabilities"][0].argmax())
        found = grad_cam(opened, outputs[FEATURES][0], target)
        (expected,) = session.run(["heat"], {"image": picture[None], "target": np.array([target])})
        scaled = [to_heat(values, picture[None]) for values in (found[None], expected)]
        differences.append(float(np.abs(scaled[0] - scaled[1]).mean()))
    return float(np.mean(differences))


def int8_rows(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return rows as int8 in 127ths of the largest value of each, (num_rows, num_columns), and what 1 stands for."""
    scales = np.maximum(np.abs(values).max(axis=1), 1e-12) / 127
    return np.rint(values / scales[:, None]).astype(np.int8), scales.astype(np.float32)


class _Graph:
    """The first subgraph of a LiteRT model, walked from its outputs to its input."""

    def __init__(self, model: Any, schema: Any) -> None:
        self.tensors = model.subgraphs[0].tensors
        self._model, self._schema = model, schema
        self._makers = {output: operator for operator in model.subgraphs[0].operators for output in operator.outputs}

    def maker(self, tensor: int) -> tuple[str, list[int], Any]:
        """Return the operation that makes a tensor, its inputs, and its options."""
        operator = self._makers.get(tensor)
        if operator is None:
            raise InputError("the network has no global average")
        code = self._model.operatorCodes[operator.opcodeIndex]
        # Small numbers stood in another field once, and readers take the larger of the two.
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return self._name("BuiltinOperator", number), list(operator.inputs), operator.builtinOptions

    def layer(self, inputs: Sequence[int], options: Any) -> Layer:
        """Return a dense layer with its weights as float32."""
        activation = self._name("ActivationFunctionType", options.fusedActivationFunction)
        if activation not in _HIGHEST:
            raise InputError(f"its dense layer has the activation {activation}")
        kernel = self._values(inputs[1])
        has_bias = len(inputs) > 2 and inputs[2] >= 0
        bias = self._values(inputs[2]) if has_bias else np.zeros(len(kernel), np.float32)
        rows, scales = int8_rows(kernel)
        return Layer(rows, scales, bias, -np.inf if activation == "NONE" else 0.0, _HIGHEST[activation])

    def in_float(self, tensor: int) -> int:
        """Return a tensor that holds the values of another in float32: browsers' arrays know no int8."""
        known, schema = self.tensors[tensor], self._schema
        if self._name("TensorType", known.type) == "FLOAT32":
            return tensor
        code, buffer, made, operator = schema.OperatorCodeT(), schema.BufferT(), schema.TensorT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
        code.version = 2  # int8
        self._model.operatorCodes.append(code)
        self._model.buffers.append(buffer)
        made.name, made.shape, made.type = FEATURES.encode(), known.shape, schema.TensorType.FLOAT32
        made.buffer = len(self._model.buffers) - 1
        self.tensors.append(made)
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        operator.inputs, operator.outputs = [tensor], [len(self.tensors) - 1]
        self._model.subgraphs[0].operators.append(operator)
        return len(self.tensors) - 1

    def _levels(self, tensor: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return scale and zero of a tensor's integers: one of each, or one for each row; 1 and 0 for floats."""
        known = self.tensors[tensor].quantization
        if known is None or known.scale is None or not len(known.scale):
            return np.ones(1), np.zeros(1)
        return np.asarray(known.scale, np.float64), np.asarray(known.zeroPoint, np.float64)

    def _values(self, tensor: int) -> NDArray[np.float32]:
        """Return what stands in the file for a tensor, as float32."""
        known = self.tensors[tensor]
        types = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT8": np.int8, "INT32": np.int32}
        type_ = types.get(self._name("TensorType", known.type))
        data = self._model.buffers[known.buffer].data
        if type_ is None or data is None:
            if data is None and tensor in self._makers:  # float16 weights are made float32 by an operation
                return self._values(self.maker(tensor)[1][0])
            raise InputError("the weights of its dense layers are not in the file as they were expected")
        values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), type_).reshape(known.shape)
        scale, zero = self._levels(tensor)
        rows = (-1,) + (1,) * (values.ndim - 1)
        return np.asarray((values - zero.reshape(rows)) * scale.reshape(rows), np.float32)

    def _name(self, enum: str, number: int) -> str:
        """Return a number's name in one of the schema's enumerations."""
        names = vars(getattr(self._schema, enum))
        return str(next(name for name, value in names.items() if value == number and not name.startswith("_")))
