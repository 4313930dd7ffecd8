"""The server's own endpoints: predict, explain, models, feedback, stats, metrics. Knows no other protocol.

Each is a function here and a row of the table at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tellapart.bundles.predictor import to_prediction
from tellapart.serving import openapi as d
from tellapart.serving.endpoints import JSON, Endpoint, Parameter, Protocol, Schema, json_response
from tellapart.serving.errors import ApiError
from tellapart.serving.json_body import shown
from tellapart.serving.middleware import context_of
from tellapart.serving.model_version import Answer, ExplainRequest, Image, ModelVersion
from tellapart.serving.multipart import parse_multipart
from tellapart.serving.service import Service

_FEEDBACK_KEYS = {"request_id", "image", "verdict", "label", "model", "version"}
_MAX_FEEDBACK_BYTES = 4 * 1024 * 1024
_MOST_VERDICTS = 10_000
_MOST_IMAGES = 100_000
_SANE = re.compile(r"[\w.:-]{1,100}", re.ASCII)


async def predict(service: Service, request: Request) -> Response:
    """Return what the model predicts of one or several images."""
    context = context_of(request)
    query = context.query
    served = service.find(request, query.get("model"), query.get("version"), to_predict=True)
    files = await files_of(service, request)
    images = [Image(data, query.get("quality", True)) for _, data in files]
    answers, call = await service.predict(request, served, images)
    top_k = query.get("top_k", 3)
    predictions = [_prediction(served, name, answer, top_k) for (name, _), answer in zip(files, answers, strict=True)]
    values = {
        "model": served.name, "version": served.version, "request_id": context.id, "predictions": predictions,
        "seconds": {
            "queue": call.queue, "decode": call.decode, "network": call.network,
            "total": time.perf_counter() - context.began,
        },
    }  # fmt: skip
    # 422 only if no image could be read: one bad file must not cost the client the other answers.
    readable = any(answer.row is not None for answer in answers)
    return json_response(values, 200 if readable else 422)


def _prediction(served: ModelVersion, name: str | None, answer: Answer, top_k: int) -> dict[str, Any]:
    if answer.row is None:
        # The same keys as below, because the OpenAPI schema requires all of them.
        return {
            "name": name, "label": None, "probability": None, "top": [], "prediction_set": [], "abstains": False,
            "unknown": False, "similarity": None, "quality_warnings": [], "error": answer.error,
        }  # fmt: skip
    prediction = to_prediction(served.bundle, "", answer.row, top_k, answer.quality_warnings)
    for measure in prediction.quality_warnings:
        served.counts.quality_warning(measure)
    return {
        "name": name,
        "label": prediction.label,
        "probability": prediction.probability,
        "top": [{"label": label, "probability": probability} for label, probability in prediction.top],
        "prediction_set": prediction.prediction_set,
        "abstains": prediction.abstains,
        "unknown": answer.unknown,
        "similarity": answer.similarity,
        "quality_warnings": list(prediction.quality_warnings),
        "error": None,
    }


async def explain(service: Service, request: Request) -> Response:
    """Return a heat map of one image."""
    query = context_of(request).query
    as_png = query.get("format", "png") == "png"
    served = service.find(request, query.get("model"), query.get("version"))
    if served.explainer is None:
        raise ApiError(404, f"The model {served.name} has no heat maps: its bundle holds no explanation graph.")
    target = class_number(served, query["label"]) if "label" in query else None
    files = await files_of(service, request)
    if len(files) != 1:
        raise ApiError(400, f"{len(files)} images came. Expected one to explain.")
    explanation = await service.explain(request, served, ExplainRequest(files[0][1], target, as_png))
    if explanation.error:
        raise ApiError(422, f"The image {explanation.error}.")
    return Response(explanation.body, media_type="image/png" if as_png else JSON)


async def models(service: Service, request: Request) -> Response:
    """Return what is served."""
    values = [_summary(service, served) for served in service.models.all()]
    return json_response({"default": service.models.find().name, "models": values})


async def model(service: Service, request: Request) -> Response:
    """Return the card of a model."""
    served = service.find(request, request.path_params["name"], context_of(request).query.get("version"))
    record = served.bundle.record
    versions = [{"version": version.version, "number": version.number} for version in service.models.of(served.name)]
    return json_response(
        _summary(service, served) | {
            "card": served.card, "metrics": record.metrics, "quality_range": record.quality_range,
            "threshold": record.threshold, "coverage": record.coverage, "versions": versions,
            "unknown": _unknown_threshold(served),
        }
    )  # fmt: skip


def _unknown_threshold(served: ModelVersion) -> dict[str, Any] | None:
    """Return from which similarity on a photo is of a known class, and the share of those that is below it at most."""
    detector = served.bundle.detector
    return None if detector is None else {"threshold": detector.threshold, "refused": detector.refused}


def _summary(service: Service, served: ModelVersion) -> dict[str, Any]:
    record = served.bundle.record
    return {
        "name": served.name, "version": served.version, "number": served.number,
        "default": served is service.models.find(served.name), "runtime": served.runtime,
        "classes": list(record.classes), "image_px": record.image_px, "max_pixels": served.max_pixels,
        "explains": record.explains, "created": record.created,
    }  # fmt: skip


async def feedback(service: Service, request: Request) -> Response:
    """Count verdicts on predictions, one or a list of them, and keep them where a file or a store was named."""
    body = await service.body(request)
    if len(body) > _MAX_FEEDBACK_BYTES:
        raise ApiError(413, f"The verdicts have {len(body):,} bytes; at most {_MAX_FEEDBACK_BYTES:,} are taken.")
    # Thousands are checked where they are parsed, in a thread: the event loop has others to answer.
    verdicts, names = await service.parsed(body, lambda values, _: _checked(service, request, values))
    # Before the file: sent again after a failure, a verdict is stored once, while the file would have it twice.
    if service.prediction_log is not None:
        await service.prediction_log.add_feedback(verdicts)
    if service.options.feedback is not None:
        # In a thread: a slow disk would block the event loop and with it every other request.
        try:
            await asyncio.to_thread(_append, service.options.feedback, verdicts, names)
        except OSError as error:
            message = f"The verdict cannot be kept: {error.strerror or error}."
            raise ApiError(503, message, {"Retry-After": "60"}) from None
    said = zip(names, (values["verdict"] for values in verdicts), strict=True)
    for (name, verdict), number in Counter(said).items():
        service.telemetry.feedback.labels(name, verdict).inc(number)
    return Response(status_code=204)


def _checked(service: Service, request: Request, body: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return verdicts, and the names of the models that they are about: all of them, or none.

    Raises:
        ApiError: there are too many (400), or one is wrong, which is named by its number.
    """
    if not isinstance(body, list):
        return [body], [_check_feedback(service, request, body).name]
    if len(body) > _MOST_VERDICTS:
        message = f"{len(body):,} verdicts came; at most {_MOST_VERDICTS:,} are taken. Send them in several requests."
        raise ApiError(400, message)
    names = []
    for number, values in enumerate(body):
        try:
            names.append(_check_feedback(service, request, values).name)
        except ApiError as error:
            raise ApiError(error.status, f"Verdict {number}, counted from 0: {error}", error.headers) from None
    return body, names


def _check_feedback(service: Service, request: Request, values: Any) -> ModelVersion:
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
    if type(values.get("image", 0)) is not int or not 0 <= values.get("image", 0) < _MOST_IMAGES:
        raise ApiError(400, f"image is {shown(values['image'])}. Expected its number in the request, from 0 on.")
    version = values.get("version")
    served = service.find(request, values.get("model"), None)
    if version is not None and not _SANE.fullmatch(version):
        raise ApiError(400, f"version is {version!r:.80}. Expected the one that came with the prediction.")
    if values.get("label") is not None:  # the version may have been replaced since; the classes seldom change
        class_number(served, values["label"])
    return served


def _append(path: Path, verdicts: list[dict[str, Any]], names: list[str]) -> None:
    """Append verdicts as lines in one write: several processes may do so."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [{"time": now, **values, "model": name} for values, name in zip(verdicts, names, strict=True)]
    # O_APPEND: each write goes to the current end of the file, even if another process has written since.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, "".join(json.dumps(line) + "\n" for line in lines).encode())
    finally:
        os.close(descriptor)


async def stats(service: Service, request: Request) -> Response:
    """Return the numbers of the last ten seconds."""
    rate, p50, p99 = service.telemetry.recent()
    return json_response({
        "requests_per_second": rate, "refused_per_second": service.telemetry.refused_per_second(), "p50_ms": p50,
        "p99_ms": p99, "in_flight": service.telemetry.answering, "queue": service.waiting,
    })  # fmt: skip


async def metrics(service: Service, request: Request) -> Response:
    """Return all metrics as Prometheus reads them."""
    return Response(service.telemetry.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def files_of(service: Service, request: Request) -> list[tuple[str | None, bytes]]:
    """Return the images of a request with their file names.

    Raises:
        ApiError: the body is malformed, empty or too large.
    """
    kind = context_of(request).headers.get(b"content-type", b"")
    body = await service.body(request)
    if not kind.lower().startswith(b"multipart/"):
        if not len(body):
            raise ApiError(400, "The body is empty. Expected an image, or multipart/form-data with the field 'file'.")
        return [(None, body.take())]
    most = service.options.limits.max_files
    # Count the body twice while it is parsed: the parts are copies, and both are in memory together.
    size = len(body)
    body.add(size)
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


_OWN = Protocol("tellapart", d.ERROR)
_IMAGES: dict[str, Schema] = {
    "multipart/form-data": {"type": "object", "required": ["file"], "properties": {"file": d.rows(d.BINARY)}},
    "application/octet-stream": d.BINARY,
}
_PREDICTION = d.record({
    "name": d.maybe(d.TEXT), "label": d.maybe(d.TEXT), "probability": d.maybe(d.SHARE),
    "top": d.rows(d.record({"label": d.TEXT, "probability": d.SHARE})),
    "prediction_set": d.rows(d.TEXT), "abstains": d.BOOLEAN, "unknown": d.BOOLEAN, "similarity": d.maybe(d.NUMBER),
    "quality_warnings": d.rows(d.TEXT), "error": d.maybe(d.TEXT),
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
_CARD = _MODEL | {
    "card": d.TEXT, "metrics": d.ANYTHING, "quality_range": d.ANYTHING, "threshold": d.maybe(d.SHARE),
    "coverage": d.SHARE, "versions": d.rows(d.record({"version": d.TEXT, "number": d.WHOLE})),
    "unknown": d.maybe(d.record({"threshold": d.NUMBER, "refused": d.SHARE})),
}  # fmt: skip
_VERDICT = d.record(
    {
        "request_id": d.TEXT | {"pattern": f"^{_SANE.pattern}$"},
        "image": {"type": "integer", "minimum": 0, "maximum": _MOST_IMAGES - 1},
        "verdict": {"type": "string", "enum": ["right", "wrong"]},
        "label": d.maybe(d.TEXT), "model": d.maybe(d.TEXT), "version": d.maybe(d.TEXT),
    },
    optional=("image", "label", "model", "version"),
) | {"additionalProperties": False}  # fmt: skip
_STATS = d.record({
    "requests_per_second": d.NUMBER, "refused_per_second": d.NUMBER, "p50_ms": d.maybe(d.NUMBER),
    "p99_ms": d.maybe(d.NUMBER), "in_flight": d.WHOLE, "queue": d.WHOLE,
})  # fmt: skip
_VERSION_PARAMETER = Parameter("version", d.TEXT, "Of the model: its digits or its number [default: the newest].")
_MODEL_PARAMETERS = (Parameter("model", d.TEXT, "Name of the model [default: the first one]."), _VERSION_PARAMETER)

ENDPOINTS = (
    Endpoint(
        _OWN, "POST", "/predict", predict, "Classify images.", {JSON: _PREDICTIONS},
        (
            Parameter("top_k", {"type": "integer", "minimum": 1}, "How many classes to list [default: 3]."),
            Parameter("quality", d.BOOLEAN, "false: the photo's quality is not measured, which is a little faster."),
            *_MODEL_PARAMETERS,
        ),
        body=_IMAGES, errors=(*d.WITH_BODY, 404, 504),
        further={422: {"description": "No image could be read.", "content": {JSON: {"schema": _PREDICTIONS}}}},
    ),
    Endpoint(
        _OWN, "POST", "/explain", explain, "Show which parts of an image speak for a class.",
        {"image/png": d.BINARY, JSON: _HEAT},
        (
            Parameter("label", d.TEXT, "The class to explain [default: the one that is predicted]."),
            Parameter("format", {"type": "string", "enum": ["png", "json"]}, "Overlay or numbers [default: png]."),
            *_MODEL_PARAMETERS,
        ),
        body=_IMAGES, errors=d.WITH_IMAGES,
    ),
    Endpoint(
        _OWN, "GET", "/models", models, "List the models and versions.",
        {JSON: d.record({"default": d.TEXT, "models": d.rows(d.record(_MODEL))})},
    ),
    Endpoint(
        _OWN, "GET", "/models/{name}", model, "The card of a model.", {JSON: d.record(_CARD)}, (_VERSION_PARAMETER,),
        errors=(404,),
    ),
    Endpoint(
        _OWN, "POST", "/feedback", feedback, "Say whether an answer was right, or many were.", {},
        body={JSON: {"anyOf": [_VERDICT, d.rows(_VERDICT) | {"maxItems": _MOST_VERDICTS}]}}, status=204,
        errors=(*d.WITH_BODY, 404),
    ),
    Endpoint(_OWN, "GET", "/stats", stats, "The last ten seconds.", {JSON: _STATS}),
    Endpoint(_OWN, "GET", "/metrics", metrics, "Metrics for Prometheus.", {"text/plain": d.TEXT}),
)  # fmt: skip
