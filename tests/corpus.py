"""A folder of damaged and odd image files, each with what must become of it."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drawing import photo

WIDTH, HEIGHT = 96, 64
READS, FAILS, EITHER = "reads", "fails", "either"
"""How a description begins: must decode, must be refused, or may do either but nothing else."""


def jpeg(picture: NDArray[np.uint8], **options: object) -> bytes:
    """Encode with Pillow; `options` as for Image.save."""
    return encoded(Image.fromarray(picture), "JPEG", **({"quality": 95} | options))


def png(picture: NDArray, **options: object) -> bytes:
    """Encode an 8-bit picture with Pillow, or a 16-bit one (RGB or grey) with OpenCV."""
    if picture.dtype == np.uint16:
        stored = picture[..., ::-1] if picture.ndim == 3 else picture
        return bytes(cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes())
    return encoded(Image.fromarray(picture), "PNG", **options)


def rotated_jpeg(picture: NDArray[np.uint8], orientation: int) -> bytes:
    """Encode `picture` so that a viewer that honours EXIF shows it upright."""
    undo = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(np.ascontiguousarray(undo[orientation](picture)), exif=exif, subsampling=0)


def bomb() -> bytes:
    """Return a PNG of a few hundred bytes that declares 65,535 x 65,535 pixels."""
    header = struct.pack(">IIBBBBB", 65_535, 65_535, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(bytes(65_536)))
        + _chunk(b"IEND", b"")
    )


def in_scans(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Cut a progressive JPEG into what comes before the first scan, each scan with its tables, and the end mark."""
    cuts, position, table = [], 2, None
    while data[position + 1] != 0xD9:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xC4 and table is None:
            table = position
        end = position + 2 + length
        if marker == 0xDA:
            found = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]").search(data, end)
            assert found is not None
            cuts.append((position if table is None else table, found.start()))
            end, table = found.start(), None
        position = end
    return data[: cuts[0][0]], [data[start:stop] for start, stop in cuts], data[position:]


def many_scans(size: tuple[int, int], more: int, between: bytes = b"") -> bytes:
    """Return a grey progressive JPEG whose last scan comes `more` times again."""
    head, scans, tail = in_scans(encoded(Image.new("L", size, 100), "JPEG", progressive=True))
    return head + b"".join(scans) + (between + scans[-1]) * more + tail


def make_corpus(root: Path) -> dict[str, str]:
    """Write the files into `root` and return name → what it is, beginning with reads, fails or either."""
    root.mkdir(parents=True, exist_ok=True)
    files = _damaged() | _odd() | _named()
    for name, (_, data) in files.items():
        (root / name).write_bytes(data)
    described = {name: text for name, (text, _) in files.items()}
    (root / "pipe.jpg").unlink(missing_ok=True)
    os.mkfifo(root / "pipe.jpg")
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "loop").symlink_to(".")
    described |= {"pipe.jpg": "fails: not a regular file", "dangling.jpg": "fails: cannot be read"}
    if os.geteuid() != 0:  # root may read everything
        (root / "locked.jpg").write_bytes(jpeg(photo(1)))
        (root / "locked.jpg").chmod(0)
        described["locked.jpg"] = "fails: cannot be read"
    return described


def _damaged() -> dict[str, tuple[str, bytes]]:
    picture = photo(11, (WIDTH, HEIGHT))
    files = {}
    for kind, whole in (("jpg", jpeg(picture)), ("png", png(picture))):
        for percent in (1, 10, 30, 50, 90):
            part = whole[: len(whole) * percent // 100]
            files[f"cut{percent}.{kind}"] = ("fails: truncated|damaged|not an image", part)
        files[f"flipped.{kind}"] = ("either: damaged|not an image|cannot be decoded", flip(whole, 200))
    whole = jpeg(picture)
    files["cut-2-bytes.jpg"] = ("fails: truncated JPEG", whole[:-2])
    files["cut-2-bytes.png"] = ("either: truncated|damaged", png(picture)[:-2])
    files["empty.jpg"] = ("fails: is empty", b"")
    files["zeros.jpg"] = ("fails: zero bytes", bytes(5000))
    files["zeros.png"] = ("fails: zero bytes", bytes(5000))
    files["page.jpg"] = ("fails: HTML", b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    files["bomb.png"] = ("fails: 65,535 x 65,535", bomb())
    files["only-start.jpg"] = ("fails: truncated|damaged|not an image", b"\xff\xd8\xff\xe0")
    return files


def _odd() -> dict[str, tuple[str, bytes]]:
    picture = photo(12, (WIDTH, HEIGHT))
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    wide = picture.astype(np.uint16) * 257
    image = Image.fromarray(picture)
    alpha = np.tile(np.linspace(0, 255, WIDTH, dtype=np.uint8), (HEIGHT, 1))
    palette = image.quantize(32)
    frames = [Image.fromarray(photo(seed, (WIDTH, HEIGHT))) for seed in (12, 13, 14)]
    files = {
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "palette.png": encoded(palette, "PNG"),
        "palette-transparent.png": encoded(palette, "PNG", transparency=0),
        "grey16.png": png(wide[..., 0].copy()),
        "rgb16.png": png(wide),
        "rgba.png": png(np.dstack([picture, alpha])),
        "grey-alpha.png": encoded(Image.fromarray(np.dstack([grey, alpha])), "PNG"),
        "one-bit.png": encoded(image.convert("1"), "PNG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "grey.jpg": jpeg(grey),
        "progressive.jpg": jpeg(picture, progressive=True),
        "plain.bmp": encoded(image, "BMP"),
        "plain.webp": encoded(image, "WEBP"),
        "alpha.webp": encoded(Image.fromarray(np.dstack([picture, alpha])), "WEBP", lossless=True),
        "plain.tif": encoded(image, "TIFF"),
    }
    files |= {f"turned{number}.jpg": rotated_jpeg(picture, number) for number in range(1, 9)}
    return {name: (f"reads: {name.split('.')[0]}", data) for name, data in files.items()}


def _named() -> dict[str, tuple[str, bytes]]:
    data = jpeg(photo(15, (WIDTH, HEIGHT)))
    names = ("line\nbreak.jpg", "żółw 猫.jpg", "two  spaces .jpg", "-rf.jpg", "UPPER.JPG", "a'b\"c.jpg")
    files = dict.fromkeys(names, ("reads: an odd name", data))
    files["really-a-png.jpg"] = ("reads: a PNG named .jpg", png(photo(16, (WIDTH, HEIGHT))))
    return files


def flip(data: bytes, position: int, mask: int = 0x10) -> bytes:
    """Return `data` with bits of one byte changed."""
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Encode with Pillow in its format `form`; `options` as for Image.save."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
