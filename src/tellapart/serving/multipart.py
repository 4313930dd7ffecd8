"""Files out of a multipart/form-data body that is in memory already (RFC 7578). Knows nothing about HTTP or images.

python-multipart reads streams byte by byte in Python; a body that is there as a whole is cut by `bytes.find`, in
microseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tellapart.serving.errors import ApiError

_BOUNDARY = re.compile(rb'boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;,"]{1,200}))', re.IGNORECASE)
_PARAMETER = re.compile(rb';\s*(name|filename)\s*=\s*(?:"((?:\\"|[^"])*)"|([^;\s]+))', re.IGNORECASE)
_MAX_HEADER_BYTES = 8192
_MORE_PARTS = 16
"""Fields that are no files and may come along."""


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form.

    Attributes:
        name: of the field.
        filename: None: it is not a file.
        data: what it holds.
    """

    name: str
    filename: str | None
    data: bytes


def parse_multipart(body: bytes, content_type: bytes, max_parts: int) -> list[Part]:
    """Cut a body into its fields.

    Raises:
        ApiError: it is malformed (400) or has too many fields (413).
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise _malformed("the Content-Type names no boundary")
    dashed = b"--" + (boundary[1] or boundary[2])
    delimiter = b"\r\n" + dashed
    # The first boundary either opens the body, without a line end before it, or follows a preamble, which is skipped.
    # If there is none, find returns -1 and `at` is 1.
    at = 0 if body.startswith(dashed) else body.find(delimiter) + 2
    if at == 1:
        raise _malformed("the boundary that the Content-Type names does not occur")
    at += len(dashed)
    parts: list[Part] = []
    # Every search begins where the last one ended, so the time is linear in the length of the body.
    while body[at : at + 2] != b"--":
        if len(parts) >= max_parts + _MORE_PARTS:
            raise ApiError(413, f"The form has more than {max_parts} fields. Send fewer images at once.")
        line = body.find(b"\r\n", at)
        # RFC 2046 allows spaces and tabs between a boundary and the end of its line.
        if line < 0 or body[at:line].strip(b" \t"):
            raise _malformed("a boundary is followed by something else than a line end")
        end = body.find(delimiter, line)
        if end < 0:
            raise _malformed("the end boundary is missing")
        parts.append(_part(body, line, end))
        at = end + len(delimiter)
    return parts


def _part(body: bytes, start: int, end: int) -> Part:
    """Return the part whose headers begin after the line end at `start`."""
    blank = body.find(b"\r\n\r\n", start, end)
    if blank < 0:
        raise _malformed("a part has no empty line after its headers")
    if blank - start > _MAX_HEADER_BYTES:
        raise _malformed(f"the headers of a part are longer than {_MAX_HEADER_BYTES} bytes")
    for line in body[start + 2 : blank].split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            values = {
                name.lower(): _text(quoted.replace(b'\\"', b'"') or plain)
                for name, quoted, plain in _PARAMETER.findall(value)
            }
            if b"name" not in values:
                break
            return Part(values[b"name"], values.get(b"filename"), body[blank + 4 : end])
    raise _malformed("a part has no Content-Disposition with a name")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _malformed(fault: str) -> ApiError:
    return ApiError(400, f"The multipart body is malformed: {fault}. Expected multipart/form-data as browsers send it.")
