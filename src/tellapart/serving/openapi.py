"""Words and JSON schemas for the OpenAPI document. Knows nothing about how requests are answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
BOOLEAN: Schema = {"type": "boolean"}
ANYTHING: Schema = {}

ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "request_id"],
            "properties": {"code": TEXT, "message": TEXT, "request_id": TEXT},
        }
    },
}
PLAIN_ERROR: Schema = {
    "type": "object",
    "required": ["error", "code", "request_id"],
    "properties": {"error": TEXT, "code": TEXT, "request_id": TEXT},
}
"""Of other protocols."""
MEANINGS = {
    400: "The request cannot be understood; the message says what was expected.",
    401: "The API key is missing or wrong.",
    403: "The request comes from the page of another site.",
    404: "There is no such model, version or page; the message names what there is.",
    405: "The path exists; the method does not.",
    408: "The body did not arrive in time.",
    413: "The body, or the number of files in it, is above the limit.",
    415: "The content type or encoding of the body is not taken.",
    421: "The Host header names another server.",
    422: "No image could be read.",
    429: "Too many requests from this address; Retry-After says when to come back.",
    500: "The server failed.",
    503: "The server is busy or stops; Retry-After says when to come back.",
    504: "The answer would have come after the deadline.",
}
ALWAYS = (400, 401, 403, 421, 429, 500)
WITH_BODY = (408, 413, 415, 503)
WITH_IMAGES = (404, 422, 504)


def record(properties: dict[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """Return the schema of an object all of whose properties are there but for some."""
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": properties,
    }


def rows(of: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": of}


def maybe(schema: Schema) -> Schema:
    """Return the schema of what may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def parameter(name: str, schema: Schema, description: str) -> Schema:
    """Return an optional query parameter."""
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def endpoint(
    summary: str,
    answer: dict[str, Schema],
    *,
    errors: Sequence[int] = (),
    parameters: Sequence[Schema] = (),
    body: dict[str, Schema] | None = None,
    status: int = 200,
    others: dict[int, Any] | None = None,
    error: Schema = ERROR,
) -> dict[str, Any]:
    """Return the arguments of a FastAPI route that describe it.

    Args:
        summary: in one line.
        answer: content type → schema of the good answer; empty: it has no body.
        errors: statuses beside `ALWAYS`.
        parameters: of the query.
        body: content type → schema; None: none is read.
        status: of the good answer.
        others: descriptions of further responses.
        error: schema of all errors.
    """
    content = {kind: {"schema": schema} for kind, schema in answer.items()}
    responses: dict[int | str, Any] = {status: {"description": summary} | ({"content": content} if content else {})}
    for number in sorted({*ALWAYS, *errors}):
        responses[number] = {"description": MEANINGS[number], "content": {"application/json": {"schema": error}}}
    extra: dict[str, Any] = {}
    if parameters:
        extra["parameters"] = list(parameters)
    if body is not None:
        content = {kind: {"schema": schema} for kind, schema in body.items()}
        extra["requestBody"] = {"required": True, "content": content}
    return {
        "summary": summary,
        "status_code": status,
        "responses": responses | (others or {}),
        "openapi_extra": extra,
    }
