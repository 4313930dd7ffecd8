"""Answers that say no. Knows nothing about why.

An error of the server's own endpoints is ``{"error": {"code", "message", "request_id"}}``. TensorFlow Serving's API and
the Open Inference Protocol want ``{"error": message}``, and their clients break on anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

CODES = {
    400: "bad_request",
    401: "no_key",
    403: "other_origin",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    421: "wrong_host",
    422: "unreadable",
    429: "too_many_requests",
    500: "internal",
    503: "busy",
    504: "deadline",
}
"""The code of each status."""

OTHER_PROTOCOLS = ("/v1/", "/v2")
"""How their paths begin."""


class ApiError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        message: what came, what was expected, how to mend it.
        headers: to send along.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


def error_response(
    path: str, status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error as a response, in the form of the protocol that a path belongs to."""
    code = CODES.get(status, "error")
    if path.startswith(OTHER_PROTOCOLS):
        values: dict[str, Any] = {"error": message, "code": code, "request_id": request_id}
    else:
        values = {"error": {"code": code, "message": message, "request_id": request_id}}
    return Response(json.dumps(values), status, headers, "application/json")


def busy(message: str) -> ApiError:
    """Return the refusal of a server that has too much to do."""
    return ApiError(503, message, {"Retry-After": "1"})
