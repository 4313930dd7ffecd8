"""What leaves the machine is the picture and nothing else: same pixels, no places, no times, no thumbnails."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from corpus import jpeg, png
from drawing import photo
from tellapart.data.decode import decode, decode_square
from tellapart.data.metadata import without_metadata

SECRETS = (b"Nikon", b"48.8584", b"Eiffel", b"ICC_PROFILE", b"2024:05:06")


def exif(orientation: int = 1) -> Image.Exif:
    found = Image.Exif()
    found[0x010F], found[0x0132] = "Nikon", "2024:05:06 07:08:09"
    if orientation != 1:
        found[0x0112] = orientation
    found.get_ifd(0x8825)[29] = "48.8584"
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_keeps_its_pixels_and_its_orientation_alone(orientation: int, progressive: bool):
    data = jpeg(
        photo(3, (90, 60)), exif=exif(orientation), comment=b"at the Eiffel tower", icc_profile=b"ICC_PROFILE" * 9,
        progressive=progressive,
    )  # fmt: skip
    data += jpeg(photo(4), exif=exif())  # a second picture behind the first, as telephones write it
    assert all(secret in data for secret in SECRETS)
    plain = without_metadata(data)
    assert not [secret for secret in SECRETS if secret in plain]
    np.testing.assert_array_equal(decode(plain), decode(data))
    np.testing.assert_array_equal(decode_square(plain, 24), decode_square(data, 24))
    with Image.open(io.BytesIO(plain)) as opened:
        assert dict(opened.getexif()) == ({} if orientation == 1 else {0x0112: orientation})
    assert without_metadata(plain) == plain


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_png_keeps_its_pixels_and_its_orientation_alone(orientation: int):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Eiffel 48.8584 ICC_PROFILE 2024:05:06")
    for picture in (photo(3), np.dstack([photo(3), photo(5)[..., 0]])):
        data = png(picture, pnginfo=text, exif=exif(orientation))
        plain = without_metadata(data)
        assert not [secret for secret in SECRETS if secret in plain]
        np.testing.assert_array_equal(decode(plain), decode(data))


def test_what_cannot_be_told_apart_is_not_passed_on():
    whole = jpeg(photo(3))
    assert without_metadata(whole[: len(whole) // 2]) is None
    assert without_metadata(b"GIF89a" + bytes(40)) is None
    assert without_metadata(png(photo(3))[:-6]) is None


def test_real_photos_keep_their_pixels(shared_data):
    files = sorted(path for path in Path(shared_data("antsbees")).rglob("*") if path.is_file())[::20]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        plain = without_metadata(data)
        if plain is not None:
            np.testing.assert_array_equal(decode(plain), decode(data), err_msg=str(path))
