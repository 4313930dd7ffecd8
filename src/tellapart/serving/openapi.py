"""The OpenAPI document, made from the table of endpoints, and the words of its schemas. Knows no endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tellapart.serving.endpoints import JSON, Endpoint, Schema
from tellapart.serving.errors import CODES_AND_MEANINGS

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
BOOLEAN: Schema = {"type": "boolean"}
BINARY: Schema = {"type": "string", "format": "binary"}
OBJECT: Schema = {"type": "object"}
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

WITH_BODY = (408, 413, 415, 503)
"""Statuses of an endpoint that reads a body."""
WITH_IMAGES = (*WITH_BODY, 404, 422, 504)
# Refusals of the middleware, unknown parameters, and failures: any endpoint may answer with these.
_ALWAYS = (400, 401, 403, 421, 429, 500)
_IN_PATH = {
    "name": "Name of the model.",
    "model": "Name of the model.",
    "version": "Of the model: its digits or its number.",
    "file": "Name of the file.",
    "id": "Of the prediction.",
}


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


def describe(endpoints: Iterable[Endpoint], *, title: str, version: str, description: str) -> dict[str, Any]:
    """Return the OpenAPI document of endpoints."""
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": version},
        "paths": paths,
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    good = {"description": endpoint.summary} | _content(endpoint.answer)
    error = _content({JSON: endpoint.protocol.error})
    responses: dict[int, Any] = {endpoint.status: good}
    for status in sorted({*_ALWAYS, *endpoint.errors}):
        responses[status] = {"description": CODES_AND_MEANINGS[status][1]} | error
    responses |= endpoint.further
    described: dict[str, Any] = {
        "tags": [endpoint.protocol.name],
        "summary": endpoint.summary,
        # The path keeps ids unique: one handler serves paths with and without a version.
        "operationId": re.sub(r"\W", "_", f"{endpoint.handler.__name__}{endpoint.path}_{endpoint.method.lower()}"),
        "responses": {str(status): response for status, response in responses.items()},
    }
    if parameters := _parameters(endpoint):
        described["parameters"] = parameters
    if endpoint.body:
        described["requestBody"] = {"required": True} | _content(endpoint.body)
    return described


def _content(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {"content": {kind: {"schema": schema} for kind, schema in schemas.items()}} if schemas else {}


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": TEXT, "description": _IN_PATH[name]}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    return in_path + [
        {
            "name": parameter.name,
            "in": "query",
            "required": False,
            "schema": parameter.schema,
            "description": parameter.description,
        }
        for parameter in endpoint.parameters or ()
    ]
