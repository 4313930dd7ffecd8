"""What the page about the model in production asks: versions, the running test, drift, photos to review, retrainings.

Photos of requests are among it, so it is answered by servers with a key and a request store alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from tellapart.databases import reason_of
from tellapart.errors import InputError
from tellapart.serving import openapi as d
from tellapart.serving.endpoints import JSON, Endpoint, Parameter, Protocol, json_response
from tellapart.serving.errors import ApiError
from tellapart.serving.middleware import context_of
from tellapart.serving.model_version import ModelVersion
from tellapart.serving.registry_follower import VERSIONS_FILE
from tellapart.serving.service import Service

_MOST_LOOKED_AT = 20_000
"""Photos that drift is looked for in: a fifth of a second of a thread."""
_MOST_QUESTIONS = 100
_MAX_BYTES = 1024 * 1024
_MOST_VERDICTS = 1_000

T = TypeVar("T")


async def overview(service: Service, request: Request) -> Response:
    """Return how a model does."""
    served = _allowed(service, request)
    return json_response(await _asked(lambda: _overview(service, served)))


def _overview(service: Service, served: ModelVersion) -> dict[str, Any]:
    # The last two, and `review` below, need SQLAlchemy: at the top they would be missing where a server is installed
    # without a store.
    from tellapart.monitoring.ab_test import evaluate_test, outcomes_of
    from tellapart.monitoring.retraining_history import RetrainingHistory
    from tellapart.monitoring.watching import look

    store, name = _store(service), served.name
    test = service.models.challenger(served)
    standing = None
    if test is not None:
        result = evaluate_test(test[0], outcomes_of(store.in_test(test[0].id), test[0]))
        standing = {"test": dataclasses.asdict(test[0]) | {"salt": ""}, **dataclasses.asdict(result)}
    try:
        # A bundle that drift cannot be told of is no failure: all else of the page is shown.
        seen, why = look(served.bundle, store, name=name, most=_MOST_LOOKED_AT), "No photo is stored yet."
    except InputError as error:
        seen, why = None, str(error)
    return {
        "model": name,
        "version": served.version,
        "versions": _versions(service, name),
        "test": standing,
        "watch": None if seen is None else seen.to_dict(),
        "no_watch": "" if seen is not None else why,
        "labelled": store.num_labelled(name),
        "retrainings": [dataclasses.asdict(one) for one in RetrainingHistory(store).all_of(name)[:20]],
    }


def _versions(service: Service, name: str) -> list[dict[str, Any]]:
    """Return what the registry says, else what is loaded; the latest first."""
    registry = service.options.registry
    if registry is not None and (registry.folder / VERSIONS_FILE).is_file():
        # Another process replaces it by a rename, so that it is never half a file.
        versions: list[dict[str, Any]] = json.loads((registry.folder / VERSIONS_FILE).read_text())
        return versions
    champion = service.models.find(name)
    return [
        {
            "number": served.number,
            "digest": served.version,
            "created": served.bundle.record.created,
            "aliases": ["champion"] if served is champion else [],
            "accuracy": (served.bundle.record.metrics.get("test") or {}).get("accuracy"),
        }
        for served in reversed(service.models.of(name))
    ]


async def questions(service: Service, request: Request) -> Response:
    """Return photos that a person should look at, the most useful first."""
    from tellapart.monitoring.review import next_questions

    served, store = _allowed(service, request), _store(service)
    count = min(context_of(request).query.get("count", 20), _MOST_QUESTIONS)
    test = service.models.challenger(served)
    found = await _asked(
        lambda: next_questions(store, served.name, count=count, test=None if test is None else test[0].id)
    )
    rows = [{**dataclasses.asdict(question.photo), "why": question.why} for question in found]
    return json_response({"classes": list(served.classes), "questions": rows})


async def photo(service: Service, request: Request) -> Response:
    """Return a stored photo."""
    _allowed(service, request)
    store, id_ = _store(service), request.path_params["id"]
    data = await _asked(lambda: store.photo(id_))
    if data is None:
        raise ApiError(404, f"There is no photo of {id_!r:.120} here.")
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


async def answers(service: Service, request: Request) -> Response:
    """Take what a reviewer said of photos: right, wrong with a class, unusable; or withdrawn."""
    from tellapart.monitoring.review import answer

    served, store = _allowed(service, request), _store(service)
    body = await service.body(request)
    if len(body) > _MAX_BYTES:
        raise ApiError(413, f"The verdicts have {len(body):,} bytes; at most {_MAX_BYTES:,} are taken.")
    said = await service.parsed(body, lambda values, _: values)
    if not isinstance(said, list) or len(said) > _MOST_VERDICTS or not all(isinstance(one, dict) for one in said):
        raise ApiError(400, f"Expected a list of at most {_MOST_VERDICTS:,} objects with id and verdict.")
    try:
        await _asked(lambda: answer(store, said, served.classes))
    except InputError as error:
        raise ApiError(400, str(error)) from None
    return Response(status_code=204)


def _allowed(service: Service, request: Request) -> ModelVersion:
    """Return the model that a request is about, if this server shows what it keeps.

    Raises:
        ApiError: it keeps nothing, or has no key, or there is no such model (404).
    """
    # A key even on loopback: behind a proxy all clients come from this machine, so that "from here only" cannot be
    # told.
    if service.options.api_key is None or service.prediction_log is None:
        raise ApiError(
            404, "What is kept of requests is shown by servers with a key and a request store only: start it with "
            "--api-key and --store, or use tellapart review.",
        )  # fmt: skip
    return service.find(request, context_of(request).query.get("model"), None)


def _store(service: Service) -> Any:
    assert service.prediction_log is not None  # `_allowed` has looked
    return service.prediction_log.store


async def _asked(ask: Callable[[], T]) -> T:
    """Ask the database in a thread.

    Raises:
        ApiError: it does not answer (503).
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return await asyncio.to_thread(ask)
    except SQLAlchemyError as error:
        # The first line of the cause alone: SQLAlchemy's own text has the statement and its values in it.
        raise ApiError(503, f"The database does not answer: {reason_of(error)}.", {"Retry-After": "10"}) from None


_OPERATIONS = Protocol("operations", d.ERROR)
_MODEL = Parameter("model", d.TEXT, "Name of the model [default: the first one].")
_VERDICT = d.record(
    {
        "id": d.TEXT | {"minLength": 1, "maxLength": 120},
        "verdict": {"type": "string", "enum": ["right", "wrong", "unusable", "withdrawn"]},
        "label": d.maybe(d.TEXT),
    },
    optional=("label",),
)
_QUESTION = d.record({
    "id": d.TEXT, "at": d.NUMBER, "version": d.TEXT, "label": d.maybe(d.TEXT), "probability": d.maybe(d.NUMBER),
    "is_unknown": d.BOOLEAN, "abstains": d.BOOLEAN, "similarity": d.maybe(d.NUMBER), "other": d.maybe(d.TEXT),
    "why": d.TEXT,
})  # fmt: skip

ENDPOINTS = (
    Endpoint(
        _OPERATIONS, "GET", "/operations", overview, "How a model does: versions, test, drift, retrainings.",
        {JSON: d.OBJECT}, (_MODEL,), errors=(404, 503),
    ),
    Endpoint(
        _OPERATIONS, "GET", "/operations/review", questions, "Photos that a person should look at.",
        {JSON: d.record({"classes": d.rows(d.TEXT), "questions": d.rows(_QUESTION)})},
        (_MODEL, Parameter("count", {"type": "integer", "minimum": 1}, "How many [default: 20, at most 100].")),
        errors=(404, 503),
    ),
    Endpoint(
        _OPERATIONS, "GET", "/operations/photos/{id}", photo, "A stored photo.", {"image/jpeg": d.BINARY}, (_MODEL,),
        errors=(404, 503),
    ),
    Endpoint(
        _OPERATIONS, "POST", "/operations/review", answers, "Say what photos are.", {}, (_MODEL,),
        body={JSON: d.rows(_VERDICT) | {"maxItems": _MOST_VERDICTS}}, status=204,
        errors=(*d.WITH_BODY, 404),
    ),
)  # fmt: skip
