"""The corruptions against hand-computed values, distributions and a plain port of the published code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from statistics import NormalDist

import cv2
import numpy as np
import pytest
from scipy import ndimage, special

from drawing import photo
from tellapart.data.corrupt import CORRUPTIONS, corrupt
from tellapart.data.corruptions import blur, digital, weather
from tellapart.data.corruptions.frost import frost_sheet
from tellapart.data.corruptions.noise import photon_tables
from tellapart.data.decode import decode_square
from tellapart.data.drawn import encoded_picture
from tellapart.errors import InputError

SEVERITIES = range(1, 6)
UNIFORM = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
"""These draw nothing."""


def load_plain():
    path = Path(__file__).parents[2] / "benchmarks" / "peers" / "corruptions_plain.py"
    spec = importlib.util.spec_from_file_location("corruptions_plain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain = load_plain()


def rng(seed=0):
    return np.random.default_rng(seed)


def drawn(label="flower", index=2, image_px=224):
    """Return a drawn picture that cannot be written to."""
    picture = decode_square(encoded_picture(0, label, index)[1], image_px)
    picture.flags.writeable = False
    return picture


def grey(level, image_px=224):
    return np.full((image_px, image_px, 3), level, np.uint8)


class TrainingPlan:
    """A generator for the plain port that gives out the numbers that ours has drawn."""

    def __init__(self, *numbers):
        self.numbers = np.concatenate([np.ravel(each) for each in numbers]).astype(float)

    def _next(self, size):
        number = int(np.prod(size))
        given, self.numbers = self.numbers[:number], self.numbers[number:]
        return given.reshape(size)

    def uniform(self, low, high, size=()):
        return low + (high - low) * (self._next(size) + 1) / 2

    def normal(self, size, loc, scale):
        return loc + scale * self._next(size)

    def integers(self, low, high, size):
        return self._next(size).astype(int)


@pytest.fixture
def noise_drawn(monkeypatch):
    """Return a list that collects all numbers that `draw_signed` gives out, between -1 and 1."""
    collected = []
    for module in (weather, digital):

        def record(generator, shape, draw=module.draw_signed):
            collected.append(draw(generator, shape))
            return collected[-1]

        monkeypatch.setattr(module, "draw_signed", record)
    return collected


# What holds for all ---------------------------------------------------------------------------------------


def test_names_and_groups_are_the_published_ones():
    names = "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog"
    names += " brightness contrast elastic_transform pixelate jpeg_compression"
    assert list(CORRUPTIONS) == names.split()
    assert list(CORRUPTIONS.values()) == ["noise"] * 3 + ["blur"] * 4 + ["weather"] * 4 + ["digital"] * 4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_state_of_the_generator_decides_and_the_input_stays(name):
    picture = drawn()  # read-only: a write would raise
    for severity in SEVERITIES:
        first = corrupt(picture, name, severity, rng(1))
        np.testing.assert_array_equal(first, corrupt(picture.copy(), name, severity, rng(1)))
        assert (first.shape, first.dtype) == (picture.shape, np.uint8)
        assert first.flags.writeable
        assert not np.shares_memory(first, picture)
        assert np.array_equal(first, corrupt(picture, name, severity, rng(2))) == (name in UNIFORM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_from_32_and_any_memory_layout(name):
    for size in ((32, 32), (33, 58), (97, 61), (600, 35)):
        picture = photo(3, size)
        for severity in SEVERITIES:
            result = corrupt(picture, name, severity, rng())
            assert (result.shape, result.dtype) == (picture.shape, np.uint8)
            mirrored = picture[:, ::-1].copy()[:, ::-1]
            np.testing.assert_array_equal(result, corrupt(mirrored, name, severity, rng()))


def square_error(picture, result):
    return np.mean((picture.astype(float) - result) ** 2)


def uncorrelated(picture, result):
    """Frost and fog replace a part of the light: the picture's share falls while the error need not grow."""
    return 1 - np.corrcoef(picture.ravel(), result.ravel())[0, 1]


def error_in_place(picture, result):
    """Glass also moves the picture, by half a pixel a pass, and severity 1 has more passes than 2."""
    moves = [np.array([[1, 0, move], [0, 1, move]]) for move in np.arange(0, 2.6, 0.5)]
    moved = [cv2.warpAffine(picture, move, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE) for move in moves]
    return min(square_error(each[8:-8, 8:-8], result[8:-8, 8:-8]) for each in moved)


def bend(picture, result):
    """Severities 1 and 2 move the picture far and keep lines straight; 3 to 5 move it little and bend them.

    On a picture whose levels are its columns, lines stay straight where second differences vanish.
    """
    columns = result[40:-40, 40:-40, 0].astype(float)
    return np.mean(np.minimum(np.abs(columns[:, 16:] - 2 * columns[:, 8:-8] + columns[:, :-16]), 8))


MEASURES = {"frost": uncorrelated, "fog": uncorrelated, "glass_blur": error_in_place, "elastic_transform": bend}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_grows_with_severity(name):
    measure = MEASURES.get(name, square_error)
    pictures = [drawn("flower", 2), drawn("moon", 9), drawn("drop", 5)]
    if measure is bend:
        pictures = [np.tile(np.arange(224, dtype=np.uint8)[:, None], (224, 1, 3))]
    seeds = range(1) if name in UNIFORM else range(4)
    for picture in pictures:
        damage = [
            np.mean([measure(picture, corrupt(picture, name, severity, rng(seed))) for seed in seeds])
            for severity in SEVERITIES
        ]
        assert damage[0] > 0
        assert np.all(np.diff(damage) > 0), damage


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"])
def test_what_only_moves_or_mixes_pixels_leaves_a_plain_picture_as_it_is(name):
    for severity in SEVERITIES:
        np.testing.assert_array_equal(corrupt(grey(77), name, severity, rng()), grey(77))


# Against the plain port -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("defocus_blur", 0.51),
        ("motion_blur", 1),
        ("zoom_blur", 1.6),  # OpenCV and SciPy place the corners of an enlargement half a pixel apart
        ("frost", 0.51),
        ("brightness", 0.51),
        ("contrast", 0.51),
        ("pixelate", 1),  # Pillow rounds twice
        ("jpeg_compression", 1),
    ],
)
def test_the_same_numbers_give_the_plain_ports_picture(name, largest):
    picture = drawn("moon", 9)
    sheets = ([frost_sheet(number) for number in range(5)],) if name == "frost" else ()
    for severity in SEVERITIES:
        expected = plain.CORRUPTIONS[name](picture, severity, rng(4), *sheets)
        difference = np.abs(corrupt(picture, name, severity, rng(4)) - expected.astype(float))
        assert difference.max() <= largest
        assert difference.mean() <= max(0.5, largest / 2)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_of_the_same_numbers_is_the_plain_ports(severity, noise_drawn):
    picture = drawn()
    result = corrupt(picture, "fog", severity, rng(severity))
    expected = plain.fog(picture, severity, TrainingPlan(*noise_drawn))
    assert np.abs(result - expected).max() < 0.6


@pytest.mark.parametrize("severity", [3, 4, 5])
def test_elastic_transform_of_the_same_numbers_is_the_plain_ports(severity, noise_drawn):
    picture = drawn()
    result = corrupt(picture, "elastic_transform", severity, rng(severity))
    points = rng(severity).uniform(-1, 1, (3, 2))
    expected = plain.elastic_transform(picture, severity, TrainingPlan(points, *noise_drawn))
    difference = np.abs(result - expected)
    assert difference.mean() < 0.4
    assert np.quantile(difference, 0.999) < 3


@pytest.mark.parametrize("sigma", [244 * 0.08, 244 * 0.7])
def test_wide_smooth_noise_has_the_covariance_of_blurred_noise(sigma):
    height, width = 90, 61
    points = [(0, 0), (45, 30), (50, 36), (89, 20)]
    draws = rng()
    drawn_noise = [digital.smooth_noise(height, width, sigma, draws) for _ in range(4000)]
    values = np.array([[field[point] for point in points] for field in drawn_noise])
    kernels = []
    for point in points:
        single = np.zeros((height, width))
        single[point] = 1
        kernels.append(ndimage.gaussian_filter(single, sigma, mode="reflect", truncate=3).ravel())
    expected = np.array(kernels) @ np.transpose(kernels) / 3  # uniform noise has a variance of 1/3
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(np.cov(values.T) / scale, expected / scale, atol=0.1)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_of_the_same_noise_is_the_plain_ports(severity):
    picture = drawn()
    zoom = [3, 2, 4, 4.5, 2.5][severity - 1]
    result = corrupt(picture, "snow", severity, rng(severity))
    draws, side = rng(severity), int(np.ceil(224 / zoom))
    angle = draws.uniform(-135, -45)
    noise, first = np.zeros((224, 224)), (224 - side) // 2
    noise[first : first + side, first : first + side] = draws.standard_normal((side, side), np.float32)
    expected = plain.snow(picture, severity, TrainingPlan(noise, [(angle + 90) / 45]))
    assert np.quantile(np.abs(result - expected), 0.999) < 2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_of_the_same_numbers_is_the_plain_ports(severity, monkeypatch):
    picture, reach, moves = drawn("cross", 8, image_px=64), (1, 2, 2, 3, 4)[severity - 1], []

    def record(generator, shape, dtype):
        bits = generator.integers(0, 65536, shape, dtype)
        choice = bits[::-1, ::-1].astype(int) * (2 * reach) ** 2 >> 16  # the loop runs from the last pixel
        moves.append(np.stack([choice % (2 * reach), choice // (2 * reach)], axis=-1) - reach)
        return bits

    monkeypatch.setattr(blur, "draw_bits", record)
    result = corrupt(picture, "glass_blur", severity, rng(severity))
    expected = plain.glass_blur(picture, severity, TrainingPlan(*moves))
    # The plain port cuts fractions off between the two blurs: half a level on average.
    assert np.abs(result - expected).max() < 2
    assert np.abs(result - expected).mean() < 0.8


# By hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "deviation"), [*enumerate((0.08, 0.12, 0.18, 0.26, 0.38), start=1)])
def test_gaussian_noise_is_normal_with_the_published_deviation(severity, deviation):
    result = corrupt(grey(120), "gaussian_noise", severity, rng())
    shares = np.linspace(0.01, 0.99, 41)
    quantiles = [NormalDist(120, 255 * deviation).inv_cdf(share) for share in shares]
    allowed = 0.5 + 255 * deviation * 0.02
    assert np.abs(np.quantile(result, shares) - np.clip(quantiles, 0, 255)).max() < allowed
    between = np.corrcoef(np.stack([result[..., 0], result[..., 1], np.roll(result[..., 0], 1, 1)]).reshape(3, -1))
    assert np.abs(between - np.eye(3)).max() < 0.02


def poisson(photons, level):
    """Return the chances of the 256 results, (256,) float64."""
    counts, mean = np.arange(200), level / 255 * photons
    results = np.rint(255 * np.minimum(counts / photons, 1)).astype(int)
    chances = np.exp(special.xlogy(counts, mean) - mean - special.gammaln(counts + 1))
    return np.bincount(results, chances, 256)


@pytest.mark.parametrize("photons", [60, 25, 12, 5, 3])
def test_photon_tables_hold_poisson_distributions(photons):
    own, cells = photon_tables(photons)
    for level in range(256):
        other, share = cells[256 * level : 256 * level + 256] & 255, cells[256 * level : 256 * level + 256] >> 8
        chances = np.bincount(own, share, 256) + np.bincount(other, 65536.0 - share, 256)
        np.testing.assert_allclose(chances / (256 * 65536), poisson(photons, level), atol=1e-6)


@pytest.mark.parametrize(("severity", "photons"), [*enumerate((60, 25, 12, 5, 3), start=1)])
def test_shot_noise_is_poisson_with_the_published_number_of_photons(severity, photons):
    for level in (0, 1, 20, 130, 255):
        result = corrupt(grey(level, image_px=300), "shot_noise", severity, rng(level))
        counted = np.bincount(result.ravel(), minlength=256) / result.size
        expected = poisson(photons, level)
        assert np.all(np.abs(counted - expected) <= 6 * np.sqrt(expected / result.size) + 2 / result.size)


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.03, 0.06, 0.09, 0.17, 0.27), start=1)])
def test_impulse_noise_hits_the_published_share_of_each_channel(severity, share):
    result = corrupt(grey(100), "impulse_noise", severity, rng())
    for value in (0, 255):
        assert (result == value).mean(axis=(0, 1)) == pytest.approx([share / 2] * 3, abs=0.004)
    assert np.isin(result, (0, 100, 255)).all()


def test_the_defocus_kernel_is_a_disk():
    kernel = blur.disk(3, 0.1)
    rows = ["0001000", "0111110", "0111110", "1111111", "0111110", "0111110", "0001000"]
    expected = np.array([[float(cell) for cell in row] for row in rows]) / 29
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    for radius, total in ((4, 1), (6, 1), (8, 1.013), (10, 1.011)):
        kernel = blur.disk(radius, 0.5)
        assert kernel.sum() == pytest.approx(total, abs=5e-4)
        assert kernel.max() == pytest.approx(kernel[len(kernel) // 2, len(kernel) // 2])
        np.testing.assert_allclose(kernel, kernel.T, rtol=1e-5)
        assert np.count_nonzero(kernel > kernel.max() / 2) == pytest.approx(np.pi * radius**2, rel=0.06)


def test_motion_blur_runs_along_a_line_with_gaussian_weights():
    dot = np.zeros((64, 64, 3), np.uint8)
    dot[32, 32] = 255
    result = corrupt(dot, "motion_blur", 1, rng(0))[..., 0].astype(float)
    angle = np.radians(rng(0).uniform(-45, 45))
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3**2))
    weights *= 255 / weights.sum()
    for distance, weight in enumerate(weights[:6]):
        row, column = (round(32 - distance * part) for part in (np.sin(angle), np.cos(angle)))
        assert result[row, column] == pytest.approx(weight, abs=1)
    assert result.sum() == pytest.approx(255, abs=6)


def test_brightness_adds_to_the_value_of_hsv():
    pixels = np.array([(200, 100, 50), (0, 0, 0), (10, 250, 10), (90, 90, 90)], np.uint8)
    picture = np.ascontiguousarray(np.broadcast_to(pixels[:, None].repeat(8, axis=0), (32, 32, 3)))
    result = corrupt(picture, "brightness", 2, rng())[::8, 0]
    assert result.tolist() == [[251, 126, 63], [51, 51, 51], [10, 255, 10], [141, 141, 141]]


def test_contrast_pulls_towards_the_channels_means():
    picture = grey(60, image_px=32)
    picture[:16] = (100, 200, 60)
    result = corrupt(picture, "contrast", 3, rng())
    assert result[0, 0].tolist() == [84, 144, 60]  # means 80, 130 and 60; a fifth of the distance stays
    assert result[-1, 0].tolist() == [76, 116, 60]


def test_pixelate_averages_blocks_and_repeats_them():
    picture = photo(5, (224, 224))
    result = corrupt(picture, "pixelate", 5, rng())
    blocks = picture.reshape(56, 4, 56, 4, 3).mean(axis=(1, 3))
    assert np.abs(result - blocks.repeat(4, axis=0).repeat(4, axis=1)).max() <= 0.5


def test_frost_sheets_differ_and_cover_most_of_the_pane():
    sheets = [frost_sheet(number) for number in range(5)]
    for number, sheet in enumerate(sheets):
        assert sheet.shape == (512, 512, 3)
        assert 100 < sheet.mean() < 170
        assert sheet.std() > 40, "crystals stand out"
        assert not any(np.array_equal(sheet, other) for other in sheets[:number])


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "gausian_noise"}, r"no corruption 'gausian_noise'\. Did you mean 'gaussian_noise'\?.*jpeg_comp"),
        ({"severity": 0}, r"severity is 0\. Expected a whole number from 1 \(light\) to 5"),
        ({"severity": 6}, "severity is 6"),
        ({"severity": 2.5}, r"severity is 2\.5"),
        ({"picture": np.zeros((64, 64), np.uint8)}, r"picture is \(64, 64\) uint8\. Expected \(height, width, 3\)"),
        ({"picture": np.zeros((64, 64, 4), np.uint8)}, r"\(64, 64, 4\) uint8"),
        ({"picture": np.zeros((64, 64, 3), np.float32)}, r"\(64, 64, 3\) float32"),
        ({"picture": np.zeros((31, 64, 3), np.uint8)}, "at least 32 pixels"),
        ({"picture": [[[0, 0, 0]] * 32] * 32}, r"\(32, 32, 3\) list"),
    ],
)
def test_what_cannot_be_used_is_refused(changed, message):
    arguments = {"picture": grey(0, image_px=32), "name": "fog", "severity": 1} | changed
    with pytest.raises(InputError, match=message):
        corrupt(**arguments, rng=rng())
