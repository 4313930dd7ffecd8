"""The Open Inference Protocol, version 2, with Triton's binary tensors. Knows no other protocol.

https://github.com/kserve/open-inference-protocol and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response

from tellapart import __version__
from tellapart.serving import openapi as d
from tellapart.serving.endpoints import JSON, Endpoint, Protocol, json_response
from tellapart.serving.errors import ApiError
from tellapart.serving.inference_tensors import read_request, write_outputs
from tellapart.serving.middleware import context_of
from tellapart.serving.service import Service
from tellapart.serving.tensors import INPUT

_BYTES = "application/octet-stream"


async def server(service: Service, request: Request) -> Response:
    """Return which server this is."""
    return json_response({"name": "tellapart", "version": __version__, "extensions": ["binary_tensor_data"]})


async def live(service: Service, request: Request) -> Response:
    """Answer: the process lives."""
    return Response()


async def ready(service: Service, request: Request) -> Response:
    """Answer unless the server was told to stop."""
    if service.draining:
        raise ApiError(503, "The server was told to stop.", {"Retry-After": "1"})
    return Response()


async def model_ready(service: Service, request: Request) -> Response:
    """Answer if there is the model."""
    service.find_in_path(request)
    return Response()


async def metadata(service: Service, request: Request) -> Response:
    """Return what goes in and comes out."""
    served = service.find_in_path(request)
    image_px = served.bundle.record.image_px
    return json_response({
        "name": served.name,
        "versions": [version.version for version in service.models.of(served.name)],
        "platform": f"tellapart_{served.runtime}",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, image_px, image_px, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(served.classes)]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    })  # fmt: skip


async def infer(service: Service, request: Request) -> Response:
    """Return the outputs of images."""
    served = service.find_in_path(request, to_predict=True)
    body = await service.body(request)
    inference = await service.parsed(body, read_request, _json_bytes(request, len(body)))
    table = await service.predict_all(request, served, inference.images, INPUT)
    outputs, tail = write_outputs(table, served.classes, inference.outputs)
    head = {"model_name": served.name, "model_version": served.version}
    if inference.id is not None:
        head["id"] = inference.id
    values = head | {"outputs": outputs}
    # Binary tensors follow the JSON; the header says where the JSON ends.
    if not tail:
        return json_response(values)
    text = json.dumps(values).encode()
    return Response(text + tail, media_type=_BYTES, headers={"Inference-Header-Content-Length": str(len(text))})


def _json_bytes(request: Request, total: int) -> int | None:
    """Return how many bytes of the body are JSON; None: all.

    Raises:
        ApiError: the header is no such number (400).
    """
    length = context_of(request).headers.get(b"inference-header-content-length")
    if length is None:
        return None
    # Never convert more than twelve digits: int() raises its own error for thousands of them.
    if not length.isdigit() or len(length) > 12 or int(length) > total:
        shown = f"{length.decode('latin-1')!r:.40}"
        raise ApiError(400, f"Inference-Header-Content-Length is {shown}. Expected a number up to {total:,}.")
    return int(length)


_OWN = Protocol("Open Inference Protocol", d.PLAIN_ERROR)
_TENSOR = d.record(
    {"name": d.TEXT, "shape": d.rows(d.WHOLE), "datatype": d.TEXT, "parameters": d.OBJECT, "data": d.rows({})},
    optional=("parameters", "data"),
)
_OUTPUT = d.record({"name": d.TEXT, "parameters": d.OBJECT}, optional=("parameters",))
_REQUEST = d.record(
    {"id": d.TEXT, "inputs": d.rows(_TENSOR), "parameters": d.OBJECT, "outputs": d.rows(_OUTPUT)},
    optional=("id", "parameters", "outputs"),
)
_RESPONSE = d.record(
    {"model_name": d.TEXT, "model_version": d.TEXT, "id": d.TEXT, "outputs": d.rows(_TENSOR)}, optional=("id",)
)
_SERVER = {JSON: d.record({"name": d.TEXT, "version": d.TEXT, "extensions": d.rows(d.TEXT)})}
_SHAPED = d.rows(d.record({"name": d.TEXT, "datatype": d.TEXT, "shape": d.rows(d.WHOLE)}))
_SHAPES = {
    JSON: d.record({
        "name": d.TEXT, "versions": d.rows(d.TEXT), "platform": d.TEXT, "inputs": _SHAPED, "outputs": _SHAPED,
    })
}  # fmt: skip
_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
_READY, _METADATA = "Whether the model answers.", "What goes in and comes out."
_IN, _OUT = {JSON: _REQUEST, _BYTES: d.BINARY}, {JSON: _RESPONSE, _BYTES: d.BINARY}

ENDPOINTS = (
    Endpoint(_OWN, "GET", "/v2", server, "Which server this is.", _SERVER),
    Endpoint(_OWN, "GET", "/v2/health/live", live, "Whether the process lives.", {}),
    Endpoint(_OWN, "GET", "/v2/health/ready", ready, "Whether requests should be sent here.", {}, errors=(503,)),
    Endpoint(_OWN, "GET", f"{_VERSION}/ready", model_ready, _READY, {}, errors=(404,)),
    Endpoint(_OWN, "GET", _VERSION, metadata, _METADATA, _SHAPES, errors=(404,)),
    Endpoint(_OWN, "POST", f"{_VERSION}/infer", infer, "Classify images.", _OUT, body=_IN, errors=d.WITH_IMAGES),
    Endpoint(_OWN, "GET", f"{_MODEL}/ready", model_ready, _READY, {}, errors=(404,)),
    Endpoint(_OWN, "GET", _MODEL, metadata, _METADATA, _SHAPES, errors=(404,)),
    Endpoint(_OWN, "POST", f"{_MODEL}/infer", infer, "Classify images.", _OUT, body=_IN, errors=d.WITH_IMAGES),
)
