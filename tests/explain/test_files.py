"""Image files explained: what is written, and what bad input does."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from drawing import photo, save
from tellapart.errors import InputError
from tellapart.evaluation.predict import Classifier
from tellapart.explain.files import explain_files, heat_maps
from tellapart.explain.maps import DEFAULT_METHOD, METHODS
from tellapart.models.build import build
from tellapart.settings import ConvNet


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(build(ConvNet(), 3, 32, seed=1), ["ant", "bee", "cat or dog"])


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two photos of one name in two folders, a large one, and a file that is none."""
    sizes = {"a/x.png": (60, 40), "b/x.png": (40, 60), "large.png": (1500, 900)}
    for number, (name, size) in enumerate(sizes.items()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, photo(number, size))
    (tmp_path / "no.jpg").write_text("<html>")
    return [tmp_path / name for name in (*sizes, "no.jpg")]


@pytest.mark.parametrize("label", [None, "cat or dog"])
def test_each_image_gets_a_picture_and_a_bad_one_costs_nothing(classifier, images, tmp_path, label):
    found = explain_files(classifier, images, tmp_path / "out", label=label)
    assert len(set(found.written)) == 3
    assert [path.name for path, _ in found.unreadable] == ["no.jpg"]
    shapes = [cv2.imread(str(path)).shape for path in found.written]
    assert shapes == [(40, 60, 3), (60, 40, 3), (614, 1024, 3)], "as they are, but at most 1024 px"
    if label:
        assert [path.name for path in found.written][:2] == ["x.cat-or-dog.jpg", "x.cat-or-dog-2.jpg"]
    assert np.asarray(cv2.imread(str(found.sheet))).shape[1] > 6 * 160


def test_a_strip_of_a_picture_and_a_long_name_are_no_trouble(classifier, tmp_path):
    strip = tmp_path / ("a very long name " * 14 + ".png")  # 238 bytes, and what is added made it too long
    save(strip, np.zeros((1, 4000, 3), np.uint8))
    found = explain_files(classifier, [strip], tmp_path / "out")
    assert [cv2.imread(str(path)).shape for path in found.written] == [(1, 1024, 3)]


def test_unknown_methods_and_classes_are_named_with_the_nearest(classifier, images, tmp_path):
    with pytest.raises(InputError, match=r"no method 'gradcam'.*Did you mean 'grad-cam'"):
        explain_files(classifier, images, tmp_path / "out", method="gradcam")
    with pytest.raises(InputError, match=r"knows no class 'bea'.*Did you mean 'bee'"):
        explain_files(classifier, images, tmp_path / "out", label="bea")
    assert not (tmp_path / "out").exists()


def test_nothing_but_bad_images_gives_no_sheet(classifier, images, tmp_path):
    found = explain_files(classifier, images[3:], tmp_path / "out")
    assert (found.written, found.sheet) == ((), None)


def test_heat_maps_of_files_and_arrays_are_those_of_the_method(classifier, images):
    array = photo(0, (60, 40))
    found = heat_maps(classifier, [images[0], array, images[3], np.zeros((4, 4), np.uint8)], label="bee")
    assert [each.label for each in found] == ["bee", "bee", None, None]
    assert ["is not an image" in found[2].error, "expected uint8 (height, width, 3)" in found[3].error] == [True, True]
    assert found[1].path == "image 1"
    small = cv2.resize(array, (32, 32), interpolation=cv2.INTER_LINEAR)[None]
    expected = METHODS[DEFAULT_METHOD](classifier.model, small, np.array([1]))[0]
    for each in found[:2]:
        np.testing.assert_allclose(each.heat, expected, atol=1e-4)
        assert each.overlay.shape == (40, 60, 3)
        assert each.probability == pytest.approx(classifier.probabilities(small)[0, 1], abs=1e-5)
