"""The one decoder: bytes of an image file to a square uint8 picture, for training and prediction alike.

Knows nothing about folders, labels or caches.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import DecodeError

DECODER_VERSION = 2
"""Raise it when a change of this module changes a pixel: cached pictures are keyed by it."""

FORMATS = {
    "JPEG": "jpeg",
    "MPO": "jpeg",
    "PNG": "png",
    "GIF": "gif",
    "BMP": "bmp",
    "WEBP": "webp",
    "TIFF": "tiff",
}
"""What is read, by Pillow's name of it."""

MAX_BYTES = 512 * 1024 * 1024

cv2.setNumThreads(1)  # one picture is small: threads work on many pictures, not inside one
cv2.utils.logging.setLogLevel(0)  # a damaged file is reported once, by DecodeError, not on stderr as well


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are decoded.

    Attributes:
        format: "jpeg", "png", "gif", "bmp", "webp" or "tiff", by content.
        width: pixels from left to right as shown, that is after EXIF orientation.
        height: pixels from top to bottom as shown.
        mode: Pillow's name of the pixel layout, "RGB", "L", "CMYK", "RGBA", "P", "I;16", …
        orientation: EXIF orientation, 1 to 8; 1 where there is none.
        frames: pictures in the file, more than 1 for an animation.
        transparent: True where some pixel can be transparent.
        bits: bits per channel, 8 or 16.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int
    frames: int
    transparent: bool
    bits: int


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        DecodeError: it is missing, no regular file, empty, too large or not permitted.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("is not a regular file")
        if status.st_size == 0:
            raise DecodeError("is empty (0 bytes)")
        if status.st_size > MAX_BYTES:
            raise DecodeError(f"is {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        with open(path, "rb", buffering=0) as stream:
            return stream.readall()
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"has a name that cannot be opened: {error}") from error


def read_header(data: bytes, max_pixels: int = 100_000_000) -> Header:
    """Return what `data` says of itself; no pixel is decoded.

    Raises:
        DecodeError: not an image of a known format, or more than `max_pixels` pixels.
    """
    plain = _plain_jpeg_header(data)
    if plain is not None:
        _refuse_bomb(plain.width, plain.height, max_pixels)
        return plain
    from PIL import Image, UnidentifiedImageError  # here, so that prediction does not pay for it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning; the limit below is ours
            with Image.open(io.BytesIO(data)) as image:
                known = FORMATS.get(image.format or "")
                if known is None:
                    raise DecodeError(f"is {image.format}; expected one of {', '.join(sorted(set(FORMATS.values())))}")
                _refuse_bomb(image.width, image.height, max_pixels)
                # For a PNG without EXIF, getexif would decode the whole picture in search of it.
                has_exif = image.format != "PNG" or b"eXIf" in data
                orientation = image.getexif().get(0x0112, 1) if has_exif else 1
                orientation = orientation if orientation in range(1, 9) else 1
                width, height = image.size if orientation < 5 else image.size[::-1]
                frames = int(getattr(image, "n_frames", 1)) if image.format != "MPO" else 1
                transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
                mode, bits = image.mode, 16 if _has_16_bits(image.mode, data) else 8
    except (UnidentifiedImageError, Image.DecompressionBombError):
        size = _declared_size(data)
        if size is not None:
            _refuse_bomb(*size, max_pixels)
        raise DecodeError(f"is not an image ({_describe(data)})") from None
    except DecodeError:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        KeyError,
        IndexError,
        TypeError,
    ) as error:
        raise DecodeError(f"has a damaged header: {error}") from error
    return Header(known, width, height, mode, int(orientation), frames, transparent, bits)


def _plain_jpeg_header(data: bytes) -> Header | None:
    """Return what Pillow would say of a JPEG that carries no EXIF, CMYK or second picture, ten times faster."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame = None
    for marker, start, end in _jpeg_segments(data):
        if marker in _FRAME_MARKERS and frame is None and end <= len(data):
            frame = start
        elif marker == 0xDA:
            if frame is None or data[frame] != 8 or data[frame + 5] not in (1, 3):
                return None
            height, width = (int.from_bytes(data[frame + at : frame + at + 2], "big") for at in (1, 3))
            mode = "L" if data[frame + 5] == 1 else "RGB"
            return Header("jpeg", width, height, mode, 1, 1, False, 8) if width and height else None
        elif marker in (0xE1, 0xE2) or end > len(data):  # EXIF, XMP, colour profile, several pictures
            return None
    return None


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
    square = resize(picture, image_px, out)
    if order == "BGR":
        square = cv2.cvtColor(square, cv2.COLOR_BGR2RGB, dst=square)
    if out is not None and square is not out:
        out[:] = square
        return out
    return square


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


def _rgb(picture: NDArray[np.uint8], order: str) -> NDArray[np.uint8]:
    return picture if order == "RGB" else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _decode(data: bytes, max_pixels: int, at_least_px: int) -> tuple[NDArray[np.uint8], str]:
    """Return a picture of three channels, and their order, "RGB" or "BGR": whichever is cheaper."""
    size, header = _declared_size(data), None
    if size is None:
        header = read_header(data, max_pixels)
        size = (header.width, header.height)
    width, height = size
    _refuse_bomb(width, height, max_pixels)
    _refuse_truncated(data)
    layered = _has_alpha(data) or (header is not None and header.transparent)
    flags, order = cv2.IMREAD_COLOR_RGB, "RGB"
    if layered:
        flags, order = cv2.IMREAD_UNCHANGED, "BGR"
    elif at_least_px and data[:2] == b"\xff\xd8":
        for factor, reduced in _REDUCED.items():
            if min(width, height) // factor >= at_least_px:
                flags, order = reduced, "BGR"
                break
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DecodeError(f"cannot be decoded: {error.err or error}") from error
    if picture is None or picture.size == 0:
        raise DecodeError(f"cannot be decoded: damaged {_describe(data)}")
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


def _refuse_bomb(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise DecodeError(f"declares {width} x {height} pixels")
    if width * height > max_pixels:
        raise DecodeError(
            f"declares {width:,} x {height:,} pixels; at most {max_pixels:,} in all are decoded (data.max_pixels)"
        )


def _refuse_truncated(data: bytes) -> None:
    """OpenCV fills the missing part of a JPEG or PNG with grey and says nothing: look for the end mark."""
    if data[:2] == b"\xff\xd8":
        scan = _jpeg_scan(data)
        if scan is None or data.find(b"\xff\xd9", scan) < 0:
            raise DecodeError("is a truncated JPEG (no end mark)")
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        _refuse_damaged_png(data)
    elif data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise DecodeError("is a truncated WebP (shorter than it declares)")


def _refuse_damaged_png(data: bytes) -> None:
    """Compare the checksums of the parts that make the picture, before libpng complains on stderr."""
    position, view = 8, memoryview(data)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if end + 4 > len(data):
            break
        critical = kind[:1].isupper() or kind == b"tRNS"
        if critical and zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DecodeError(f"is a damaged PNG (the checksum of its part {kind!r} is wrong)")
        if kind == b"IEND":
            return
        position = end + 4
    raise DecodeError("is a truncated PNG (no end mark)")


def _declared_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG or PNG as stored, or None for other formats and damaged headers."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 26:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:2] == b"\xff\xd8":
        for marker, start, _ in _jpeg_segments(data):
            if marker in _FRAME_MARKERS and start + 5 <= len(data):
                return int.from_bytes(data[start + 3 : start + 5], "big"), int.from_bytes(
                    data[start + 1 : start + 3], "big"
                )
    return None


_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg_segments(data: bytes):  # type: ignore[no-untyped-def]  # a generator of (marker, start, end)
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, position + 4, position + 2 + length
        if marker == 0xDA or length < 2:
            return
        position += 2 + length


def _jpeg_scan(data: bytes) -> int | None:
    """Return where the first scan's pixels begin; an embedded thumbnail's end mark lies before it."""
    for marker, _, end in _jpeg_segments(data):
        if marker == 0xDA:
            return int(end)
    return None


def _has_alpha(data: bytes) -> bool:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 26:
        return data[25] in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) > 25:
        return (data[12:16] == b"VP8X" and bool(data[20] & 0x10)) or (data[12:16] == b"VP8L" and bool(data[24] & 0x10))
    return False


def _has_16_bits(mode: str, data: bytes) -> bool:
    png = data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 26
    return data[24] == 16 if png else mode.startswith(("I", "F"))


def _describe(data: bytes) -> str:
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "an HTML or XML text"
    if data[:2] == b"\xff\xd8":
        return "JPEG"
    if data[:4] == b"\x89PNG":
        return "PNG"
    if not any(data[:4096]):
        return "nothing but zero bytes"
    return f"begins with {data[:8].hex(' ')}"
