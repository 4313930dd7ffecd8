"""Takes out of an image file what is not its picture: places, times, cameras, thumbnails. Knows nothing about pixels.

Photos that leave their owner, as those of a bundle do, must not say where they were taken.
"""

from __future__ import annotations

import zlib

from tellapart.data.image_file import jpeg_segments, read_header

# What is kept is listed, not what is taken out: a kind that nobody has thought of may hold a place or a name.
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD"}
_JPEG_KEPT = {0xE0, 0xEE}
"""Of a JPEG's application segments: JFIF's, and Adobe's, which says what the colours are."""


def without_metadata(data: bytes) -> bytes | None:
    """Return an image file that decodes to the same picture and says nothing else.

    Args:
        data: of a JPEG or PNG.

    Returns:
        The file without EXIF (but for the orientation), XMP, IPTC, comments, colour profiles and further pictures; None
        for another format, or a file whose parts cannot be told apart.
    """
    if data[:2] == b"\xff\xd8":
        return _plain_jpeg(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _plain_png(data)
    return None


def _plain_jpeg(data: bytes) -> bytes | None:
    parts, scan = [b"\xff\xd8"], None
    # Kept in an EXIF segment of its own: without it the photo would lie on its side.
    orientation = read_header(data).orientation
    if orientation != 1:
        parts.append(_orientation(orientation))
    for marker, start, end in jpeg_segments(data):
        if end > len(data):
            return None
        if marker == 0xDA:
            scan = start - 4
            break
        is_application = 0xE0 <= marker <= 0xEF or marker == 0xFE
        # JFXX is a JFIF segment that holds a thumbnail: a picture that would not have been looked at.
        if not is_application or (marker in _JPEG_KEPT and data[start : start + 4] != b"JFXX"):
            parts.append(data[start - 4 : end])
    end_mark = _end_of_picture(data, scan) if scan is not None else None
    if scan is None or end_mark is None:
        return None
    return b"".join([*parts, data[scan:end_mark]])


def _end_of_picture(data: bytes, position: int) -> int | None:
    """Return where the picture's end mark ends: behind it a camera may keep more pictures, with places of their own."""
    while position + 1 < len(data):
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            return None
        marker = data[position + 1]
        if marker == 0xD9:
            return position + 2
        if marker in (0x00, 0xFF, 0x01) or 0xD0 <= marker <= 0xD8:  # a value of the picture, filling, a restart
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (0xFE, *range(0xE0, 0xF0)):  # metadata between two scans: too odd to be trusted
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _orientation(value: int) -> bytes:
    """Return an EXIF segment with the orientation alone."""
    # One entry of TIFF: tag 0x0112, type SHORT, count 1, the value in the upper half of four bytes.
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + value.to_bytes(2, "big") + b"\x00\x00"
    content = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    return b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content


def _plain_png(data: bytes) -> bytes | None:
    parts, position = [data[:8]], 8
    orientation = read_header(data).orientation
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if end > len(data):
            return None
        if kind in _PNG_KEPT:
            parts.append(data[position:end])
        if kind == b"IHDR" and orientation != 1:
            # A PNG holds the TIFF structure alone, without JPEG's marker, length and "Exif\0\0".
            content = _orientation(orientation)[10:]
            chunk = b"eXIf" + content
            parts.append(len(content).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big"))
        if kind == b"IEND":
            return b"".join(parts)
        position = end
    return None
