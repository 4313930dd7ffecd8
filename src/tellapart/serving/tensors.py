"""Images as other protocols write them: nested lists, base64, arrays. Knows nothing about their requests."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.serving.refusals import RefusalError

_MAX_IMAGES = 1024
EXPECTED = "Expected uint8 RGB, (height, width, 3), values from 0 to 255"


def image_of(value: Any, where: str) -> bytes | NDArray[np.uint8]:
    """Return one image, ``{"b64": …}`` or nested lists (height, width, 3).

    Raises:
        RefusalError: it is neither (400).
    """
    if isinstance(value, dict):
        if set(value) != {"b64"}:
            raise RefusalError(400, f"{where} has the keys {_short(sorted(value))}. Expected 'b64', or an array.")
        return from_base64(value["b64"], where)
    return picture(value, where)


def images_of(value: Any, where: str) -> list[bytes | NDArray[np.uint8]]:
    """Return a list of images, or the images of an array (num_images, height, width, 3).

    Raises:
        RefusalError: it is none (400), or holds too many (413).
    """
    if not isinstance(value, list) or not value:
        raise RefusalError(400, f"{where} is {_kind(value)}. Expected a list of images, at least one.")
    check_number(len(value), where)
    return [image_of(each, f"{where}[{number}]") for number, each in enumerate(value)]


def check_number(count: int, where: str) -> None:
    """Refuse more images than one request may hold (413)."""
    if count > _MAX_IMAGES:
        raise RefusalError(413, f"{where} holds {count:,} images; at most {_MAX_IMAGES:,} are taken in one request.")


def picture(value: Any, where: str) -> NDArray[np.uint8]:
    """Return nested lists (height, width, 3) of numbers from 0 to 255 as uint8, rounded.

    Raises:
        RefusalError: they are something else (400).
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, TypeError, RecursionError):
        raise RefusalError(400, f"{where} is no array: its rows differ in length or kind. {EXPECTED}.") from None
    if array.dtype.kind not in "iuf" or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        kind = f"{array.dtype} {array.shape}" if array.dtype.kind in "iufb" else _kind(value)
        raise RefusalError(400, f"{where} is {kind}. {EXPECTED}.")
    if not (array.min() >= 0 and array.max() <= 255):
        raise RefusalError(400, f"{where} has values from {array.min():g} to {array.max():g}. {EXPECTED}.")
    return np.ascontiguousarray(np.rint(array), np.uint8)


def from_base64(value: Any, where: str) -> bytes:
    """Return the bytes of a file that was written in base64.

    Raises:
        RefusalError: it is no base64 (400).
    """
    if not isinstance(value, str):
        raise RefusalError(400, f"{where} is {_kind(value)}. Expected the file in base64.")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise RefusalError(400, f"{where} is no base64. Expected the file in base64, without line breaks.") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _short(values: list[str]) -> str:
    return repr(values)[:120]
