"""The one decoder: bytes of an image file to a square uint8 picture, for training and prediction alike.

Knows nothing about folders, labels or caches.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.image_file import declared_size, describe, has_alpha, read_header, refuse_bomb, refuse_truncated
from tellapart.errors import DecodeError

DECODER_VERSION = 2
"""Raise it when a change of this module changes a pixel: cached pictures are keyed by it."""

cv2.setNumThreads(1)  # one picture is small: threads work on many pictures, not inside one
cv2.utils.logging.setLogLevel(0)  # a damaged file is reported once, by DecodeError, not on stderr as well


def decode(data: bytes, *, max_pixels: int = 100_000_000, at_least_px: int = 0) -> NDArray[np.uint8]:
    """Decode one image at its own size, turned as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparent pixels are laid on white;
    of an animation the first picture is taken.

    Args:
        data: the bytes of the file.
        max_pixels: images that declare more are refused before they are decoded.
        at_least_px: when above 0, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as
            both sides stay at least this long.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        DecodeError: not an image, truncated, or too large.
    """
    return _rgb(*_decode(data, max_pixels, at_least_px))


def decode_square(
    data: bytes, image_px: int, *, max_pixels: int = 100_000_000, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Decode one image and resize it to a square, the picture that the network sees.

    The sides are stretched apart to fit (no crop, no bars), so that every pixel counts and neither
    size nor aspect shows as a border.

    Args:
        data: the bytes of the file.
        image_px: side of the square in pixels.
        max_pixels: see `decode`.
        out: where to put the picture, of its shape and dtype and contiguous; None: a new array.

    Returns:
        (image_px, image_px, 3) uint8, RGB; `out` where it was given.

    Raises:
        DecodeError: not an image, truncated, or too large.
    """
    picture, order = _decode(data, max_pixels, image_px)
    square = _square(picture, order, image_px, out)
    if out is not None and square is not out:
        out[:] = square
        return out
    return square


def decode_square_and_whole(
    data: bytes, image_px: int, whole_px: int, *, max_pixels: int = 100_000_000
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return what `decode_square` and `decode` with `at_least_px=whole_px` return, decoding once where that is enough.

    Raises:
        DecodeError: not an image, truncated, or too large.
    """
    picture, order = _decode(data, max_pixels, image_px)
    square = _square(picture, order, image_px)
    size = declared_size(data) if data[:2] == b"\xff\xd8" else None
    if size is not None and _shrinks_by(*size, image_px) != _shrinks_by(*size, whole_px):
        picture, order = _decode(data, max_pixels, whole_px)
    return square, _rgb(picture, order)


def resize(picture: NDArray[np.uint8], image_px: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Return `picture` (height, width[, 3]) uint8 stretched to a square of `image_px`, in `out` where possible.

    Sides that shrink to half or less are averaged over areas. What remains is bilinear, which looks at
    every pixel too as long as no side shrinks to less than half, and is several times faster.
    """
    height, width = picture.shape[:2]
    square = (image_px, image_px)
    halved = tuple(image_px if side >= 2 * image_px else side for side in (width, height))
    for size, method in ((halved, cv2.INTER_AREA), (square, cv2.INTER_LINEAR)):
        if size != (picture.shape[1], picture.shape[0]):
            picture = np.asarray(cv2.resize(picture, size, dst=out if size == square else None, interpolation=method))
    return picture


def _square(
    picture: NDArray[np.uint8], order: str, image_px: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    square = resize(picture, image_px, out)
    if order == "RGB":
        return square
    return np.asarray(cv2.cvtColor(square, cv2.COLOR_BGR2RGB, dst=None if square is picture else square))


def _rgb(picture: NDArray[np.uint8], order: str) -> NDArray[np.uint8]:
    return picture if order == "RGB" else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _decode(data: bytes, max_pixels: int, at_least_px: int) -> tuple[NDArray[np.uint8], str]:
    """Return a picture of three channels, and their order, "RGB" or "BGR": whichever is cheaper."""
    size, header = declared_size(data), None
    if size is None:
        header = read_header(data, max_pixels)
        size = (header.width, header.height)
    width, height = size
    refuse_bomb(width, height, max_pixels)
    refuse_truncated(data)
    layered = has_alpha(data) or (header is not None and header.transparent)
    flags, order = cv2.IMREAD_COLOR_RGB, "RGB"
    if layered:
        flags, order = cv2.IMREAD_UNCHANGED, "BGR"
    elif at_least_px and data[:2] == b"\xff\xd8":
        factor = _shrinks_by(width, height, at_least_px)
        if factor > 1:
            flags, order = _REDUCED[factor], "BGR"
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DecodeError(f"cannot be decoded: {error.err or error}") from error
    if picture is None or picture.size == 0:
        raise DecodeError(f"cannot be decoded: damaged {describe(data)}")
    if not layered:
        return np.asarray(picture), order
    # IMREAD_UNCHANGED is the only way to the alpha channel, and it ignores the EXIF orientation.
    turned = b"eXIf" in data or b"EXIF" in data
    orientation = read_header(data, max_pixels).orientation if turned else 1
    # libtiff hands out 8-bit colours already multiplied by alpha.
    multiplied = header is not None and header.format == "tiff" and picture.dtype == np.uint8
    return _turn(_lay_on_white(picture, multiplied), orientation), order


_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
"""By what a JPEG can be shrunk while it is decoded."""


def _shrinks_by(width: int, height: int, at_least_px: int) -> int:
    """Return by what a JPEG can be shrunk so that both sides stay at least so long; 1 for not at all."""
    return next((factor for factor in _REDUCED if min(width, height) // factor >= at_least_px), 1)


def _turn(picture: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _lay_on_white(picture: NDArray, multiplied: bool = False) -> NDArray[np.uint8]:
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    if picture.ndim == 2:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    if picture.shape[2] == 3:
        return picture
    alpha = picture[..., 3:].astype(np.uint16)
    colour = picture[..., :3] * (np.uint16(255) if multiplied else alpha)
    return np.asarray((colour + 255 * (255 - alpha) + 127) // 255, np.uint8)
