"""Answers that say no. Knows nothing about why.

An error of the server's own endpoints is ``{"error": {"code", "message", "request_id"}}``. TensorFlow Serving's API and
the Open Inference Protocol want ``{"error": message}``, and their clients break on anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

CODES_AND_MEANINGS = {
    400: ("bad_request", "The request cannot be understood; the message says what was expected."),
    401: ("no_key", "The API key is missing or wrong."),
    403: ("other_origin", "The request comes from the page of another site."),
    404: ("not_found", "There is no such model, version or page; the message names what there is."),
    405: ("method_not_allowed", "The path exists; the method does not."),
    408: ("too_slow", "The body did not arrive in time."),
    413: ("too_large", "The body, or the number of files in it, is above the limit."),
    415: ("unsupported_media_type", "The content type or encoding of the body is not taken."),
    421: ("wrong_host", "The Host header names another server."),
    422: ("unreadable", "No image could be read."),
    429: ("too_many_requests", "Too many requests from this address; Retry-After says when to come back."),
    500: ("internal", "The server failed."),
    503: ("busy", "The server is busy or stops; Retry-After says when to come back."),
    504: ("deadline", "The answer would have come after the deadline."),
}
"""By status: the code for programs, and what it means."""

# Without a slash behind the second: /v2 is an endpoint itself.
OTHER_PROTOCOLS = ("/v1/", "/v2")
"""How their paths begin."""


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: what came, what was expected, how to fix it.
        headers: to send along.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


def code_of(status: int) -> str:
    """Return the code of a status."""
    return CODES_AND_MEANINGS[status][0] if status in CODES_AND_MEANINGS else "error"


def error_response(
    path: str, status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error as a response, in the form of the protocol that a path belongs to."""
    code = code_of(status)
    if path.startswith(OTHER_PROTOCOLS):
        values: dict[str, Any] = {"error": message, "code": code, "request_id": request_id}
    else:
        values = {"error": {"code": code, "message": message, "request_id": request_id}}
    return Response(json.dumps(values), status, headers, "application/json")


def busy(message: str) -> ApiError:
    """Return the refusal of a server that has too much to do."""
    return ApiError(503, message, {"Retry-After": "1"})
