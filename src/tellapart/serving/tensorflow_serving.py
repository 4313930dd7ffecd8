"""TensorFlow Serving's REST API, for clients that speak it already. Knows no other protocol.

https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tellapart.serving import openapi as d
from tellapart.serving.endpoints import JSON, Endpoint, Protocol, json_response
from tellapart.serving.errors import ApiError
from tellapart.serving.json_body import shown
from tellapart.serving.model_version import Image
from tellapart.serving.service import Service
from tellapart.serving.tensors import INPUT, images_of

_SIGNATURE = "serving_default"
_KEYS = ("signature_name", "instances", "inputs")


async def predict(service: Service, request: Request) -> Response:
    """Return the probabilities of images."""
    served = service.find_in_path(request, to_predict=True)
    key, images = await service.parsed(await service.body(request), read_request)
    table = await service.predict_all(request, served, images, key)
    return json_response({"predictions" if key == "instances" else "outputs": table.tolist()})


def read_request(values: Any, _: memoryview) -> tuple[str, list[Image]]:
    """Return the key under which the images are, ``instances`` or ``inputs``, and the images.

    Raises:
        ApiError: the request has another form (400), or too many images (413).
    """
    if not isinstance(values, dict) or (set(values) - set(_KEYS)):
        raise ApiError(400, f"Expected an object with no other keys than {', '.join(_KEYS)}.")
    if (name := values.get("signature_name", _SIGNATURE)) != _SIGNATURE:
        raise ApiError(400, f"signature_name is {shown(name)}. Expected {_SIGNATURE!r}, or none.")
    if ("instances" in values) == ("inputs" in values):
        raise ApiError(400, "Expected either 'instances' (rows) or 'inputs' (columns).")
    if "instances" in values:
        key, batch = "instances", values["instances"]
        if isinstance(batch, list):
            batch = [_without_name(instance) for instance in batch]
    else:
        key, batch = "inputs", _without_name(values["inputs"])
        if isinstance(batch, dict):  # {"b64": …}, a single file without a list around it
            batch = [batch]
    return key, [Image(data) for data in images_of(batch, key)]


def _without_name(value: Any) -> Any:
    """Return what stands under the input's name, where clients write it."""
    return value[INPUT] if isinstance(value, dict) and set(value) == {INPUT} else value


async def status(service: Service, request: Request) -> Response:
    """Return the versions that there are, or the one that the path names."""
    served = service.find_in_path(request)
    versions = [served] if "version" in request.path_params else service.models.of(served.name)[::-1]
    # Only loaded versions are listed, and all of them answer, so there is no other state.
    ok = {"error_code": "OK", "error_message": ""}
    states = [{"version": version.version, "state": "AVAILABLE", "status": ok} for version in versions]
    return json_response({"model_version_status": states})


async def metadata(service: Service, request: Request) -> Response:
    """Return what goes in and comes out."""
    served = service.find_in_path(request)
    image_px = str(served.bundle.record.image_px)  # protobuf's JSON writes int64 as a string
    signature = {
        "inputs": {INPUT: _tensor("DT_UINT8", INPUT, "-1", image_px, image_px, "3")},
        "outputs": {"probabilities": _tensor("DT_FLOAT", "probabilities", "-1", str(len(served.classes)))},
        "method_name": "tensorflow/serving/predict",
    }
    return json_response({
        "model_spec": {"name": served.name, "signature_name": "", "version": served.version},
        "metadata": {"signature_def": {"signature_def": {_SIGNATURE: signature}}},
    })  # fmt: skip


def _tensor(kind: str, name: str, *sizes: str) -> dict[str, Any]:
    shape = {"dim": [{"size": size, "name": ""} for size in sizes], "unknown_rank": False}
    return {"dtype": kind, "tensor_shape": shape, "name": name}


_OWN = Protocol("TensorFlow Serving", d.PLAIN_ERROR)
_TABLE = d.rows(d.rows(d.SHARE))
_PREDICTED = {JSON: {"type": "object", "properties": {"predictions": _TABLE, "outputs": _TABLE}}}
_REQUEST = {
    JSON: {
        "type": "object",
        "properties": {"signature_name": {"const": _SIGNATURE}, "instances": d.rows({}), "inputs": {}},
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        "additionalProperties": False,
    }
}
_STATE = {
    "version": d.TEXT, "state": d.TEXT, "status": d.record({"error_code": d.TEXT, "error_message": d.TEXT}),
}  # fmt: skip
_STATUS = {JSON: d.record({"model_version_status": d.rows(d.record(_STATE))})}
_MODEL, _VERSION = "/v1/models/{model}", "/v1/models/{model}/versions/{version}"
_PREDICT = "Classify images, by rows (instances) or by columns (inputs)."
_METADATA, _STATES = "What goes in and comes out.", "Which versions are there."

# A path without parameters behind it takes any name: the narrower ones come before it.
ENDPOINTS = (
    Endpoint(_OWN, "POST", f"{_VERSION}:predict", predict, _PREDICT, _PREDICTED, body=_REQUEST, errors=d.WITH_IMAGES),
    Endpoint(_OWN, "POST", f"{_MODEL}:predict", predict, _PREDICT, _PREDICTED, body=_REQUEST, errors=d.WITH_IMAGES),
    Endpoint(_OWN, "GET", f"{_VERSION}/metadata", metadata, _METADATA, {JSON: d.OBJECT}, errors=(404,)),
    Endpoint(_OWN, "GET", f"{_MODEL}/metadata", metadata, _METADATA, {JSON: d.OBJECT}, errors=(404,)),
    Endpoint(_OWN, "GET", _VERSION, status, _STATES, _STATUS, errors=(404,)),
    Endpoint(_OWN, "GET", _MODEL, status, _STATES, _STATUS, errors=(404,)),
)  # fmt: skip
