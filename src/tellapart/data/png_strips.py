"""A large PNG decoded strip by strip, so that there is never more than one strip beside the picture that is made of it.

OpenCV decodes a file into memory of its own and copies the result, alpha and all: eight bytes for a pixel of RGBA. Here
each strip of rows becomes a small PNG that OpenCV undoes the filters of; what the samples mean is looked up after that
(ISO/IEC 15948, W3C's "Portable Network Graphics"). Knows nothing about other formats.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import DecodeError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_CARRIERS = {1: (8, _GREY), 2: (16, _GREY), 3: (8, _RGB), 4: (8, _RGBA), 6: (16, _RGB), 8: (16, _RGBA)}
"""Bytes of a pixel → bits and kind of a file in whose rows bytes that far apart are filtered by each other."""
# `decode._STRIPS_BYTES` says what strips of this size take: larger ones would break a server's budget of memory.
_STRIP_BYTES, _STRIP_PIXELS = 1_000_000, 200_000
_MAX_WIDTH = 1_000_000
"""libpng's own limit: a longer row is refused by it before it is read."""


@dataclass(frozen=True)
class Strip:
    """Some rows of a picture.

    Attributes:
        start: number of the first row.
        colours: (height, width, 3) uint8 RGB.
        alpha: (height, width, 1) uint8, or None: nothing is transparent.
    """

    start: int
    colours: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None


def can_be_cut(data: bytes) -> bool:
    """Return whether a file is a PNG whose rows follow each other: not interlaced, not animated."""
    return (
        data[:8] == _SIGNATURE
        and len(data) > 33
        and data[24] in (1, 2, 4, 8, 16)
        and data[25] in _CHANNELS
        and (data[24] >= 8 or data[25] in (_GREY, _PALETTE))
        and not (data[24] == 16 and data[25] == _PALETTE)
        and data[28] == 0
        and 0 < int.from_bytes(data[16:20], "big") <= _MAX_WIDTH
        and b"acTL" not in data[: data.find(b"IDAT")]
    )


def decoded_strips(data: bytes) -> Iterator[Strip]:
    """Yield the strips of a picture from top to bottom.

    Args:
        data: for which `can_be_cut`, with right checksums (`tellapart.data.image_file.refuse_truncated`).

    Raises:
        DecodeError: the pixels are damaged.
    """
    width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
    parts = dict(_parts(data))
    row_bits = width * bits * _CHANNELS[kind]
    # Each row begins with a byte that names its filter, and ends with a whole byte.
    row_bytes = 1 + (row_bits + 7) // 8
    pixel_bytes = max(1, bits * _CHANNELS[kind] // 8)
    rows = max(1, min(_STRIP_BYTES // row_bytes, _STRIP_PIXELS // width))
    source, before = _Inflated(data), b""
    for start in range(0, height, rows):
        filtered = source.read(min(rows, height - start) * row_bytes)
        raw = _unfiltered(before + filtered, row_bytes, pixel_bytes)
        # Rows refer to the one before them: its own bytes, unfiltered (filter 0), lead the next strip.
        raw, before = raw[bool(before) :], b"\0" + raw[-1].tobytes()
        yield Strip(start, *_meaning(raw, width, bits, kind, parts))


def _parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, content) of the palette and what is transparent."""
    position = 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), bytes(data[position + 4 : position + 8])
        if kind == b"IDAT":
            return
        # Both have to stand before the pixels, so the search ends at the first IDAT.
        if kind in (b"PLTE", b"tRNS"):
            yield kind, bytes(data[position + 8 : position + 8 + length])
        position += 12 + length


class _Inflated:
    """The stream of filtered rows, out of the IDAT parts, no more of it at a time than is asked for."""

    def __init__(self, data: bytes) -> None:
        self._view, self._position, self._end = memoryview(data), 8, 0
        self._inflate = zlib.decompressobj()
        self._pending: bytes | memoryview = b""

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            DecodeError: there are none, or they are damaged.
        """
        pieces: list[bytes] = []
        try:
            while count:
                if not len(self._pending):
                    self._pending = self._next_part()
                # `count` bounds what is inflated: a few bytes of zlib can stand for a thousand times as many.
                piece = self._inflate.decompress(self._pending, count)
                self._pending = self._inflate.unconsumed_tail
                count -= len(piece)
                pieces.append(piece)
                if count and self._inflate.eof:
                    raise DecodeError("cannot be decoded: damaged PNG")
        except zlib.error as error:
            raise DecodeError(f"cannot be decoded: damaged PNG ({error})") from None
        return b"".join(pieces)

    def _next_part(self) -> memoryview:
        while self._position + 12 <= len(self._view):
            start = self._position + 8
            length = int.from_bytes(self._view[start - 8 : start - 4], "big")
            self._position = start + length + 4
            # The stream may be cut into IDAT parts anywhere, and some are empty.
            if bytes(self._view[start - 4 : start]) == b"IDAT" and length:
                return self._view[start : start + length]
        raise DecodeError("cannot be decoded: damaged PNG")


def _unfiltered(filtered: bytes, row_bytes: int, pixel_bytes: int) -> NDArray[np.uint8]:
    """Return (num_rows, row_bytes - 1) uint8, the samples as the file orders them."""
    bits, kind = _CARRIERS[pixel_bytes]
    num_rows, width = len(filtered) // row_bytes, (row_bytes - 1) // pixel_bytes
    header = struct.pack(">IIBBBBB", width, num_rows, bits, kind, 0, 0, 0)
    # A file that OpenCV reads: the same filtered rows, not compressed (level 0), under a header whose pixels are as
    # many bytes wide as the original's. Undoing filters needs no more than that width.
    file = b"".join([
        _SIGNATURE, _part(b"IHDR", header), _part(b"IDAT", zlib.compress(filtered, 0)), _part(b"IEND", b""),
    ])  # fmt: skip
    try:
        picture = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DecodeError(f"cannot be decoded: {error.err or error}") from None
    if picture is None or picture.shape[:2] != (num_rows, width):
        raise DecodeError("cannot be decoded: damaged PNG")
    if picture.ndim == 3:
        order = cv2.COLOR_BGR2RGB if picture.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        picture = cv2.cvtColor(picture, order)
    # OpenCV gives 16-bit samples in the machine's order, the file's is big-endian.
    if bits == 16:
        picture = picture.astype(">u2")
    return np.ascontiguousarray(picture).reshape(num_rows, -1).view(np.uint8)


def _part(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _meaning(
    raw: NDArray[np.uint8], width: int, bits: int, kind: int, parts: dict[bytes, bytes]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return colours and alpha of samples, of which 16 bits the upper eight."""
    if kind == _PALETTE or bits < 8:
        return _looked_up(_unpacked(raw, width, bits), bits, kind, parts)
    channels = _CHANNELS[kind]
    wide = raw.view(">u2") if bits == 16 else raw
    samples = wide.reshape(len(raw), width, channels)
    upper = raw.reshape(len(raw), width, channels, 2)[..., 0] if bits == 16 else samples
    grey = kind in (_GREY, _GREY_ALPHA)
    colours = np.repeat(upper[..., :1], 3, axis=2) if grey else upper[..., :3]
    if kind in (_GREY_ALPHA, _RGBA):
        return colours, upper[..., -1:]
    if kind != _RGB or len(key := parts.get(b"tRNS", b"")) != 6:  # OpenCV shows a grey that is to be transparent
        return colours, None
    # One colour is transparent; tRNS has it as 16-bit numbers whatever the samples are.
    hidden = (samples == np.frombuffer(key, ">u2")).all(axis=2, keepdims=True)
    return colours, np.where(hidden, np.uint8(0), np.uint8(255))


def _unpacked(raw: NDArray[np.uint8], width: int, bits: int) -> NDArray[np.uint8]:
    """Return (num_rows, width) uint8 of samples of 1, 2, 4 or 8 bits, several of which share a byte."""
    if bits == 8:
        return raw
    # The leftmost pixel lies in the highest bits; the last byte of a row may have bits to spare, which are cut off.
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return ((raw[:, :, None] >> shifts) & np.uint8(2**bits - 1)).reshape(len(raw), -1)[:, :width]


def _looked_up(
    numbers: NDArray[np.uint8], bits: int, kind: int, parts: dict[bytes, bytes]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return colours and alpha of numbers of a palette or of fewer than 256 greys."""
    if kind != _PALETTE:
        # 1, 2 and 4 bits: 255 is a multiple of their largest value.
        table = (np.arange(2**bits) * (255 // (2**bits - 1))).astype(np.uint8)
        return np.repeat(table[numbers][..., None], 3, axis=2), None
    table = np.zeros((256, 3), np.uint8)
    colours = np.frombuffer(parts.get(b"PLTE", b"")[:768], np.uint8)
    table.reshape(-1)[: colours.size] = colours
    key = np.frombuffer(parts.get(b"tRNS", b"")[:256], np.uint8)
    if not key.size:
        return table[numbers], None
    alphas = np.full(256, 255, np.uint8)
    alphas[: key.size] = key
    return table[numbers], alphas[numbers][..., None]
