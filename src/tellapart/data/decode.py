"""The one decoder: bytes of an image file to a square uint8 picture, for training and prediction alike.

Knows nothing about folders, labels or caches.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.area import AreaShrinker
from tellapart.data.image_file import (
    MAX_SCANNED_PIXELS,
    declared_size,
    describe,
    has_alpha,
    jpeg_frame,
    other_size,
    read_header,
    refuse_bomb,
    refuse_truncated,
)
from tellapart.data.png_strips import can_be_cut, decoded_strips
from tellapart.errors import DecodeError

# Three caches carry it in their names: pictures, features of pretrained networks, and what a scan saw. A pixel that
# `area` or `png_strips` changes counts as one that this module changes.
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
    shrunk = _shrunk_in_strips(data, max_pixels, image_px)
    # A large PNG is shrunk while it is decoded: whole, it would take twice its size in memory.
    picture, order = (shrunk[0], "RGB") if shrunk else _decode(data, max_pixels, image_px)
    square = _square(picture, order, image_px, out)
    # A picture that had the size already is not resized, so nothing was written into `out`.
    if out is not None and square is not out:
        out[:] = square
        return out
    return square


def decode_square_and_grey(
    data: bytes, image_px: int, short_px: int, *, max_pixels: int = 100_000_000
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return what `decode_square` returns, and the picture in grey, decoding as little as that takes.

    The grey picture (height, width) uint8 has a shorter side of `short_px` or more where the file's has. A JPEG is
    shrunk to 1/2, 1/4 or 1/8 while it is decoded; a large PNG that is twice as long to `short_px` exactly, strip by
    strip, as ``cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)`` does it.

    Raises:
        DecodeError: not an image, truncated, or too large.
    """
    if (shrunk := _shrunk_in_strips(data, max_pixels, image_px, short_px)) is not None:
        return _square(shrunk[0], "RGB", image_px), shrunk[1]
    picture, order = _decode(data, max_pixels, image_px)
    square = _square(picture, order, image_px)
    size = declared_size(data) if data[:2] == b"\xff\xd8" else None
    # One decode serves both unless the grey picture may be reduced by less. Then its brightness alone is decoded, which
    # JPEGs store by itself: half the time of a decode in colour.
    if size is not None and (factor := _shrinks_by(*size, short_px)) != _shrinks_by(*size, image_px):
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED_GREY[factor])
        if grey is not None:
            return square, np.asarray(grey)
    return square, np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY if order == "RGB" else cv2.COLOR_BGR2GRAY))


def decode_within(data: bytes, longest_px: int, *, max_pixels: int = 100_000_000) -> NDArray[np.uint8]:
    """Return a picture (height, width, 3) uint8 RGB at its own size, or shrunk until no side is longer.

    Raises:
        DecodeError: not an image, truncated, or too large.
    """
    if (size := _large_png(data, max_pixels)) is not None and max(size) > longest_px:
        # Never the whole picture and the small one beside each other.
        return _shrink_in_strips(data, [AreaShrinker(size, _within(size, longest_px), 3)])[0]
    declared = declared_size(data) if data[:2] == b"\xff\xd8" else None
    # A phone's JPEG is decoded at a quarter of its sides: whole, it would take 70 MB of a server that keeps photos.
    least = min(_within(declared, longest_px)) if declared and max(declared) > longest_px else 0
    picture = decode(data, max_pixels=max_pixels, at_least_px=least)
    size = (picture.shape[1], picture.shape[0])
    if max(size) <= longest_px:
        return picture
    return np.asarray(cv2.resize(picture, _within(size, longest_px), interpolation=cv2.INTER_AREA), np.uint8)


def _within(size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    width, height = (max(1, round(side * longest_px / max(size))) for side in size)
    return width, height


def _large_png(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """Return (width, height) of a PNG that is shrunk while it is decoded, as it is stored upright; None for others.

    Raises:
        DecodeError: it is truncated, or too large.
    """
    if data[:4] != b"\x89PNG" or not can_be_cut(data) or b"eXIf" in data:
        return None
    size = declared_size(data)
    if size is None or size[0] * size[1] < _LARGE_PIXELS:
        return None
    refuse_bomb(*size, max_pixels)
    refuse_truncated(data)
    return size


def _shrunk_in_strips(
    data: bytes, max_pixels: int, image_px: int, short_px: int | None = None
) -> list[NDArray[np.uint8]] | None:
    """Return the first step of `resize` to a square of a large PNG, and its grey with that shorter side; or None."""
    # Only the averaging over areas can be done strip by strip; where no side shrinks by half there is none.
    if (size := _large_png(data, max_pixels)) is None or (halved := _halved(size, image_px)) == size:
        return None
    shrinkers = [AreaShrinker(size, halved, 3)]
    if short_px is not None:
        # A picture that is not twice as long is not averaged over areas to be measured (`quality._shrunk`).
        if min(size) < 2 * short_px:
            return None
        # cv2.resize that is given factors scales by these, not by the ratio of the rounded sides: pixels would
        # differ.
        factor = short_px / min(size)
        shrinkers.append(AreaShrinker(size, (round(size[0] * factor), round(size[1] * factor)), 1, factor))
    return _shrink_in_strips(data, shrinkers)


def _shrink_in_strips(data: bytes, shrinkers: list[AreaShrinker]) -> list[NDArray[np.uint8]]:
    """Decode once, and give each of them the rows, in grey where it has one channel."""
    for strip in decoded_strips(data):
        rows = np.ascontiguousarray(strip.colours if strip.alpha is None else _mixed(strip.colours, strip.alpha))
        for shrinker in shrinkers:
            shrinker.add(rows if shrinker.channels == 3 else np.asarray(cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY)))
    return [shrinker.result() for shrinker in shrinkers]


@dataclass(frozen=True, slots=True)
class DecodingCost:
    """What decoding a picture takes, by what its header says.

    Attributes:
        bytes: of memory, at most: the picture, OpenCV's own copies of it, and the grey one for its quality.
        pixels: that are gone over one by one; a JPEG that is shrunk goes over fewer, one of many scans over more.
    """

    bytes: int
    pixels: int


def decoding_cost(data: bytes, image_px: int, *, max_pixels: int = 100_000_000) -> DecodingCost | None:
    """Return what decoding takes, in microseconds; a progressive JPEG's scans are counted, a millisecond for 3 MB.

    Args:
        data: the bytes of the file.
        image_px: side of the square that is wanted.
        max_pixels: what declares more is refused before it is decoded, and takes nothing.

    Returns:
        None where the header tells too little.
    """
    if data[:2] == b"\xff\xd8":
        # A JPEG: what its frame declares, without decoding. Refused ones cost nothing.
        frame = jpeg_frame(data)
        if frame is None or (pixels := frame.width * frame.height) > max_pixels:
            return _NOTHING
        if pixels * frame.scans > MAX_SCANNED_PIXELS:
            return _NOTHING
        # One decode where the square and the quality take the same reduction, else two: a set.
        factors = {_shrinks_by(frame.width, frame.height, side) for side in (image_px, _WHOLE_PX)}
        shrunk = [pixels // factor**2 for factor in factors]
        return DecodingCost(
            frame.buffered_bytes + (2 * _COLOUR + _GREY) * sum(shrunk),
            pixels // _PIXELS_A_LOOK * frame.scans + sum(shrunk),
        )
    size = declared_size(data) or other_size(data)
    if size is None:
        return None if data[:2] in _UNTOLD else _NOTHING
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        return _NOTHING
    # Strips are enough only where both the square and the picture for its quality are smaller.
    shrinks = _halved(size, image_px) != size and min(size) >= 2 * _WHOLE_PX
    if shrinks and pixels >= _LARGE_PIXELS and can_be_cut(data) and b"eXIf" not in data:
        return DecodingCost(_STRIPS_BYTES + _STRIP_ROWS * size[0], pixels)
    return DecodingCost(_bytes_per_pixel(data, pixels) * pixels, pixels)


_NOTHING = DecodingCost(0, 0)
_UNTOLD = (b"II", b"MM", b"BM", b"GI", b"RI")
"""How files begin that may be pictures though their size is not found: TIFF, and the others with an odd header."""
_PIXELS_A_LOOK = 4
"""A pixel of a JPEG's scan that is not turned into a colour takes about so many times less."""
_STRIPS_BYTES, _STRIP_ROWS = 12_000_000, 40
"""Of what is beside each other for a strip; a strip has a row at least, and there are many arrays of it."""
# Written out, for `quality` imports this module. If the two differ, a server counts the memory of another decode than
# the one that it does.
_WHOLE_PX = 256
"""At which quality is measured (`tellapart.data.quality.MEASURED_PX`)."""
_COLOUR, _GREY = 3, 1


def _bytes_per_pixel(data: bytes, pixels: int) -> int:
    """Return what a pixel of a file that is no JPEG takes: twice what OpenCV decodes it to, and a grey one."""
    if data[:4] == b"\x89PNG":
        if pixels >= _LARGE_PIXELS and can_be_cut(data):
            return (2 if b"eXIf" in data else 1) * _COLOUR + _GREY
        # OpenCV keeps 16 bits only where alpha is asked for (IMREAD_UNCHANGED); other pictures come as 8 bits.
        channels = 4 if has_alpha(data) else _COLOUR
        return 2 * channels * (2 if data[24] == 16 and channels == 4 else 1) + _GREY
    if data[:4] in (b"GIF8", b"RIFF"):  # what they are made of besides: frames that build on each other, planes
        return 16
    return 2 * _COLOUR + _GREY


def resize(picture: NDArray[np.uint8], image_px: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Return `picture` (height, width[, 3]) uint8 stretched to a square of `image_px`, in `out` where possible.

    Sides that shrink to half or less are averaged over areas. What remains is bilinear, which looks at
    every pixel too as long as no side shrinks to less than half, and is several times faster.
    """
    height, width = picture.shape[:2]
    square = (image_px, image_px)
    halved = _halved((width, height), image_px)
    # Area averaging takes 0.7 ms at 224 px for ratios that are not whole numbers, bilinear 0.18 (docs/decisions.md).
    for size, method in ((halved, cv2.INTER_AREA), (square, cv2.INTER_LINEAR)):
        if size != (picture.shape[1], picture.shape[0]):
            picture = np.asarray(cv2.resize(picture, size, dst=out if size == square else None, interpolation=method))
    return picture


def _halved(size: tuple[int, int], image_px: int) -> tuple[int, int]:
    """Return the size after the first step of `resize`, of which each side is averaged over areas or stays."""
    width, height = (image_px if side >= 2 * image_px else side for side in size)
    return width, height


def _square(
    picture: NDArray[np.uint8], order: str, image_px: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    square = resize(picture, image_px, out)
    if order == "RGB":
        return square
    # Never into `picture` itself: `decode_square_and_grey` goes on with it, in the order that it was decoded in.
    return np.asarray(cv2.cvtColor(square, cv2.COLOR_BGR2RGB, dst=None if square is picture else square))


def _rgb(picture: NDArray[np.uint8], order: str) -> NDArray[np.uint8]:
    return picture if order == "RGB" else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _decode(data: bytes, max_pixels: int, at_least_px: int) -> tuple[NDArray[np.uint8], str]:
    """Return a picture of three channels, and their order, "RGB" or "BGR": whichever is cheaper."""
    # JPEG and PNG tell their size in a few bytes; only the others need Pillow's header.
    size, header = declared_size(data), None
    if size is None:
        header = read_header(data, max_pixels)
        size = (header.width, header.height)
    width, height = size
    # Both before OpenCV sees the file: it would allocate what is declared, and paint what is missing grey without an
    # error.
    refuse_bomb(width, height, max_pixels)
    refuse_truncated(data)
    # A large PNG goes strip by strip, and is turned upright when it is whole.
    if width * height >= _LARGE_PIXELS and can_be_cut(data):
        return _turn(_in_strips(data, width, height), _orientation(data, max_pixels)), "RGB"
    layered = has_alpha(data) or (header is not None and header.transparent)
    # OpenCV turns the picture by its EXIF orientation in this mode and in the reduced ones: `_turn` would do it twice.
    flags, order = cv2.IMREAD_COLOR_RGB, "RGB"
    if layered:
        flags = cv2.IMREAD_UNCHANGED
    elif at_least_px and data[:2] == b"\xff\xd8":
        # The reduced modes give BGR only. Channels are swapped after resizing, when fewer pixels are left.
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
    # libtiff hands out 8-bit colours already multiplied by alpha.
    multiplied = header is not None and header.format == "tiff" and picture.dtype == np.uint8
    return _turn(_lay_on_white(picture, multiplied), _orientation(data, max_pixels)), "RGB"


def _orientation(data: bytes, max_pixels: int) -> int:
    # Reading EXIF takes Pillow; the search for its name saves that for nearly all files.
    turned = b"eXIf" in data or b"EXIF" in data
    return read_header(data, max_pixels).orientation if turned else 1


_LARGE_PIXELS = 2**22
"""From here on a PNG is decoded in strips: OpenCV would need twice its size."""


def _in_strips(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    # Strips are written into their place, so that OpenCV never holds a second copy of the picture.
    picture = np.empty((height, width, 3), np.uint8)
    for strip in decoded_strips(data):
        rows = picture[strip.start : strip.start + len(strip.colours)]
        rows[:] = strip.colours if strip.alpha is None else _mixed(strip.colours, strip.alpha)
    return picture


# Largest first: `_shrinks_by` takes the first that leaves enough. In another order JPEGs would be decoded to other
# pixels than those that are in the caches.
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
"""By what a JPEG can be shrunk while it is decoded."""
_REDUCED_GREY = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: cv2.IMREAD_GRAYSCALE,
}  # fmt: skip


def _shrinks_by(width: int, height: int, at_least_px: int) -> int:
    """Return by what a JPEG can be shrunk so that both sides stay at least so long; 1 for not at all."""
    return next((factor for factor in _REDUCED if min(width, height) // factor >= at_least_px), 1)


def _turn(picture: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    # EXIF's eight orientations as one transposition and two mirrorings, in this order.
    if orientation in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    # Transposed and mirrored views have odd strides; callers get rows in one piece.
    return np.ascontiguousarray(picture)


def _lay_on_white(picture: NDArray, multiplied: bool = False) -> NDArray[np.uint8]:
    """Return a picture as cv2 decodes it, BGR with or without alpha or grey, as RGB on white.

    The result takes the place of `picture` in memory: beside a large picture there is no room for another one.

    Args:
        picture: (height, width[, 3 or 4]) uint8 or uint16, contiguous. It is overwritten.
        multiplied: colours are multiplied by alpha already.
    """
    if picture.ndim == 2:
        return np.asarray(cv2.cvtColor(_upper_eight(picture), cv2.COLOR_GRAY2RGB))
    # The colours move up within the same memory: three or four channels, of 8 or 16 bits, become three of 8.
    height, width, channels = picture.shape
    pixels, room = picture.reshape(-1, channels), picture.reshape(-1).view(np.uint8)
    rgb = room[: 3 * len(pixels)].reshape(-1, 3)
    for start in range(0, len(pixels), _STRIP_PIXELS):
        strip = _upper_eight(pixels[start : start + _STRIP_PIXELS])
        # What is written here has been read: a pixel takes no more room than it did, and all before it have moved up.
        rgb[start : start + len(strip)] = _strip_on_white(strip, multiplied)
    return rgb.reshape(height, width, 3)


_STRIP_PIXELS = 16_384
"""Its temporary arrays stay in the cache of a core."""


def _upper_eight(values: NDArray) -> NDArray[np.uint8]:
    """Return 8-bit values as they are and the upper bits of 16-bit ones, a few rows at a time."""
    if values.dtype != np.uint16:
        return values
    upper = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP_PIXELS // max(1, values[0].size))
    for start in range(0, len(values), rows):
        upper[start : start + rows] = values[start : start + rows] >> 8
    return upper


def _strip_on_white(strip: NDArray[np.uint8], multiplied: bool) -> NDArray[np.uint8]:
    """Return (num_pixels, 3) uint8 RGB of pixels (num_pixels, 3 or 4) uint8 BGR or BGRA."""
    colours = strip[:, 2::-1]
    return colours.copy() if strip.shape[1] == 3 else _mixed(colours, strip[:, 3:], multiplied)


def _mixed(colours: NDArray[np.uint8], alpha: NDArray[np.uint8], multiplied: bool = False) -> NDArray[np.uint8]:
    """Return colours (…, 3) uint8 laid on white by alpha (…, 1) uint8, in an array of their own."""
    if alpha.min() == 255:
        return colours.copy()
    # 255 · 255 + 127 fits 16 bits. np.uint16(255) and not 255: a Python number would keep the product in 8 bits.
    opacity = alpha.astype(np.uint16)
    mixed = colours * (np.uint16(255) if multiplied else opacity)
    mixed += 255 * (255 - opacity)
    # (x + 127) // 255 rounds to the nearest.
    mixed += np.uint16(127)
    mixed //= np.uint16(255)
    return mixed.astype(np.uint8)
