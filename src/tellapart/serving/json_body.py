"""JSON bodies: what parsing one can take is bounded before it is parsed. Knows nothing about HTTP or images."""

from __future__ import annotations

import json
from typing import Any

from tellapart.serving.errors import ApiError

_LIST, _ELEMENT, _DICT, _PAIR, _TEXT = 192, 80, 272, 280, 80
"""Bytes that CPython needs at most for a list with its first element, for each further one, for an object, for each of
its pairs and for the frame of a text; what an array of the elements takes is in it."""
_PIECE = 256 * 1024
_WIDE = 12
"""Times its length that a text with characters beyond ASCII can take: four bytes for each, while it grows twice."""


def parsing_bytes(data: bytes, most: int) -> int:
    """Return the bytes that parsing `data` and making arrays of it can take at most beside its text.

    What makes objects is counted in it, in pieces: more than `most` is not counted to the end. So a megabyte takes
    about 0.3 ms, and no body more than a few.
    """
    # First the text itself, and a second copy if it has escapes, for which the parser builds new strings.
    length = len(data)
    escaped = b"\\" in data
    wide = not data.isascii() or (escaped and b"\\u" in data)
    total = length * (_WIDE if wide else 2 if escaped else 1)
    # Then the objects, by the characters that begin them. Characters inside strings count as well, so the bound may be
    # too high but never too low. A string has two quotes, so each stands for half of its frame.
    costs = {b"[": _LIST, b",": _ELEMENT, b"{": _DICT, b":": _PAIR, b'"': _TEXT // 2}
    for start in range(0, length, _PIECE):
        total += sum(cost * data.count(mark, start, start + _PIECE) for mark, cost in costs.items())
        if total > most:
            break
    return total


def parse_json(text: str) -> Any:
    """Parse strict JSON.

    Raises:
        ApiError: it is not valid, nested too deeply, or holds NaN or infinity (400).
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error)[:200]
    # Outside of the handlers: the parser's error holds the whole text, and would go along as the context of this one.
    raise ApiError(400, f"The body is not valid JSON: {problem}.")


def utf8(data: bytes | memoryview) -> str:
    """Return the text of a JSON body.

    Raises:
        ApiError: it is not UTF-8 (400).
    """
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 at byte {error.start:,}"
    else:
        return text.removeprefix("\ufeff")
    raise ApiError(400, f"The body is not valid JSON: {problem}.")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def shown(value: Any, most: int = 80) -> str:
    """Return a value from a client for a message; a long one is cut before it is written out, not afterwards."""
    if isinstance(value, str):
        return repr(value[:most] + "…" if len(value) > most else value)
    if isinstance(value, (list, dict)):
        return kind_of(value)
    return repr(value)[:most]  # at most 4,300 digits: Python parses no longer numbers


def kind_of(value: Any) -> str:
    """Return in words what kind of JSON a value is."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
