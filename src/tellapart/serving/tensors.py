"""Images as other protocols write them: nested lists, base64, arrays. Knows nothing about their requests."""

from __future__ import annotations

import binascii
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.serving.errors import ApiError
from tellapart.serving.json_body import kind_of, shown

INPUT = "image"
"""Name of the only input."""
_MAX_IMAGES = 1024
_EXPECTED = "Expected uint8 RGB, (height, width, 3), values from 0 to 255"


def image_of(value: Any, where: str) -> bytes | NDArray[np.uint8]:
    """Return one image, ``{"b64": …}`` or nested lists (height, width, 3).

    Raises:
        ApiError: it is neither (400).
    """
    if isinstance(value, dict):
        if set(value) != {"b64"}:
            raise ApiError(400, f"{where} has the keys {_short(value)}. Expected 'b64', or an array.")
        return from_base64(value["b64"], where)
    return picture(value, where)


def images_of(value: Any, where: str) -> list[bytes | NDArray[np.uint8]]:
    """Return a list of images, or the images of an array (num_images, height, width, 3).

    Raises:
        ApiError: it is none (400), or holds too many (413).
    """
    if not isinstance(value, list) or not value:
        raise ApiError(400, f"{where} is {kind_of(value)}. Expected a list of images, at least one.")
    check_number(len(value), where)
    return [image_of(element, f"{where}[{number}]") for number, element in enumerate(value)]


def check_number(count: int, where: str) -> None:
    """Refuse more images than one request may hold (413)."""
    if count > _MAX_IMAGES:
        raise ApiError(413, f"{where} holds {count:,} images; at most {_MAX_IMAGES:,} are taken in one request.")


def picture(value: Any, where: str) -> NDArray[np.uint8]:
    """Return nested lists (height, width, 3) of numbers from 0 to 255 as uint8, rounded.

    Raises:
        ApiError: they are something else (400).
    """
    shape, numbers = flattened(value)
    if shape is None:
        raise ApiError(400, f"{where} is not an array: its rows differ in length or kind. {_EXPECTED}.")
    # Check kinds before NumPy sees the values: it turns strings into an array in which every element is as wide as the
    # longest. By type, since isinstance takes true and false for numbers.
    kinds = set(map(type, numbers))
    if not kinds <= {int, float} or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        kind = "int64" if kinds == {int} else "bool" if kinds == {bool} else "float64"
        received = f"{kind} {shape}" if shape and kinds <= {int, float, bool} else kind_of(value)
        raise ApiError(400, f"{where} is {received}. {_EXPECTED}.")
    try:
        if kinds == {int}:
            # bytes() also checks the range: it raises a ValueError for anything but 0 to 255. It takes one byte for
            # each number, where an int64 array would take eight.
            return np.frombuffer(bytes(numbers), np.uint8).reshape(shape)
        array = np.array(numbers, np.float64)
        if array.min() >= 0 and array.max() <= 255:
            return np.rint(array, out=array).astype(np.uint8).reshape(shape)
    except (ValueError, OverflowError):  # a number that is no byte, or whole and beyond all floats
        pass
    raise ApiError(400, f"{where} has values from {_number(min(numbers))} to {_number(max(numbers))}. {_EXPECTED}.")


def flattened(value: Any, most_axes: int = 4) -> tuple[tuple[int, ...] | None, list[Any]]:
    """Return the shape of nested lists and their elements in a row; the shape is None where lists differ in length.

    Whatever stands where a number should is an element. Takes eight bytes for each.
    """
    shape: list[int] = []
    level: list[Any] = [value]
    # One level of nesting at a time, because map and chain loop over all rows in C.
    while level and type(level[0]) is list:
        if len(shape) == most_axes or set(map(type, level)) != {list} or len(lengths := set(map(len, level))) != 1:
            return None, []
        shape.append(lengths.pop())
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return tuple(shape), level


def _number(value: Any) -> str:
    return f"{value:g}" if abs(value) < 1e300 else "beyond all bounds"


def from_base64(value: Any, where: str) -> bytes:
    """Return the bytes of a file that was written in base64.

    Raises:
        ApiError: it is no base64 (400).
    """
    if not isinstance(value, str):
        raise ApiError(400, f"{where} is {kind_of(value)}. Expected the file in base64.")
    try:
        return binascii.a2b_base64(value, strict_mode=True)  # base64.b64decode would copy the text first
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{where} is not base64. Expected the file in base64, without line breaks.") from None


def _short(keys: Iterable[str]) -> str:
    """Return the first few keys of an object; it may have a million."""
    first = [key for key, _ in zip(keys, range(4), strict=False)]
    return ", ".join(shown(key, 40) for key in sorted(first))
