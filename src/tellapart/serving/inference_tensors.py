"""Tensors of the Open Inference Protocol: requests to images, probabilities to outputs. Knows nothing about HTTP.

Triton's binary extension puts a tensor's bytes behind the JSON, in the order of the tensors; texts have their length in
four bytes before them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.serving.errors import ApiError
from tellapart.serving.json_body import shown
from tellapart.serving.model_version import Image
from tellapart.serving.tensors import INPUT, check_number, flattened, from_base64

OUTPUTS = ("probabilities", "label")


@dataclass(frozen=True)
class Wanted:
    """An output that was asked for."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Inference:
    """An inference request.

    Attributes:
        images: at least one.
        outputs: what to return, in this order.
        id: that the client gave it, or None.
    """

    images: list[Image]
    outputs: list[Wanted]
    id: str | None


def read_request(values: Any, binary: memoryview) -> Inference:
    """Return what an inference request asks for.

    Args:
        values: the JSON.
        binary: the bytes behind it.

    Raises:
        ApiError: it has another form (400).
    """
    if not isinstance(values, dict) or not isinstance(values.get("inputs"), list):
        raise ApiError(400, "Expected an object with 'inputs', a list of tensors.")
    if "id" in values and not isinstance(values["id"], str):
        raise ApiError(400, "id is not a string.")
    wanted = _wanted(values)
    inputs = values["inputs"]
    if len(inputs) != 1 or not isinstance(inputs[0], dict) or inputs[0].get("name") != INPUT:
        raise ApiError(400, f"Expected one input, with the name {INPUT!r}.")
    tensor = inputs[0]
    shape, kind = _shape(tensor), tensor.get("datatype")
    raw = _raw(tensor, binary)
    if kind == "UINT8":
        return Inference([Image(pixels) for pixels in _pictures(tensor, shape, raw)], wanted, values.get("id"))
    if kind == "BYTES":
        return Inference([Image(file) for file in _files(tensor, shape, raw)], wanted, values.get("id"))
    raise ApiError(400, f"{INPUT} has the datatype {shown(kind, 40)}. Expected UINT8 or BYTES.")


def write_outputs(
    table: NDArray[np.float32], classes: tuple[str, ...], wanted: list[Wanted]
) -> tuple[list[Any], bytes]:
    """Return the outputs as JSON values, and the bytes that follow them.

    Args:
        table: probabilities (num_images, num_classes).
        classes: their names.
        wanted: what to return, in this order.
    """
    labels = [classes[number] for number in table.argmax(axis=1)]
    # Binary outputs follow the JSON in the order of the outputs; `binary_data_size` says where each one ends.
    outputs, tail = [], b""
    for output in wanted:
        if output.name == "probabilities":
            values: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(table.shape)}
            # Little-endian on every machine, as Triton's extension defines it.
            raw, data = table.astype("<f4").tobytes(), table.ravel().tolist()
        else:
            values = {"name": output.name, "datatype": "BYTES", "shape": [len(labels)]}
            raw = b"".join(struct.pack("<I", len(text)) + text for text in (label.encode() for label in labels))
            data = labels
        if output.binary:
            values["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            values["data"] = data
        outputs.append(values)
    return outputs, tail


def _wanted(values: dict[str, Any]) -> list[Wanted]:
    # The default for the whole request; a parameter of a single output overrides it.
    by_default = _parameters(values).get("binary_data_output") is True
    outputs = values.get("outputs")
    if outputs is None or outputs == []:
        return [Wanted("probabilities", by_default)]
    if not isinstance(outputs, list) or len(outputs) > len(OUTPUTS):
        raise ApiError(400, f"outputs: expected a list of at most {len(OUTPUTS)}.")
    wanted = []
    for output in outputs:
        name = output.get("name") if isinstance(output, dict) else None
        if name not in OUTPUTS:
            raise ApiError(400, f"There is no output {shown(name, 40)}. Expected any of {', '.join(OUTPUTS)}.")
        parameters = _parameters(output)
        if "classification" in parameters:
            raise ApiError(400, "The classification extension is not offered; the output 'label' names the class.")
        wanted.append(Wanted(name, parameters.get("binary_data", by_default) is True))
    return wanted


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    parameters = values.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ApiError(400, "parameters: expected an object.")
    return parameters


def _shape(tensor: dict[str, Any]) -> tuple[int, ...]:
    shape = tensor.get("shape")
    good = isinstance(shape, list) and 0 < len(shape) <= 4
    # By type, since isinstance(True, int) is true.
    if not good or any(type(length) is not int or not 0 < length < 2**31 for length in shape or ()):
        raise ApiError(400, f"{INPUT} has the shape {_some(shape)}. Expected whole numbers above 0, at most four.")
    assert shape is not None
    check_number(shape[0], INPUT)
    return tuple(shape)


def _raw(tensor: dict[str, Any], binary: memoryview) -> memoryview | None:
    """Return the tensor's bytes; None: its values stand in the JSON."""
    # There is only one input, so all bytes behind the JSON are its own.
    size = _parameters(tensor).get("binary_data_size")
    if size is None:
        if binary:
            raise ApiError(400, f"{len(binary):,} bytes follow the JSON and no input has a binary_data_size.")
        return None
    if type(size) is not int or size != len(binary):
        raise ApiError(400, f"binary_data_size is {shown(size, 40)}; {len(binary):,} bytes follow the JSON.")
    return binary


def _pictures(tensor: dict[str, Any], shape: tuple[int, ...], raw: memoryview | None) -> list[NDArray[np.uint8]]:
    if len(shape) != 4 or shape[3] != 3:
        raise ApiError(400, f"{INPUT} has the shape {list(shape)}. Expected [num_images, height, width, 3].")
    count = shape[0] * shape[1] * shape[2] * shape[3]
    if raw is not None:
        if len(raw) != count:
            raise ApiError(400, f"{INPUT} has {len(raw):,} bytes; its shape needs {count:,}.")
        return list(np.frombuffer(raw, np.uint8).reshape(shape))
    # The protocol allows flat and nested values; the declared shape decides.
    _, numbers = flattened(tensor.get("data"))
    if set(map(type, numbers)) != {int} or len(numbers) != count or min(numbers) < 0 or max(numbers) > 255:
        raise ApiError(400, f"{INPUT}: expected {count:,} whole numbers from 0 to 255 in 'data', by its shape.")
    return list(np.frombuffer(bytes(numbers), np.uint8).reshape(shape))


def _files(tensor: dict[str, Any], shape: tuple[int, ...], raw: memoryview | None) -> list[bytes]:
    if any(length != 1 for length in shape[1:]):
        raise ApiError(400, f"{INPUT} has the shape {list(shape)}. Expected [num_images] for files.")
    if raw is None:
        data = tensor.get("data")
        if not isinstance(data, list) or len(data) != shape[0]:
            raise ApiError(400, f"{INPUT}: expected {shape[0]} files in base64 in 'data', by its shape.")
        return [from_base64(text, f"{INPUT}[{number}]") for number, text in enumerate(data)]
    files, at = [], 0
    # A length that points beyond the end also moves `at` beyond it, and is refused below.
    while at + 4 <= len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        files.append(bytes(raw[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(raw) or len(files) != shape[0]:
        raise ApiError(400, f"{INPUT}: expected {shape[0]} files, each after its length in four bytes.")
    return files


def _some(shape: Any) -> str:
    """Return a shape for a message; it may be anything."""
    if isinstance(shape, list) and len(shape) <= 4:
        return f"[{', '.join(shown(length, 20) for length in shape)}]"
    return shown(shape, 60)
