"""A row of the table of endpoints: its route, the check of its parameters and its description are made from it.

Knows no protocol. The rows stand at the ends of `api`, `tensorflow_serving`, `open_inference` and `page`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from tellapart.serving.errors import ApiError
from tellapart.serving.middleware import context_of
from tellapart.serving.service import Service

JSON = "application/json"
Schema = dict[str, Any]
Handler = Callable[[Service, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Protocol:
    """What the endpoints of one protocol share.

    Attributes:
        name: in the description.
        error: schema of an error.
    """

    name: str
    error: Schema


# eq=False hashes by identity. Parameters are keys of a cache (`_parsed`), and a schema, a dict, has no hash.
@dataclass(frozen=True, eq=False)
class Parameter:
    """An optional parameter after the "?": a whole number from 1 on, true or false, one of a few words, or a text."""

    name: str
    schema: Schema
    description: str


@dataclass(frozen=True)
class Endpoint:
    """One row.

    Attributes:
        protocol: that it belongs to.
        method: of HTTP.
        path: with its parameters in braces.
        handler: answers. Parameters of the path are in ``request.path_params``, others in the ``query`` of its context.
        summary: in one line.
        answer: content type → schema of a good answer; empty: it has no body.
        parameters: after the "?"; others are refused. None: any may come, and none is read.
        body: content type → schema; empty: no body is read.
        errors: statuses beside those that every endpoint may answer with.
        status: of a good answer.
        further: further responses by their status, as OpenAPI has them.
    """

    protocol: Protocol
    method: str
    path: str
    handler: Handler
    summary: str
    answer: Mapping[str, Schema]
    parameters: tuple[Parameter, ...] | None = ()
    body: Mapping[str, Schema] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    status: int = 200
    further: Mapping[int, Schema] = field(default_factory=dict)


async def respond(endpoint: Endpoint, service: Service, request: Request) -> Response:
    """Answer a request to an endpoint.

    Raises:
        ApiError: it has a parameter that is not known or comes twice (400), or what the handler raises.
    """
    query: bytes = request.scope["query_string"]
    if query and endpoint.parameters is not None:
        context_of(request).query = _parsed(query, endpoint.parameters)
    return await endpoint.handler(service, request)


@lru_cache(256)
def _parsed(query: bytes, parameters: tuple[Parameter, ...]) -> Mapping[str, Any]:
    """Parse a query string; the same ones come again and again."""
    # The cache is bounded, since clients choose its keys; calls that raise are not cached.
    known = {parameter.name: parameter for parameter in parameters}
    texts: dict[str, str] = {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise ApiError(400, f"The parameters cannot be read: {error}.") from None
    for name, text in pairs:
        if name not in known or name in texts:
            state = "comes twice" if name in texts else "is not known"
            raise ApiError(400, f"The parameter {name!r:.80} {state}. Expected any of: {', '.join(known)}.")
        texts[name] = text
    return {name: _value(parameter, texts[name]) for name, parameter in known.items() if name in texts}


def _value(parameter: Parameter, text: str) -> Any:
    """Return the value of a parameter, by its schema."""
    words = parameter.schema.get("enum")
    if parameter.schema["type"] == "integer":
        # Cut to 19 digits: int() raises a ValueError beyond 4,300, and no number here is that large.
        if text.isascii() and text.isdigit() and (number := int(text[:19])) > 0:
            return number
        expected = "a whole number from 1 on"
    elif parameter.schema["type"] == "boolean":
        if text in ("true", "false", "1", "0"):
            return text in ("true", "1")
        expected = "true or false"
    elif words is None or text in words:
        return text
    else:
        expected = " or ".join(words)
    raise ApiError(400, f"{parameter.name} is {text!r:.80}. Expected {expected}.")


def json_response(values: Any, status: int = 200) -> Response:
    """Return values as the JSON of a response."""
    return Response(json.dumps(values), status, media_type=JSON)
