"""The decoder against Pillow and plain OpenCV, and against a corpus of damaged and odd files."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import corpus
from drawing import photo
from tellapart.data.decode import DecodingCost, decode, decode_square, decode_within, decoding_cost
from tellapart.data.image_file import read_file, read_header
from tellapart.data.quality import decode_and_measure, quality_of
from tellapart.data.scan import scan
from tellapart.errors import DecodeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("corpus") / "odd"
    return root, corpus.make_corpus(root)


def outcome(path: Path) -> str:
    """Return "reads" or the message of the DecodeError; nothing else may be raised."""
    try:
        data = read_file(path)
        header, picture = read_header(data), decode(data)
        square = decode_square(data, 32)
    except DecodeError as error:
        return str(error)
    assert picture.dtype == np.uint8
    assert picture.shape == (header.height, header.width, 3)
    assert square.shape == (32, 32, 3)
    return corpus.READS


def test_corpus_reads_or_says_why_not(folder):
    root, described = folder
    assert len(described) > 45
    for name, text in described.items():
        expected, _, what = text.partition(": ")
        came = outcome(root / name)
        if expected == corpus.READS:
            assert came == corpus.READS, f"{name!r} is {what}, but {came}"
            height, width = decode(read_file(root / name)).shape[:2]
            assert (width, height) == (corpus.WIDTH, corpus.HEIGHT), name
        elif expected == corpus.FAILS or came != corpus.READS:
            assert re.search(what, came), f"{name!r}: {came}"


def test_scan_reports_every_file_of_the_corpus_and_ends(folder):
    root, described = folder
    manifest = scan(root.parent)
    errors = dict(zip(manifest.frame["path"], manifest.frame["error"], strict=True))
    assert set(errors) == {f"odd/{name}" for name in described}, "the looping folder is entered once"
    for name, text in described.items():
        if not text.startswith(corpus.EITHER):
            assert (errors[f"odd/{name}"] == "") == text.startswith(corpus.READS), name
    assert "not a regular file" in errors["odd/pipe.jpg"]


def test_all_exif_orientations_show_the_same_upright_picture():
    picture = photo(5, (96, 64))
    for orientation in range(1, 9):
        data = corpus.rotated_jpeg(picture, orientation)
        header = read_header(data)
        assert (header.orientation, header.width, header.height) == (orientation, 96, 64)
        difference = np.abs(decode(data).astype(int) - picture)
        assert difference.shape == (64, 96, 3)
        assert difference.mean() < 3, orientation


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_holds_for_transparent_pictures_too(form, orientation):
    # OpenCV ignores the orientation when it is asked for the alpha channel.
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgba = Image.fromarray(np.dstack([photo(6, (96, 64)), np.full((64, 96), 255, np.uint8)]))
    data = corpus.encoded(rgba, form, exif=exif, lossless=True)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rgba.PNG", {}),
        ("rgba.WEBP", {"lossless": True}),
        ("rgba.TIFF", {}),
        ("palette.PNG", {"transparency": 3}),
        ("palette.PNG", {"transparency": bytes(range(0, 256, 8))}),
        ("palette.GIF", {"transparency": 3}),
    ],
)
def test_transparent_pixels_are_laid_on_white(name, options):
    picture = Image.fromarray(photo(7, (96, 64)))
    alpha = np.tile(np.linspace(0, 255, 96, dtype=np.uint8), (64, 1))
    drawn = Image.fromarray(np.dstack([np.asarray(picture), alpha]))
    shown, form = (drawn if name.startswith("rgba") else picture.quantize(32)), name.split(".")[1]
    data = corpus.encoded(shown, form, **options)
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(float)
    colour, opacity = rgba[..., :3], rgba[..., 3:] / 255
    assert opacity.min() < 1
    expected = colour * opacity + 255 * (1 - opacity)
    tolerance = 1.5 if name == "rgba.TIFF" else 0.51  # libtiff rounds once more
    np.testing.assert_allclose(decode(data), expected, atol=tolerance)


def test_sixteen_bits_become_the_upper_eight():
    wide = np.random.default_rng(0).integers(0, 65_536, (40, 50, 3)).astype(np.uint16)
    np.testing.assert_array_equal(decode(corpus.png(wide)), wide >> 8)
    grey = np.ascontiguousarray(wide[..., 0])
    np.testing.assert_array_equal(decode(corpus.png(grey)), np.repeat((grey >> 8)[..., None], 3, axis=2))


def test_cmyk_is_close_to_pillow():
    data = corpus.encoded(Image.fromarray(photo(8, (96, 64))).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= 2


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        ((120, 100), [((64, 64), cv2.INTER_LINEAR)]),
        ((40, 50), [((64, 64), cv2.INTER_LINEAR)]),
        ((100, 300), [((100, 64), cv2.INTER_AREA), ((64, 64), cv2.INTER_LINEAR)]),
        ((300, 40), [((64, 40), cv2.INTER_AREA), ((64, 64), cv2.INTER_LINEAR)]),
        ((64, 64), []),
    ],
    ids=str,
)
def test_square_equals_plain_decode_and_resize(size: tuple[int, int], steps: list[tuple[tuple[int, int], int]]):
    """No side is both 64 px long at an eighth, a quarter or a half: no reduced decode."""
    data = corpus.jpeg(photo(9, size))
    expected = np.ascontiguousarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
    for target, method in steps:
        expected = cv2.resize(expected, target, interpolation=method)
    np.testing.assert_array_equal(decode_square(data, 64), expected)


@pytest.mark.parametrize("size", [(120, 100), (1000, 700), (64, 64)], ids=str)
def test_a_picture_can_be_decoded_into_an_array(size: tuple[int, int]):
    data, out = corpus.jpeg(photo(9, size)), np.zeros((2, 64, 64, 3), np.uint8)
    assert decode_square(data, 64, out=out[1]).base is out
    np.testing.assert_array_equal(out[1], decode_square(data, 64))
    assert not out[0].any()


def test_reduced_decode_stays_close_to_the_full_one():
    data = corpus.jpeg(photo(10, (1000, 700)))
    assert decode(data, at_least_px=64).shape == (88, 125, 3), "one eighth"
    full = cv2.resize(decode(data), (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    difference = np.abs(decode_square(data, 64) - full)
    # Strong colours on purpose, and 700 is no multiple of 8: about 1.3 and 10 of 255 levels.
    assert difference.mean() < 2
    assert difference.max() < 16


def test_a_bomb_is_refused_by_its_header_and_the_limit_is_the_callers():
    with pytest.raises(DecodeError, match="65,535 x 65,535 pixels"):
        decode(corpus.bomb())
    data = corpus.png(photo(1, (20, 10)))
    assert decode(data, max_pixels=200).shape == (10, 20, 3)
    with pytest.raises(DecodeError, match="at most 199 in all"):
        decode(data, max_pixels=199)


def test_a_damaged_png_is_refused_without_a_word_on_stderr(capfd):
    data = corpus.png(photo(2))
    with pytest.raises(DecodeError, match="checksum of its part b'IDAT'"):
        decode(corpus.flip(data, len(data) // 2))
    sys.stderr.flush()
    assert capfd.readouterr().err == ""


WHOLE = {form: corpus.encoded(Image.fromarray(photo(20)), form) for form in ("JPEG", "PNG", "GIF", "WEBP")}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    length=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
    cut=st.booleans(),
)
def test_damage_raises_nothing_but_decode_error(kind, length, flips, cut):
    data = WHOLE[kind]
    for place, mask in flips:
        data = corpus.flip(data, int(place * (len(data) - 1)), mask)
    if cut:
        data = data[: int(length * len(data))]
    try:
        header = read_header(data, max_pixels=1_000_000)
        picture = decode(data, max_pixels=1_000_000)
    except DecodeError:
        return
    assert header.width * header.height <= 1_000_000
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)


def transparent(form: str, height: int, width: int) -> bytes:
    """Return a file whose pixels are transparent by parts."""
    picture = np.resize(photo(7, (96, 64)), (height, width, 3))
    alpha = np.tile(np.linspace(0, 255, width, dtype=np.uint8), (height, 1))
    rgba = np.dstack([picture, alpha])
    if form == "PNG16":
        return corpus.png(rgba.astype(np.uint16) * 257)
    if form == "palette":
        return corpus.encoded(Image.fromarray(picture).quantize(32), "PNG", transparency=bytes(range(0, 256, 8)))
    if form == "GIF":
        return corpus.encoded(Image.fromarray(picture).quantize(32), "GIF", transparency=3)
    return corpus.encoded(Image.fromarray(rgba), form, **({"lossless": True} if form == "WEBP" else {}))


@pytest.mark.parametrize("form", ["PNG", "PNG16", "palette", "GIF", "WEBP", "TIFF"])
def test_a_transparent_picture_is_laid_on_white_in_its_own_memory(form: str):
    """Whole arrays of 16 bits for it once took five times the picture."""
    height, width = 2100, 2000
    data = transparent(form, height, width)
    decode_square(data, 32)
    tracemalloc.start()
    square = decode_square(data, 32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert square.shape == (32, 32, 3)
    assert peak < 4.1 * height * width + 5_000_000


@pytest.mark.parametrize("form", ["PNG", "PNG16", "palette", "GIF", "WEBP"])
def test_transparent_pixels_are_rounded_as_they_always_were(form: str):
    data = transparent(form, 61, 47)
    if form == "PNG16":
        rgba = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), -1), cv2.COLOR_BGRA2RGBA) >> 8
    else:
        rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    colour, alpha = rgba[..., :3].astype(int), rgba[..., 3:].astype(int)
    np.testing.assert_array_equal(decode(data), (colour * alpha + 255 * (255 - alpha) + 127) // 255)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def filtered(rows: np.ndarray, pixel: int, rng: np.random.Generator) -> bytes:
    """Filter each row of bytes by one of the five filters of ISO/IEC 15948, clause 9."""
    out, above = b"", np.zeros(rows.shape[1], int)
    for row in rows.astype(int):
        left, corner = (np.concatenate([np.zeros(pixel, int), each])[: len(row)] for each in (row, above))
        guess = left + above - corner
        far = [abs(guess - each) for each in (left, above, corner)]
        paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner))
        number = int(rng.integers(5))
        predicted = (0, left, above, (left + above) // 2, paeth)[number]
        out += bytes([number]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    return out


PNG_KINDS = [(8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6), *((bits, 3) for bits in (1, 2, 4, 8))]


@pytest.mark.parametrize(("bits", "kind"), [*PNG_KINDS, (1, 0), (2, 0), (4, 0)])
@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("strip_bytes", [1, 900, 10**6])
def test_a_png_in_strips_is_what_opencv_makes_of_the_whole(bits, kind, with_key, strip_bytes, monkeypatch):
    rng = np.random.default_rng(bits + 20 * kind)
    width, height, channels = 37, 29, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    row_bytes = (width * bits * channels + 7) // 8
    rows = rng.integers(0, 256, (height, row_bytes), np.uint8)
    parts = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    if kind == 3:
        parts += chunk(b"PLTE", rng.integers(0, 256, 3 * 2**bits, np.uint8).tobytes())
    if with_key and kind in (0, 2, 3):
        first = rows[0, : 2 * channels].tobytes() if bits == 16 else bytes(2)[: channels - 1] + rows[0, :1].tobytes()
        parts += chunk(
            b"tRNS",
            rng.integers(0, 256, 2**bits, np.uint8).tobytes() if kind == 3 else first.ljust(2 * channels, b"\0"),
        )
    packed = zlib.compress(filtered(rows, max(1, bits * channels // 8), rng))
    pieces = b"".join(chunk(b"IDAT", packed[at : at + 500]) for at in range(0, len(packed), 500))
    data = b"\x89PNG\r\n\x1a\n" + parts + pieces + chunk(b"IEND", b"")
    expected = decode(data)
    monkeypatch.setattr("tellapart.data.decode._LARGE_PIXELS", 0)
    monkeypatch.setattr("tellapart.data.png_strips._STRIP_BYTES", strip_bytes)
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("damage", ["short", "bits", "filter", "empty"])
def test_damaged_pixels_in_strips_are_a_decode_error(damage: str, monkeypatch):
    monkeypatch.setattr("tellapart.data.decode._LARGE_PIXELS", 0)
    rows = {
        "short": zlib.compress(bytes(5 * 31)), "bits": b"\x78\x9c" + b"\xff" * 40,
        "filter": zlib.compress(b"\x09" + bytes(10 * 31 - 1)), "empty": b"",
    }[damage]  # fmt: skip
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0))
    with pytest.raises(DecodeError, match="damaged PNG"):
        decode(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def comment(content: bytes) -> bytes:
    return b"\xff\xfe" + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize("between", [b"", comment(b"\xff\xd9"), b"\xff\xff", comment(b"")], ids=repr)
def test_a_jpeg_of_a_thousand_scans_is_refused_before_it_is_decoded(between: bytes):
    data = corpus.many_scans((1500, 1500), 5000, between)
    assert len(data) < 300_000
    with pytest.raises(DecodeError, match=r"more than 888 scans of 2,250,000 pixels; at most 2,000,000,000"):
        decode_square(data, 64)


def test_scans_one_colour_at_a_time_are_counted_too(monkeypatch):
    """A frame that is not progressive is read scan by scan as well when its first scan lacks a colour."""
    picture = Image.fromarray(photo(3, (64, 48)))
    data = corpus.encoded(picture, "JPEG", subsampling=0)
    at = data.index(b"\xff\xda")
    only_first = data[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\x00" * 40
    monkeypatch.setattr("tellapart.data.image_file.MAX_SCANNED_PIXELS", 64 * 48 * 4)
    with pytest.raises(DecodeError, match="more than 4 scans"):
        decode(only_first + only_first[at:] * 5 + b"\xff\xd9")


def test_usual_progressive_jpegs_pass_up_to_the_largest(monkeypatch):
    data = corpus.encoded(Image.fromarray(photo(3, (640, 480))), "JPEG", progressive=True, quality=95)
    assert len(corpus.in_scans(data)[1]) == 10
    monkeypatch.setattr("tellapart.data.image_file.MAX_SCANNED_PIXELS", 20 * 640 * 480)
    assert decode(data).shape == (480, 640, 3)
    thumbnail = comment(b"\xff\xd8\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\xff\xd9" * 100)
    assert decode(data[:2] + thumbnail + data[2:]).shape == (480, 640, 3), "what is in other parts is no scan"
    assert decode(data + data * 3).shape == (480, 640, 3), "nor is what follows the end mark"
    monkeypatch.setattr("tellapart.data.image_file.MAX_SCANNED_PIXELS", 10 * 640 * 480 - 1)
    with pytest.raises(DecodeError, match="more than 9 scans"):
        decode(data)


def large(form: str) -> bytes:
    """Return a picture of eight million pixels that compresses well."""
    height, width = 2000, 4000
    grey = np.tile(np.linspace(0, 255, width, dtype=np.uint8), (height, 1))
    rgba = np.dstack([grey, grey.T.copy().reshape(height, width), grey, grey])
    colours = Image.fromarray(rgba[..., :3])
    if form == "png16":
        return corpus.png(rgba[:1000].astype(np.uint16) * 257)
    if form.startswith("jpeg"):
        options = {"progressive": "progressive" in form, "subsampling": 0 if "444" in form else 2}
        return corpus.encoded(colours.convert("CMYK") if "cmyk" in form else colours, "JPEG", **options)
    if form == "gif":
        return corpus.encoded(colours.quantize(32), "GIF", transparency=3)
    if form == "small png":
        return corpus.png(rgba[:1000])
    if form == "turned png":
        exif = Image.Exif()
        exif[0x0112] = 6
        return corpus.encoded(Image.fromarray(rgba), "PNG", exif=exif)
    return corpus.encoded(Image.fromarray(rgba) if form in ("png", "webp") else colours, form.upper())


FORMS = [
    "png", "png16", "small png", "turned png", "bmp", "gif", "webp", "jpeg", "jpeg progressive", "jpeg progressive 444",
    "jpeg progressive cmyk", "tiff",
]  # fmt: skip


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that was taken is read from /proc")
@pytest.mark.slow
def test_decoding_takes_no_more_memory_than_was_said(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path\n"
        "from tellapart.data.quality import decode_and_measure\n"
        "from tellapart.data.decode import decoding_cost\n"
        "def most(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) * 1024\n"
        "data, small = (Path(each).read_bytes() for each in sys.argv[1:])\n"
        "decode_and_measure(small, 224)\n"
        "before = most(); decode_and_measure(data, 224)\n"
        "cost = decoding_cost(data, 224); print(most() - before, cost and cost.bytes)\n"
    )
    for form in FORMS:
        file, small = tmp_path / "large", tmp_path / "small"
        file.write_bytes(large(form))
        small.write_bytes(corpus.encoded(Image.fromarray(photo(1)), "PNG" if "png" in form else form.split()[0]))
        done = subprocess.run([sys.executable, "-c", program, file, small], capture_output=True, text=True, check=True)
        taken, said = done.stdout.split()
        if form == "tiff":
            assert said == "None", "a TIFF does not say where its header is"
        else:
            assert int(taken) < int(said) + 8_000_000, form
            assert int(said) < 4 * int(taken) + 8_000_000, f"{form}: what is said is of use"


def test_what_is_refused_by_its_header_takes_no_memory():
    nothing = DecodingCost(0, 0)
    assert decoding_cost(corpus.bomb(), 224) == nothing
    data = corpus.jpeg(photo(1, (20, 10)))
    assert decoding_cost(data, 64) == DecodingCost(7 * 200, 50 + 200)
    assert decoding_cost(data, 64, max_pixels=199) == nothing
    assert decoding_cost(data[:30], 64) == nothing
    assert decoding_cost(b"nothing", 64) == nothing
    assert decoding_cost(corpus.encoded(Image.fromarray(photo(1)), "TIFF"), 64) is None
    assert decoding_cost(corpus.many_scans((2000, 2000), 400), 64).pixels > 400_000_000
    assert decoding_cost(corpus.many_scans((2000, 2000), 1000), 64) == nothing


@pytest.mark.parametrize("size", [(640, 480), (512, 768), (1000, 301), (301, 1200), (130, 900)], ids=str)
@pytest.mark.parametrize("kind", ["rgba", "palette", "rgb"])
def test_a_large_png_that_is_shrunk_while_it_is_decoded_gives_the_same_pixels_and_quality(size, kind, monkeypatch):
    picture = np.random.default_rng(4).integers(0, 256, (size[1], size[0], 4), np.uint8)
    picture[: size[1] // 2] //= 2
    image = Image.fromarray(picture if kind == "rgba" else picture[..., :3].copy())
    data = (
        corpus.encoded(image.quantize(50), "PNG", transparency=3)
        if kind == "palette"
        else corpus.png(np.asarray(image))
    )
    whole = decode(data)
    expected = decode_square(data, 64), *decode_and_measure(data, 64), decode_within(data, 200)
    monkeypatch.setattr("tellapart.data.decode._LARGE_PIXELS", 0)
    monkeypatch.setattr("tellapart.data.png_strips._STRIP_BYTES", 9000)
    found = decode_square(data, 64), *decode_and_measure(data, 64), decode_within(data, 200)
    for number in (0, 1, 3):
        np.testing.assert_array_equal(found[number], expected[number])
    assert found[2] == expected[2]
    assert expected[2] == quality_of(whole)


def test_a_large_transparent_png_takes_a_few_megabytes():
    picture = np.zeros((5000, 5000, 4), np.uint8)
    picture[..., 3] = 128
    data = corpus.png(picture)
    del picture
    decode_and_measure(data, 224)
    tracemalloc.start()
    decode_and_measure(data, 224)
    decode_within(data, 1024)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000, "the picture itself is 75 MB"


def test_a_photo_of_a_phone_is_shrunk_while_it_is_decoded():
    """A quarter of its sides gives nearly what the whole gives."""
    large = cv2.resize(photo(8, (300, 400)), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", large[..., ::-1])[1].tobytes()
    whole = cv2.resize(decode(data), (512, 384), interpolation=cv2.INTER_AREA)
    shrunk = decode_within(data, 512)
    assert shrunk.shape == whole.shape
    assert np.abs(shrunk.astype(int) - whole).mean() < 1
    assert decode_within(corpus.rotated_jpeg(large, 6), 512).shape == whole.shape, "its sides are exchanged in the file"
    assert decode_within(data, 4000).shape == (3000, 4000, 3), "nothing is made larger"


def test_a_frame_that_is_too_short_to_be_one_is_a_damaged_file():
    with pytest.raises(DecodeError):
        read_header(bytes.fromhex("ffd8ffc00003 08ffda0002".replace(" ", "")))
