"""TensorFlow Serving's REST API, for clients that speak it already. Knows no other protocol.

https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tellapart.serving import openapi as d
from tellapart.serving.api import JSON
from tellapart.serving.errors import ApiError
from tellapart.serving.json_body import shown
from tellapart.serving.middleware import visit_of
from tellapart.serving.model_version import Image, ModelVersion
from tellapart.serving.service import Service, query_of
from tellapart.serving.tensors import images_of

SIGNATURE = "serving_default"
INPUT = "image"
_KEYS = ("signature_name", "instances", "inputs")

_PREDICT_BODY = {
    "type": "object",
    "properties": {"signature_name": {"const": SIGNATURE}, "instances": d.rows({}), "inputs": {}},
    "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    "additionalProperties": False,
}
_TABLE = d.rows(d.rows(d.SHARE))
_PREDICTED = {"type": "object", "properties": {"predictions": _TABLE, "outputs": _TABLE}}
_STATUS = d.record({
    "model_version_status": d.rows(
        d.record({
            "version": d.TEXT, "state": d.TEXT,
            "status": d.record({"error_code": d.TEXT, "error_message": d.TEXT}),
        })
    )
})  # fmt: skip

_endpoint = partial(d.endpoint, error=d.PLAIN_ERROR)


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1/models", tags=["TensorFlow Serving"])
    words = _endpoint(
        "Name images, by rows (instances) or by columns (inputs).", {JSON: _PREDICTED}, body={JSON: _PREDICT_BODY},
        errors=(*d.WITH_BODY, 404, 422, 504),
    )  # fmt: skip

    @routes.post("/{model}/versions/{version}:predict", response_class=Response, **words)
    async def predict_version(request: Request, model: str, version: str) -> Response:
        return await _predict(service, request, model, version)

    @routes.post("/{model}:predict", response_class=Response, **words)
    async def predict(request: Request, model: str) -> Response:
        return await _predict(service, request, model, None)

    _add_metadata(routes, service)
    return routes


def _add_metadata(routes: APIRouter, service: Service) -> None:
    words = _endpoint("What goes in and comes out.", {JSON: {"type": "object"}}, errors=(404,))

    @routes.get("/{model}/versions/{version}/metadata", response_class=Response, **words)
    async def metadata_version(request: Request, model: str, version: str) -> Response:
        query_of(request, ())
        return _json(_metadata(service.find(visit_of(request.scope), model, version)))

    @routes.get("/{model}/metadata", response_class=Response, **words)
    async def metadata(request: Request, model: str) -> Response:
        query_of(request, ())
        return _json(_metadata(service.find(visit_of(request.scope), model, None)))

    words = _endpoint("Which versions are there.", {JSON: _STATUS}, errors=(404,))

    @routes.get("/{model}/versions/{version}", response_class=Response, **words)
    async def status_version(request: Request, model: str, version: str) -> Response:
        query_of(request, ())
        return _json(_status([service.find(visit_of(request.scope), model, version)]))

    @routes.get("/{model}", response_class=Response, **words)
    async def status(request: Request, model: str) -> Response:
        query_of(request, ())
        service.find(visit_of(request.scope), model, None)
        return _json(_status(service.models.of(model)[::-1]))


async def _predict(service: Service, request: Request, model: str, version: str | None) -> Response:
    query_of(request, ())
    served = service.find(visit_of(request.scope), model, version)
    key, images = await service.parsed(await service.body(request), _images)
    answers, _ = await service.predict(request, served, images)
    for number, answer in enumerate(answers):
        if answer.row is None:
            raise ApiError(422, f"{key}[{number}] {answer.error}.")
    rows = [answer.row.tolist() for answer in answers if answer.row is not None]
    return _json({"predictions" if key == "instances" else "outputs": rows})


def _images(values: Any, _: memoryview) -> tuple[str, list[Image]]:
    """Return the key under which the images are, and the images.

    Raises:
        ApiError: the request has another form (400), or too many images (413).
    """
    key = _check(values)
    return key, (_by_rows if key == "instances" else _by_columns)(values[key])


def _check(values: Any) -> str:
    """Return under which key the images are.

    Raises:
        ApiError: the request has another form (400).
    """
    if not isinstance(values, dict) or (set(values) - set(_KEYS)):
        raise ApiError(400, f"Expected an object with no other keys than {', '.join(_KEYS)}.")
    if (name := values.get("signature_name", SIGNATURE)) != SIGNATURE:
        raise ApiError(400, f"signature_name is {shown(name)}. Expected {SIGNATURE!r}, or none.")
    given = [key for key in ("instances", "inputs") if key in values]
    if len(given) != 1:
        raise ApiError(400, "Expected either 'instances' (rows) or 'inputs' (columns).")
    return given[0]


def _by_rows(given: Any) -> list[Image]:
    if isinstance(given, list):
        given = [_under_its_name(each) for each in given]
    return [Image(data) for data in images_of(given, "instances")]


def _by_columns(given: Any) -> list[Image]:
    given = _under_its_name(given)
    return [Image(data) for data in images_of([given] if isinstance(given, dict) else given, "inputs")]


def _under_its_name(value: Any) -> Any:
    """Return what stands under the input's name, where clients write it."""
    return value[INPUT] if isinstance(value, dict) and set(value) == {INPUT} else value


def _status(versions: list[ModelVersion]) -> dict[str, Any]:
    fine = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [
            {"version": served.version, "state": "AVAILABLE", "status": fine} for served in versions
        ]
    }


def _metadata(served: ModelVersion) -> dict[str, Any]:
    side = str(served.bundle.record.image_px)

    def tensor(kind: str, name: str, sizes: tuple[str, ...]) -> dict[str, Any]:
        shape = {"dim": [{"size": size, "name": ""} for size in sizes], "unknown_rank": False}
        return {"dtype": kind, "tensor_shape": shape, "name": name}

    signature = {
        "inputs": {INPUT: tensor("DT_UINT8", INPUT, ("-1", side, side, "3"))},
        "outputs": {"probabilities": tensor("DT_FLOAT", "probabilities", ("-1", str(len(served.classes))))},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": served.name, "signature_name": "", "version": served.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _json(values: Any) -> Response:
    return Response(json.dumps(values), media_type=JSON)
