"""The server's own endpoints: predict, explain, models, feedback, stats, metrics. Knows no other protocol."""

from __future__ import annotations

import asyncio
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tellapart.bundles.predictor import to_prediction
from tellapart.serving import openapi as d
from tellapart.serving.errors import ApiError
from tellapart.serving.json_body import parse_json, shown, utf8
from tellapart.serving.middleware import RequestContext, visit_of
from tellapart.serving.model_version import Answer, ExplainRequest, Image, ModelVersion
from tellapart.serving.multipart import parse_multipart
from tellapart.serving.service import Service, query_of, since

JSON = "application/json"
_FEEDBACK_KEYS = {"request_id", "verdict", "label", "model", "version"}
_MAX_FEEDBACK_BYTES = 16 * 1024
_SANE = re.compile(r"[\w.:-]{1,100}", re.ASCII)

_BODY: dict[str, d.Schema] = {
    "multipart/form-data": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": d.rows({"type": "string", "format": "binary"})},
    },
    "application/octet-stream": {"type": "string", "format": "binary"},
}
_NAMED = d.record({"label": d.TEXT, "probability": d.SHARE})
_PREDICTION = d.record({
    "name": d.maybe(d.TEXT), "label": d.maybe(d.TEXT), "probability": d.maybe(d.SHARE), "top": d.rows(_NAMED),
    "set": d.rows(d.TEXT), "abstains": d.BOOLEAN, "outside": d.rows(d.TEXT), "error": d.maybe(d.TEXT),
})  # fmt: skip
_PREDICTIONS = d.record({
    "model": d.TEXT, "version": d.TEXT, "request_id": d.TEXT, "predictions": d.rows(_PREDICTION),
    "seconds": d.record(dict.fromkeys(("queue", "decode", "network", "total"), d.NUMBER)),
})  # fmt: skip
_HEAT = d.record({"label": d.TEXT, "probability": d.SHARE, "heat": d.rows(d.rows(d.SHARE)), "method": d.TEXT})
_MODEL = {
    "name": d.TEXT, "version": d.TEXT, "number": d.WHOLE, "default": d.BOOLEAN, "runtime": d.TEXT,
    "classes": d.rows(d.TEXT), "image_px": d.WHOLE, "max_pixels": d.WHOLE, "explains": d.maybe(d.TEXT),
    "created": d.TEXT,
}  # fmt: skip
_CARD = d.record(
    _MODEL | {
        "card": d.TEXT, "metrics": d.ANYTHING, "envelope": d.ANYTHING, "threshold": d.maybe(d.SHARE),
        "coverage": d.SHARE,
        "versions": d.rows(d.record({"version": d.TEXT, "number": d.WHOLE})),
    }
)  # fmt: skip
_MODEL_PARAMETER = d.parameter("model", d.TEXT, "Name of the model [default: the first one].")
_VERSION_PARAMETER = d.parameter("version", d.TEXT, "Of the model: its digits or its number [default: the newest].")
_PREDICT_ERRORS = (*d.WITH_BODY, 404, 504)


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["tellapart"])
    _add_predict(routes, service)
    _add_explain(routes, service)
    _add_models(routes, service)
    _add_feedback(routes, service)
    _add_numbers(routes, service)
    return routes


def _add_predict(routes: APIRouter, service: Service) -> None:
    unreadable = {422: {"description": "No image could be read.", "content": {JSON: {"schema": _PREDICTIONS}}}}
    words = d.endpoint(
        "Name images.", {JSON: _PREDICTIONS}, errors=_PREDICT_ERRORS, body=_BODY, others=unreadable,
        parameters=[
            d.parameter("top_k", {"type": "integer", "minimum": 1}, "How many classes to list [default: 3]."),
            d.parameter("outside", d.BOOLEAN, "false: the photo's quality is not measured, which is a little faster."),
            _MODEL_PARAMETER, _VERSION_PARAMETER,
        ],
    )  # fmt: skip

    @routes.post("/predict", response_class=Response, **words)
    async def predict(request: Request) -> Response:
        visit = visit_of(request.scope)
        query = query_of(request, ("top_k", "outside", "model", "version"))
        top_k = whole(query.get("top_k", "3"), "top_k")
        with_quality = flag(query.get("outside", "true"), "outside")
        served = service.find(visit, query.get("model"), query.get("version"))
        files = await files_of(service, request)
        images = [Image(data, with_quality) for _, data in files]
        answers, call = await service.predict(request, served, images)
        predictions = [
            _prediction(served, name, answer, top_k) for (name, _), answer in zip(files, answers, strict=True)
        ]
        values = {
            "model": served.name, "version": served.version, "request_id": visit.id, "predictions": predictions,
            "seconds": {
                "queue": call.queue, "decode": call.decode, "network": call.network, "total": since(visit),
            },
        }  # fmt: skip
        readable = any(answer.row is not None for answer in answers)
        return Response(json.dumps(values), 200 if readable else 422, media_type=JSON)


def _prediction(served: ModelVersion, name: str | None, answer: Answer, top_k: int) -> dict[str, Any]:
    if answer.row is None:
        return {
            "name": name, "label": None, "probability": None, "top": [], "set": [], "abstains": False, "outside": [],
            "error": answer.error,
        }  # fmt: skip
    found = to_prediction(served.bundle, "", answer.row, top_k, answer.outside)
    for measure in found.quality_warnings:
        served.counts.outside(measure)
    return {
        "name": name,
        "label": found.label,
        "probability": found.probability,
        "top": [{"label": label, "probability": probability} for label, probability in found.top],
        "set": found.prediction_set,
        "abstains": found.abstains,
        "outside": list(found.quality_warnings),
        "error": None,
    }


def _add_explain(routes: APIRouter, service: Service) -> None:
    words = d.endpoint(
        "Show which parts of an image speak for a class.",
        {"image/png": {"type": "string", "format": "binary"}, JSON: _HEAT},
        errors=(*_PREDICT_ERRORS, 422), body=_BODY,
        parameters=[
            d.parameter("label", d.TEXT, "The class to explain [default: the one that is predicted]."),
            d.parameter("format", {"type": "string", "enum": ["png", "json"]}, "Overlay or numbers [default: png]."),
            _MODEL_PARAMETER, _VERSION_PARAMETER,
        ],
    )  # fmt: skip

    @routes.post("/explain", response_class=Response, **words)
    async def explain(request: Request) -> Response:
        visit = visit_of(request.scope)
        query = query_of(request, ("label", "format", "model", "version"))
        form = query.get("format", "png")
        if form not in ("png", "json"):
            raise ApiError(400, f"format is {form!r:.80}. Expected png or json.")
        served = service.find(visit, query.get("model"), query.get("version"))
        if served.explainer is None:
            raise ApiError(404, f"The model {served.name} has no heat maps: its bundle holds no explanation graph.")
        target = class_number(served, query["label"]) if "label" in query else None
        files = await files_of(service, request)
        if len(files) != 1:
            raise ApiError(400, f"{len(files)} images came. Expected one to explain.")
        found = await service.explain(request, served, ExplainRequest(files[0][1], target, form == "png"))
        if found.error:
            raise ApiError(422, f"The image {found.error}.")
        return Response(found.body, media_type="image/png" if form == "png" else JSON)


def _add_models(routes: APIRouter, service: Service) -> None:
    listed = d.record({"default": d.TEXT, "models": d.rows(d.record(_MODEL))})

    @routes.get("/models", response_class=Response, **d.endpoint("List the models and versions.", {JSON: listed}))
    async def models(request: Request) -> Response:
        query_of(request, ())
        values = [_summary(service, served) for served in service.models.all()]
        return _json({"default": service.models.find().name, "models": values})

    words = d.endpoint("The card of a model.", {JSON: _CARD}, errors=(404,), parameters=[_VERSION_PARAMETER])

    @routes.get("/models/{name}", response_class=Response, **words)
    async def model(request: Request, name: str) -> Response:
        query = query_of(request, ("version",))
        served = service.find(visit_of(request.scope), name, query.get("version"))
        record = served.bundle.record
        versions = [{"version": each.version, "number": each.number} for each in service.models.of(served.name)]
        return _json(
            _summary(service, served) | {
                "card": served.card, "metrics": record.metrics, "envelope": record.quality_range,
                "threshold": record.threshold, "coverage": record.coverage, "versions": versions,
            }
        )  # fmt: skip


def _summary(service: Service, served: ModelVersion) -> dict[str, Any]:
    record = served.bundle.record
    return {
        "name": served.name, "version": served.version, "number": served.number,
        "default": served is service.models.find(served.name), "runtime": served.runtime,
        "classes": list(record.classes), "image_px": record.image_px, "max_pixels": served.max_pixels,
        "explains": record.explains, "created": record.created,
    }  # fmt: skip


def _add_feedback(routes: APIRouter, service: Service) -> None:
    verdict = d.record(
        {
            "request_id": d.TEXT | {"pattern": f"^{_SANE.pattern}$"},
            "verdict": {"type": "string", "enum": ["right", "wrong"]},
            "label": d.maybe(d.TEXT), "model": d.maybe(d.TEXT), "version": d.maybe(d.TEXT),
        },
        optional=("label", "model", "version"),
    ) | {"additionalProperties": False}  # fmt: skip
    words = d.endpoint(
        "Say whether an answer was right.", {}, errors=(*d.WITH_BODY, 404), body={JSON: verdict}, status=204
    )

    @routes.post("/feedback", response_class=Response, **words)
    async def feedback(request: Request) -> Response:
        query_of(request, ())
        body = await service.body(request)
        if len(body) > _MAX_FEEDBACK_BYTES:
            raise ApiError(413, f"The verdict has {len(body):,} bytes; at most {_MAX_FEEDBACK_BYTES:,} are taken.")
        values = parse_json(utf8(body.take()))
        served = _check_feedback(service, visit_of(request.scope), values)
        if service.options.feedback is not None:
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "model": served.name} | values
            try:
                await asyncio.to_thread(_append, service.options.feedback, line)
            except OSError as error:
                message = f"The verdict cannot be kept: {error.strerror or error}."
                raise ApiError(503, message, {"Retry-After": "60"}) from None
        service.telemetry.feedback.labels(served.name, values["verdict"]).inc()
        return Response(status_code=204)


def _check_feedback(service: Service, visit: RequestContext, values: Any) -> ModelVersion:
    """Return the model that a verdict is about.

    Raises:
        ApiError: it is none (400), or is about a model that is not here (404).
    """
    if not isinstance(values, dict) or set(values) - _FEEDBACK_KEYS:
        raise ApiError(400, f"Expected an object with no other keys than {', '.join(sorted(_FEEDBACK_KEYS))}.")
    for key in ("label", "model", "version"):
        if values.get(key) is not None and not isinstance(values[key], str):
            raise ApiError(400, f"{key} is {type(values[key]).__name__}. Expected a text.")
    if values.get("verdict") not in ("right", "wrong"):
        raise ApiError(400, f"verdict is {shown(values.get('verdict'))}. Expected right or wrong.")
    if not isinstance(values.get("request_id"), str) or not _SANE.fullmatch(values["request_id"]):
        raise ApiError(400, "Expected request_id as it came with the prediction.")
    version = values.get("version")
    served = service.find(visit, values.get("model"), None)
    if version is not None and not _SANE.fullmatch(version):
        raise ApiError(400, f"version is {version!r:.80}. Expected the one that came with the prediction.")
    if values.get("label") is not None:  # the version may have been replaced since; the classes seldom change
        class_number(served, values["label"])
    return served


def _append(path: Path, line: dict[str, Any]) -> None:
    """Append one line in one write: several processes may do so."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def _add_numbers(routes: APIRouter, service: Service) -> None:
    numbers = d.record({
        "requests_per_second": d.NUMBER, "refused_per_second": d.NUMBER, "p50_ms": d.maybe(d.NUMBER),
        "p99_ms": d.maybe(d.NUMBER), "in_flight": d.WHOLE, "queue": d.WHOLE,
    })  # fmt: skip

    @routes.get("/stats", response_class=Response, **d.endpoint("The last ten seconds.", {JSON: numbers}))
    async def stats(request: Request) -> Response:
        query_of(request, ())
        rate, p50, p99 = service.telemetry.recent()
        return _json({
            "requests_per_second": rate, "refused_per_second": service.telemetry.refused_per_second(), "p50_ms": p50,
            "p99_ms": p99,
            "in_flight": service.telemetry.answering, "queue": service.waiting,
        })  # fmt: skip

    @routes.get("/metrics", response_class=Response, **d.endpoint("Metrics for Prometheus.", {"text/plain": d.TEXT}))
    async def metrics(request: Request) -> Response:
        query_of(request, ())
        service.telemetry.queue.set(service.waiting)
        return Response(service.telemetry.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def files_of(service: Service, request: Request) -> list[tuple[str | None, bytes]]:
    """Return the images of a request with their file names.

    Raises:
        ApiError: the body is malformed, empty or too large.
    """
    kind = visit_of(request.scope).headers.get(b"content-type", b"")
    body = await service.body(request)
    if not kind.lower().startswith(b"multipart/"):
        if not len(body):
            raise ApiError(400, "The body is empty. Expected an image, or multipart/form-data with the field 'file'.")
        return [(None, body.take())]
    most = service.options.limits.max_files
    size = len(body)
    body.add(size)  # its parts are copies
    parts = parse_multipart(body.take(), kind, most)
    body.free(size)
    files = [(part.filename, part.data) for part in parts if part.name == "file"]
    if not files:
        came = ", ".join(sorted({repr(part.name[:40]) for part in parts})) or "none"
        raise ApiError(400, f"The form has the fields {came}. Expected the field 'file', once or several times.")
    if len(files) > most:
        raise ApiError(413, f"{len(files)} files came; at most {most} are taken. Send them in several requests.")
    return files


def class_number(served: ModelVersion, label: str) -> int:
    """Return the number of a class.

    Raises:
        ApiError: there is no such class (400).
    """
    if label not in served.classes:
        known = ", ".join(served.classes[:50]) + (", …" if len(served.classes) > 50 else "")
        raise ApiError(400, f"There is no class {label!r:.120}. Expected one of: {known}.")
    return served.classes.index(label)


def whole(text: str, name: str) -> int:
    """Return a whole number from 1 on.

    Raises:
        ApiError: it is none (400).
    """
    if not (text.isascii() and text.isdigit() and int(text[:19]) > 0):
        raise ApiError(400, f"{name} is {text!r:.80}. Expected a whole number from 1 on.")
    return int(text[:19])


def flag(text: str, name: str) -> bool:
    """Return true or false.

    Raises:
        ApiError: it is neither (400).
    """
    if text not in ("true", "false", "1", "0"):
        raise ApiError(400, f"{name} is {text!r:.80}. Expected true or false.")
    return text in ("true", "1")


def _json(values: Any) -> Response:
    return Response(json.dumps(values), media_type=JSON)
