"""The Open Inference Protocol, version 2, with Triton's binary tensors. Knows no other protocol.

https://github.com/kserve/open-inference-protocol and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tellapart import __version__
from tellapart.serving import openapi as d
from tellapart.serving.api import JSON
from tellapart.serving.errors import ApiError
from tellapart.serving.inference_tensors import INPUT, Inference, answer, read_request
from tellapart.serving.middleware import visit_of
from tellapart.serving.model_version import ModelVersion
from tellapart.serving.service import Service, query_of

_HEADER = b"inference-header-content-length"
_TENSOR = d.record(
    {
        "name": d.TEXT, "shape": d.rows(d.WHOLE), "datatype": d.TEXT, "parameters": {"type": "object"},
        "data": d.rows({}),
    },
    optional=("parameters", "data"),
)  # fmt: skip
_REQUEST = d.record(
    {
        "id": d.TEXT, "inputs": d.rows(_TENSOR), "parameters": {"type": "object"},
        "outputs": d.rows(d.record({"name": d.TEXT, "parameters": {"type": "object"}}, optional=("parameters",))),
    },
    optional=("id", "parameters", "outputs"),
)  # fmt: skip
_RESPONSE = d.record(
    {"model_name": d.TEXT, "model_version": d.TEXT, "id": d.TEXT, "outputs": d.rows(_TENSOR)}, optional=("id",)
)
_BINARY = {"type": "string", "format": "binary"}
_SHAPED = d.rows(d.record({"name": d.TEXT, "datatype": d.TEXT, "shape": d.rows(d.WHOLE)}))
_METADATA = d.record(
    {"name": d.TEXT, "versions": d.rows(d.TEXT), "platform": d.TEXT, "inputs": _SHAPED, "outputs": _SHAPED}
)
_SERVER = d.record({"name": d.TEXT, "version": d.TEXT, "extensions": d.rows(d.TEXT)})

_endpoint = partial(d.endpoint, error=d.PLAIN_ERROR)


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    _add_server(routes, service)
    for path in ("/models/{model}/versions/{version}", "/models/{model}"):
        _add_model(routes, service, path)
    return routes


def _add_server(routes: APIRouter, service: Service) -> None:
    @routes.get("", response_class=Response, **_endpoint("Which server this is.", {JSON: _SERVER}))
    async def server(request: Request) -> Response:
        query_of(request, ())
        return _json({"name": "tellapart", "version": __version__, "extensions": ["binary_tensor_data"]})

    @routes.get("/health/live", response_class=Response, **_endpoint("Whether the process lives.", {}))
    async def live(request: Request) -> Response:
        query_of(request, ())
        return Response()

    words = _endpoint("Whether requests should be sent here.", {}, errors=(503,))

    @routes.get("/health/ready", response_class=Response, **words)
    async def ready(request: Request) -> Response:
        query_of(request, ())
        if service.draining:
            raise ApiError(503, "The server was told to stop.", {"Retry-After": "1"})
        return Response()


def _add_model(routes: APIRouter, service: Service, path: str) -> None:
    """Add the routes of a model, with or without its version in the path."""

    def add(method: str, end: str, words: dict[str, Any], work: Callable[..., Awaitable[Response]]) -> None:
        if "{version}" in path:

            async def handle(request: Request, model: str, version: str) -> Response:
                return await work(request, model, version)
        else:

            async def handle(request: Request, model: str) -> Response:  # type: ignore[misc]
                return await work(request, model, None)

        name = f"{getattr(work, '__name__', '')}{'_version' if 'version' in path else ''}"
        routes.add_api_route(path + end, handle, methods=[method], response_class=Response, name=name, **words)

    async def ready(request: Request, model: str, version: str | None) -> Response:
        query_of(request, ())
        service.find(visit_of(request.scope), model, version)
        return Response()

    async def metadata(request: Request, model: str, version: str | None) -> Response:
        query_of(request, ())
        return _json(_metadata(service, service.find(visit_of(request.scope), model, version)))

    async def infer(request: Request, model: str, version: str | None) -> Response:
        return await _infer(service, request, model, version)

    add("GET", "/ready", _endpoint("Whether the model answers.", {}, errors=(404,)), ready)
    add("GET", "", _endpoint("What goes in and comes out.", {JSON: _METADATA}, errors=(404,)), metadata)
    words = _endpoint(
        "Name images.", {JSON: _RESPONSE, "application/octet-stream": _BINARY},
        body={JSON: _REQUEST, "application/octet-stream": _BINARY}, errors=(*d.WITH_BODY, 404, 422, 504),
    )  # fmt: skip
    add("POST", "/infer", words, infer)


async def _infer(service: Service, request: Request, model: str, version: str | None) -> Response:
    query_of(request, ())
    visit = visit_of(request.scope)
    served = service.find(visit, model, version)
    body = await service.body(request)
    size = _header_size(visit.headers.get(_HEADER), len(body))
    asked = await service.parsed(body, read_request, size)
    answers, _ = await service.predict(request, served, asked.images)
    for number, each in enumerate(answers):
        if each.row is None:
            raise ApiError(422, f"{INPUT}[{number}] {each.error}.")
    return _response(served, asked, [each.row for each in answers if each.row is not None])


def _response(served: ModelVersion, asked: Inference, rows: list[Any]) -> Response:
    outputs, tail = answer(rows, served.classes, asked.outputs)
    head = {"model_name": served.name, "model_version": served.version}
    if asked.id is not None:
        head["id"] = asked.id
    text = json.dumps(head | {"outputs": outputs}).encode()
    if not tail:
        return Response(text, media_type=JSON)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Response(text + tail, media_type="application/octet-stream", headers=headers)


def _header_size(given: bytes | None, total: int) -> int | None:
    """Return how many bytes of the body are JSON; None: all.

    Raises:
        ApiError: the header is no such number (400).
    """
    if given is None:
        return None
    if not given.isdigit() or len(given) > 12 or int(given) > total:
        message = (
            f"Inference-Header-Content-Length is {given.decode('latin-1')!r:.40}. Expected a number up to {total:,}."
        )
        raise ApiError(400, message)
    return int(given)


def _metadata(service: Service, served: ModelVersion) -> dict[str, Any]:
    side = served.bundle.record.image_px
    return {
        "name": served.name,
        "versions": [each.version for each in service.models.of(served.name)],
        "platform": f"tellapart_{served.runtime}",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, side, side, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(served.classes)]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def _json(values: Any) -> Response:
    return Response(json.dumps(values), media_type=JSON)
