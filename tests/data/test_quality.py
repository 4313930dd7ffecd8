"""Photo quality: each measure against something whose value is known."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from corpus import jpeg, png
from drawing import photo
from tellapart.data.decode import decode, decode_square
from tellapart.data.quality import (
    DIRECTIONS,
    Quality,
    decode_and_measure,
    jpeg_quality,
    noise_level,
    quality_of,
)
from tellapart.errors import DecodeError


def measure_quality(data: bytes) -> Quality:
    return decode_and_measure(data, 256)[1]


@pytest.mark.parametrize("sigma", [2.0, 8.0, 20.0])
def test_noise_is_the_standard_deviation_that_was_added(sigma):
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 190, 200)[None].repeat(200, axis=0)
    noisy = np.clip(ramp + rng.normal(0, sigma, ramp.shape), 0, 255).round().astype(np.uint8)
    assert noise_level(noisy) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 90, 98])
def test_jpeg_quality_is_read_back(quality):
    _, data = cv2.imencode(".jpg", photo(1, (80, 60)), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert jpeg_quality(data.tobytes()) == pytest.approx(quality, abs=1.5)


def test_measures_move_in_their_direction():
    rng = np.random.default_rng(0)
    sharp = np.kron(rng.integers(60, 200, (40, 50, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    good = measure_quality(png(sharp))
    blurred = measure_quality(png(cv2.GaussianBlur(sharp, (0, 0), 4)))
    dark = measure_quality(png((sharp * 0.2).astype(np.uint8)))
    flat = measure_quality(png((128 + 0.2 * (sharp.astype(float) - 128)).astype(np.uint8)))
    assert blurred.sharpness < 0.3 * good.sharpness
    assert dark.brightness == pytest.approx(0.2 * good.brightness, rel=0.05)
    assert flat.contrast == pytest.approx(0.2 * good.contrast, rel=0.1)
    assert good.short_side_px == 320
    assert good.jpeg_quality == 100
    half = sharp.copy()
    half[:160] = 255
    assert measure_quality(png(half)).clipped == pytest.approx(0.5, abs=0.02)


def test_every_measure_has_a_direction_and_a_value_for_tiny_pictures():
    tiny = measure_quality(png(np.full((1, 1, 3), 7, np.uint8)))
    assert isinstance(tiny, Quality)
    assert set(tiny.to_dict()) == set(DIRECTIONS)
    assert np.isfinite(list(tiny.to_dict().values())).all()


def test_the_size_does_not_make_a_photo_noisier():
    large = np.clip(cv2.resize(photo(3, (64, 48)), (1600, 1200)), 0, 255)
    assert measure_quality(png(large)).noise < 1.5


# Smaller and larger than the picture, and shrunk by 2, by 4 and by 8 while it is decoded.
@pytest.mark.parametrize(
    ("size", "image_px"),
    [
        ((48, 64), 128),
        ((300, 500), 128),
        ((470, 450), 400),
        ((1200, 1600), 224),
        ((1200, 1600), 400),
        ((2100, 2900), 32),
    ],
)
@pytest.mark.parametrize("encode", [jpeg, png])
def test_decoding_once_gives_what_decoding_twice_gives(size, encode, image_px):
    data = encode(cv2.resize(photo(4, (90, 120)), size[::-1]))
    square, quality = decode_and_measure(data, image_px)
    np.testing.assert_array_equal(square, decode_square(data, image_px))
    again = quality_of(decode(data, at_least_px=256)).to_dict()
    again |= {"short_side_px": min(size), "jpeg_quality": jpeg_quality(data)}
    # Brightness as a JPEG stores it differs by rounding from that of the colours that are made of it.
    assert quality.to_dict() == (again if encode is png else pytest.approx(again, rel=0.02, abs=0.02))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_kind_of_jpeg_is_measured_by_its_brightness(mode, orientation):
    image, stream = Image.fromarray(cv2.resize(photo(4, (90, 120)), (420, 300))).convert(mode), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", exif=exif, quality=90, keep_rgb=mode == "RGB" and orientation == 6)
    found, whole = (decode_and_measure(stream.getvalue(), px)[1].to_dict() for px in (32, 280))
    assert found == pytest.approx(whole, rel=0.02, abs=0.02)


def test_shrinking_while_decoding_hardly_changes_a_noisy_photo():
    rng = np.random.default_rng(0)
    large = np.clip(cv2.resize(photo(5, (90, 120)), (2400, 1800)) + rng.normal(0, 12, (1800, 2400, 3)), 0, 255)
    data = jpeg(large.astype(np.uint8))
    shrunk, whole = measure_quality(data).to_dict(), quality_of(decode(data)).to_dict()
    for measure, rel in (("sharpness", 0.2), ("noise", 0.3), ("brightness", 0.01), ("contrast", 0.02)):
        assert shrunk[measure] == pytest.approx(whole[measure], rel=rel), measure


@pytest.mark.parametrize("short_side", [264, 330, 400, 450, 510])
def test_a_picture_up_to_twice_as_long_is_measured_about_as_if_areas_were_averaged(short_side):
    rng = np.random.default_rng(2)
    size = round(short_side * 1.3), short_side
    picture = cv2.resize(photo(5, (90, 120)), size).astype(float)
    # Grain of a pixel's size is what a way of shrinking can lose or let through.
    picture = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    scale = 256 / short_side
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    areas = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found, expected = quality_of(picture), quality_of(cv2.cvtColor(areas, cv2.COLOR_GRAY2RGB))
    for measure, rel in (("sharpness", 0.1), ("noise", 0.12), ("brightness", 0.002), ("contrast", 0.01)):
        assert getattr(found, measure) == pytest.approx(getattr(expected, measure), rel=rel), measure


def test_what_is_no_image_is_refused():
    with pytest.raises(DecodeError):
        measure_quality(b"<html>not found</html>")
    assert jpeg_quality(jpeg(photo(1))[:20]) == 100
