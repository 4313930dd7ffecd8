"""What an image file is before its pixels are decoded: its bytes, what it says of itself, and whether it is whole.

Knows nothing about pixels, folders or labels.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tellapart.errors import DecodeError

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
MAX_SCANNED_PIXELS = 2_000_000_000
"""Scans times pixels of one JPEG: twenty scans of 100 million pixels, about a second or two of work."""


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


# Measured on 5,134 small photos and 16 cores: decoding took 1.50 s with one thread, 0.92 s with four and 1.13 s with
# 16 (docs/experiments.md).
_SMALL_BYTES = 100_000
_MOST_FOR_SMALL = 4
_LOOKED_AT = 32


def decoding_threads(paths: Sequence[Path]) -> int:
    """Return how many threads should decode these files.

    Of small files Python's own work is more than half, and it runs one thread at a time: more than a few of them only
    take turns (16 threads took 1.4 times as long as four, on 16 processors).
    """
    cores = os.cpu_count() or 1
    sample = paths[:: max(1, len(paths) // _LOOKED_AT)]
    sizes = [os.path.getsize(path) for path in sample if os.path.exists(path)]
    return cores if sum(sizes) > _SMALL_BYTES * len(sizes) else min(cores, _MOST_FOR_SMALL)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        DecodeError: it is missing, no regular file, empty, too large or not permitted.
    """
    try:
        # Asked before the file is opened: opening a named pipe waits for a writer, and a device has no end.
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
        # DecodeError is a ValueError as well; any other one is of a name that no file can have: with a null byte, say.
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"has a name that cannot be opened: {error}") from error


# What Pillow's readers raise for headers that are damaged in one way or another.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, struct.error, KeyError, IndexError, TypeError)


def read_header(data: bytes, max_pixels: int = 100_000_000) -> Header:
    """Return what `data` says of itself; no pixel is decoded.

    Raises:
        DecodeError: not an image of a known format, or more than `max_pixels` pixels.
    """
    # Most photos are plain JPEGs, and for each Pillow takes 0.2 ms of Python with the lock held that all threads need
    # (docs/decisions.md).
    plain = _plain_jpeg_header(data)
    if plain is not None:
        refuse_bomb(plain.width, plain.height, max_pixels)
        return plain
    return _header_by_pillow(data, max_pixels)


def _header_by_pillow(data: bytes, max_pixels: int) -> Header:
    """Return the header of any known format; raises as `read_header`."""
    from PIL import Image, UnidentifiedImageError  # here, so that prediction does not pay for it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning; the limit below is ours
            with Image.open(io.BytesIO(data)) as image:
                known = FORMATS.get(image.format or "")
                if known is None:
                    raise DecodeError(f"is {image.format}; expected one of {', '.join(sorted(set(FORMATS.values())))}")
                refuse_bomb(image.width, image.height, max_pixels)
                # For a PNG without EXIF, getexif would decode the whole picture in search of it.
                has_exif = image.format != "PNG" or b"eXIf" in data
                orientation = image.getexif().get(0x0112, 1) if has_exif else 1
                orientation = orientation if orientation in range(1, 9) else 1
                # Orientations 5 to 8 lie on their side.
                width, height = image.size if orientation < 5 else image.size[::-1]
                # What else an MPO holds is a preview or the other eye's view: `check` must not call such a photo
                # an animation.
                frames = int(getattr(image, "n_frames", 1)) if image.format != "MPO" else 1
                transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
                mode, bits = image.mode, 16 if _has_16_bits(image.mode, data) else 8
    except (UnidentifiedImageError, Image.DecompressionBombError):
        # Pillow refuses bombs before it tells their size, and by a limit of its own: name the size that the file
        # declares, before anything is called damaged.
        size = declared_size(data)
        if size is not None:
            refuse_bomb(*size, max_pixels)
        kind = describe(data)
        reason = f"is a damaged {kind}" if kind in ("JPEG", "PNG") else f"is not an image ({kind})"
        raise DecodeError(reason) from None
    except DecodeError:
        raise
    except _DAMAGED as error:
        raise DecodeError(f"has a damaged header: {error}") from error
    return Header(known, width, height, mode, int(orientation), frames, transparent, bits)


def load_formats() -> None:
    """Import Pillow's readers of all formats now.

    Otherwise the first file that is none of the usual ones does, and a server grows by them while it works.
    """
    from PIL import Image

    Image.init()


def _plain_jpeg_header(data: bytes) -> Header | None:
    """Return what Pillow would say of a JPEG that carries no EXIF, CMYK or second picture, ten times faster."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame = None
    for marker, start, end in jpeg_segments(data):
        if marker in _FRAME_MARKERS and frame is None and start + 6 <= end <= len(data):
            frame = start
        elif marker == 0xDA:
            # A frame holds the bits of a sample (1 byte), height and width (2 bytes each) and the number of
            # components (T.81, B.2.2). 12-bit and CMYK pictures are left to Pillow.
            if frame is None or data[frame] != 8 or data[frame + 5] not in (1, 3):
                return None
            height, width = (int.from_bytes(data[frame + at : frame + at + 2], "big") for at in (1, 3))
            mode = "L" if data[frame + 5] == 1 else "RGB"
            return Header("jpeg", width, height, mode, 1, 1, False, 8) if width and height else None
        # Left to Pillow: with an EXIF orientation the size as shown is another one than the frame declares.
        elif marker in (0xE1, 0xE2) or end > len(data):  # EXIF, XMP, colour profile, several pictures
            return None
    return None


def refuse_bomb(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture by what it declares.

    Raises:
        DecodeError: no pixels, or more than `max_pixels`.
    """
    if width < 1 or height < 1:
        raise DecodeError(f"declares {width} x {height} pixels")
    if width * height > max_pixels:
        raise DecodeError(
            f"declares {width:,} x {height:,} pixels; at most {max_pixels:,} in all are decoded (data.max_pixels)"
        )


def refuse_truncated(data: bytes) -> None:
    """Look for the end mark: OpenCV fills the missing part of a JPEG or PNG with grey and says nothing.

    What else would cost a decoder out of all proportion to the file is looked for on the way.

    Raises:
        DecodeError: there is none, a PNG's checksum is wrong, or a JPEG has scans without end.
    """
    if data[:2] == b"\xff\xd8":
        frame = None
        for marker, start, end in jpeg_segments(data):
            if marker in _FRAME_MARKERS and frame is None:
                frame = start
            # The mark is searched for from the first scan on: a file cut off in its pixels still has everything
            # before them.
            elif marker == 0xDA and data.find(b"\xff\xd9", end) > 0:  # a thumbnail's end mark lies before it
                if frame is not None:
                    _refuse_scans(data, frame, start, end)
                return
        raise DecodeError("is a truncated JPEG (no end mark)")
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        _refuse_damaged_png(data)
    # The size in a RIFF header does not count the eight bytes before its own end.
    elif data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise DecodeError("is a truncated WebP (shorter than it declares)")


def _refuse_scans(data: bytes, frame: int, scan: int, pixels: int) -> None:
    """Refuse a JPEG of too many scans, each of which goes over the whole picture: 100 kB kept a thread for minutes.

    Args:
        data: the bytes of the file.
        frame: where its frame's content begins, after marker and length.
        scan: where the content of the first scan's header begins.
        pixels: where the pixels of that scan begin.
    """
    # The frame's marker lies three bytes before its content; a scan's header begins with its number of components.
    if data[frame - 3] not in _PROGRESSIVE_MARKERS and data[scan] >= data[frame + 5]:
        return  # the first scan holds all colours and all bits: decoders read no other
    size = int.from_bytes(data[frame + 1 : frame + 3], "big") * int.from_bytes(data[frame + 3 : frame + 5], "big")
    # A budget of pixels, not of scans: a small picture may have many scans, a large one few.
    most = MAX_SCANNED_PIXELS // max(1, size)
    if _count_scans(data, pixels, most) > most:
        raise DecodeError(
            f"is a JPEG of more than {most:,} scans of {size:,} pixels; at most {MAX_SCANNED_PIXELS:,} pixels in all "
            "scans are decoded, and ten scans are usual. Write the file anew"
        )


def _count_scans(data: bytes, position: int, most: int) -> int:
    """Return the number of scans, the first of which begins before `position`, or `most` + 1 where there are more."""
    scans = 1
    while scans <= most and (match := _MARKER.search(data, position)) is not None:
        position, marker = match.end(), match[0][1]
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker != 0x01:  # all others have a length; what is in them may look like a marker
            position += int.from_bytes(data[position : position + 2], "big")
    return scans


def _refuse_damaged_png(data: bytes) -> None:
    """Compare the checksums of the parts that make the picture, before libpng complains on stderr."""
    position, view = 8, memoryview(data)
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        kind = bytes(data[position + 4 : position + 8])
        if end + 4 > len(data):
            break
        # A capital first letter marks a part that the picture cannot be decoded without; tRNS changes pixels too. A
        # damaged text or date costs nothing and is let through.
        critical = kind[:1].isupper() or kind == b"tRNS"
        if critical and zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DecodeError(f"is a damaged PNG (the checksum of its part {kind!r} is wrong)")
        if kind == b"IEND":
            return
        position = end + 4
    raise DecodeError("is a truncated PNG (no end mark)")


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG or PNG as stored, or None for other formats and damaged headers."""
    # IHDR is always the first part: its width and height stand at bytes 16 and 20.
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 26:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:2] == b"\xff\xd8":
        for marker, start, _ in jpeg_segments(data):
            if marker in _FRAME_MARKERS and start + 5 <= len(data):
                return int.from_bytes(data[start + 3 : start + 5], "big"), int.from_bytes(
                    data[start + 1 : start + 3], "big"
                )
    return None


def other_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a GIF, BMP or WebP as stored, or None for other formats and damaged headers."""
    if len(data) < 30:
        return None
    if data[:4] == b"GIF8":
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") >= 40:
        # A negative height means that rows are stored from top to bottom.
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width), abs(height)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Each of WebP's three layouts packs its size differently: 24 bits less one, 14 bits less one, 14 bits as they
        # are.
        if data[12:16] == b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        if data[12:16] == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if data[12:16] == b"VP8 ":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """What decides on the memory that a JPEG takes.

    Attributes:
        width: pixels, as stored.
        height: pixels, as stored.
        buffered_bytes: of coefficients that are kept until the last scan was read; 0 where one scan holds all.
        scans: how often a decoder goes over it; more than are decoded count as one more.
    """

    width: int
    height: int
    buffered_bytes: int
    scans: int


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """Return what the frame of a JPEG declares; None: there is none before the first scan."""
    frame = 0
    for marker, start, end in jpeg_segments(data):
        if marker in _FRAME_MARKERS and end <= len(data) and end >= start + 6 and not frame:
            frame = start
        elif marker == 0xDA and frame:
            height, width = (int.from_bytes(data[frame + at : frame + at + 2], "big") for at in (1, 3))
            count = data[frame + 5]
            # One scan holds all components: it is decoded row by row, and nothing is buffered.
            if data[frame - 3] not in _PROGRESSIVE_MARKERS and start < len(data) and data[start] >= count:
                return JpegFrame(width, height, 0, 1)
            factors = [(packed >> 4, packed & 15) for packed in data[frame + 7 : frame + 6 + 3 * count : 3]] or [(1, 1)]
            # Otherwise libjpeg keeps every coefficient until the last scan: 16 bits for each sample, in blocks of up
            # to 32 pixels across, and a little more. Subsampled components have fewer samples.
            full = max(across for across, _ in factors) * max(down for _, down in factors)
            samples = sum(across * down for across, down in factors) / max(1, full)
            scans = _count_scans(data, end, MAX_SCANNED_PIXELS // max(1, width * height))
            return JpegFrame(width, height, int(2.1 * samples * (width + 32) * (height + 32)), scans)
    return None


# In the same range, but no frames: tables of codes (0xC4), a reserved one (0xC8), arithmetic conditioning (0xCC; ITU-T
# T.81, table B.1).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_MARKERS = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""In the pixels 0xFF is followed by zero or a restart marker (ITU-T T.81, B.1.1.2)."""


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment up to the first scan; `end` may lie behind the end of the file."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        # Fill bytes, TEM, restart marks and the start mark have no length behind them.
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, position + 4, position + 2 + length
        # A length counts its own two bytes. With less it is not one, and what follows is not a segment.
        if marker == 0xDA or length < 2:
            return
        position += 2 + length


def has_alpha(data: bytes) -> bool:
    """Return whether a PNG or WebP may have transparent pixels."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 26:
        # Colour types 4 and 6 have an alpha channel; tRNS has to stand before the pixels.
        return data[25] in (4, 6) or b"tRNS" in data[: data.find(b"IDAT")]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) > 25:
        return (data[12:16] == b"VP8X" and bool(data[20] & 0x10)) or (data[12:16] == b"VP8L" and bool(data[24] & 0x10))
    return False


def _has_16_bits(mode: str, data: bytes) -> bool:
    # Pillow opens a PNG of 16 bits per channel as 8-bit RGB: only the header tells.
    png = data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 26
    return data[24] == 16 if png else mode.startswith(("I", "F"))


def describe(data: bytes) -> str:
    """Return what the bytes seem to be, for an error."""
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
