"""What a report is about: which photos, on which side, and what a network made by hand says of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

import tellapart
from drawing import make_classes, save, save_photo
from tellapart.data.scan import scan
from tellapart.errors import InputError
from tellapart.evaluation.predict import Classifier, load
from tellapart.report.attribution import spread
from tellapart.report.subject import open_subject, other_photos, photos_of_run

PX = 16
CLASSES = ["cat", "ant", "bee"]
"""In the order of the network's outputs, which need not be the alphabet's."""


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """A dense layer on the logarithm of the mean colour, which a black picture does not have."""
    inputs = keras.Input((PX, PX, 3), dtype="uint8")
    x = keras.ops.log(keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="classes")(x))
    kernel = np.array([[3, 0, -1], [0, 2, 0], [-1, 0, 2]], np.float32)
    model.get_layer("classes").set_weights([kernel, np.array([0.1, 0.2, 0.3], np.float32)])
    return Classifier(model, CLASSES)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos of each class, of the network's size."""
    return make_classes(tmp_path / "photos", dict.fromkeys(CLASSES, 3), size=(PX, PX), ext="png")


def opened(classifier: Classifier, photos: Path, sides: dict[str, str] | str):
    """Open all photos; `sides` is the side of all, or of those whose path begins with a key."""
    found = scan(photos)
    if isinstance(sides, str):
        split = [sides] * len(found.frame)
    else:
        split = [next(side for start, side in sides.items() if path.startswith(start)) for path in found.frame["path"]]
    return open_subject(classifier, found.root, found.frame.assign(split=split), cache=photos.parent / "cache")


# Any photos -----------------------------------------------------------------------------------------------


def test_features_and_probabilities_are_those_of_each_photo(classifier, photos):
    subject = opened(classifier, photos, "test")
    images = np.stack([cv2.imread(str(photos / path))[..., ::-1] for path in subject.frame["path"]])
    features = np.log(images.mean(axis=(1, 2)) / 255)
    kernel, bias = classifier.model.get_layer("classes").get_weights()
    with subject.pictures:
        np.testing.assert_array_equal(subject.pictures.batch(np.arange(9)), images)
    np.testing.assert_allclose(subject.features, features, atol=1e-5)
    np.testing.assert_allclose(subject.probabilities, softmax(features @ kernel + bias, axis=1), atol=1e-5)
    np.testing.assert_allclose(subject.probabilities.sum(axis=1), 1, rtol=1e-12)
    assert [CLASSES[number] for number in subject.numbers] == [path.split("/")[0] for path in subject.frame["path"]]
    assert (subject.num_not_finite, subject.unreadable) == (0, ())


@pytest.mark.parametrize(
    ("sides", "main"),
    [
        ({"ant/": "train", "bee/": "validation", "cat/": "test"}, "test"),
        ({"ant/": "validation", "bee/": "train", "cat/": "train"}, "validation"),
        ("train", "train"),
    ],
)
def test_the_report_is_about_the_last_side_that_has_photos(classifier, photos, sides, main):
    subject = opened(classifier, photos, sides)
    assert subject.main == main
    assert len(subject.at(main)) == 9 if sides == "train" else 3
    assert (subject.frame["split"].iloc[subject.at(main)] == main).all()
    assert len(subject.at("test")) == (3 if main == "test" else 0)


def test_a_side_whose_photos_cannot_be_read_has_none(classifier, photos):
    (photos / "ant" / "a-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    subject = opened(classifier, photos, {"ant/a-": "test", "ant/": "validation", "bee/": "train", "cat/": "train"})
    assert subject.main == "validation"
    ((path, reason),) = subject.unreadable
    assert path == "ant/a-broken.png"
    assert reason
    assert subject.frame["path"].tolist() == [f"{name}/{n}.png" for name in sorted(CLASSES) for n in range(3)]
    assert len(subject.probabilities) == len(subject.numbers) == len(subject.features) == len(subject.pictures) == 9
    assert subject.at("validation").tolist() == [0, 1, 2], "positions among the readable ones"


def test_a_class_that_is_missing_in_test_keeps_its_number(classifier, photos):
    subject = opened(classifier, photos, {"ant/": "train", "bee/": "test", "cat/": "test"})
    assert sorted(set(subject.numbers[subject.at("test")])) == [CLASSES.index("cat"), CLASSES.index("bee")]
    assert subject.probabilities.shape == (9, 3)


def test_probabilities_that_are_not_finite_become_even_and_are_counted(classifier, photos):
    save(photos / "bee" / "1.png", np.zeros((PX, PX, 3), np.uint8))
    before = classifier.model.predict_on_batch(np.zeros((1, PX, PX, 3), np.uint8))
    assert np.isnan(before).all()
    subject = opened(classifier, photos, "test")
    black = subject.frame["path"].tolist().index("bee/1.png")
    assert subject.num_not_finite == 1
    np.testing.assert_allclose(subject.probabilities[black], 1 / 3)
    assert np.isfinite(subject.probabilities).all()
    assert np.isfinite(subject.features).all()
    others = np.arange(9) != black
    assert (np.ptp(subject.probabilities[others], axis=1) > 0.01).all(), "the others keep what was said of them"


def test_photos_of_which_none_can_be_read_are_refused(classifier, tmp_path):
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_text("<html>")
    with pytest.raises(InputError, match=r"photos holds no readable photo"):
        opened(classifier, tmp_path / "photos", "test")


# Photos that a run does not know --------------------------------------------------------------------------


def test_other_photos_without_a_split_are_all_test_and_copies_share_a_unit(tmp_path):
    make_classes(tmp_path / "new", {"ant": 2, "bee": 2})
    shutil.copy(tmp_path / "new" / "ant" / "0.jpg", tmp_path / "new" / "bee" / "copy.jpg")
    root, frame = other_photos(tmp_path / "new", CLASSES)
    assert root == (tmp_path / "new").resolve()
    assert frame["path"].tolist() == ["ant/0.jpg", "ant/1.jpg", "bee/0.jpg", "bee/1.jpg", "bee/copy.jpg"]
    assert (frame["split"] == "test").all()
    unit = dict(zip(frame["path"], frame["unit"], strict=True))
    assert unit["ant/0.jpg"] == unit["bee/copy.jpg"]
    assert len(set(unit.values())) == 4


def test_other_photos_with_a_split_keep_it(tmp_path):
    for number, path in enumerate(("train/ant/1.jpg", "train/bee/2.jpg", "val/bee/3.jpg")):
        save_photo(tmp_path / "new" / path, number)
    _, frame = other_photos(tmp_path / "new", CLASSES)
    assert frame["split"].tolist() == ["train", "train", "validation"]
    assert frame["label"].tolist() == ["ant", "bee", "bee"]


def test_an_unknown_class_is_refused_and_the_nearest_is_named(tmp_path):
    make_classes(tmp_path / "new", {"ant": 1, "beee": 1})
    with pytest.raises(
        InputError, match=r"new has the class 'beee', .* Did you mean 'bee'\? It knows cat, ant, bee\.$"
    ):
        other_photos(tmp_path / "new", CLASSES)


# Photos of a run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on a table that gives a train and a validation split and no test split."""
    here = tmp_path_factory.mktemp("subject")
    make_classes(here / "photos", {"ant": 12, "bee": 12})
    (here / "photos" / "bee" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    rows = [
        (path.relative_to(here).as_posix(), path.parent.name, "train" if int(path.stem) < 8 else "val")
        for path in sorted((here / "photos").glob("*/[0-9]*.jpg"))
    ]
    rows.append(("photos/bee/broken.jpg", "bee", "val"))
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(here / "photos.csv", index=False)
    changes = ["data.image_px=16", "train.epochs=1", "train.batch_size=8", "train.precision=float32"]
    tellapart.train(here / "photos.csv", changes=changes, out=here / "run", cache=here / "cache")
    return here


@pytest.mark.integration
def test_a_run_without_a_test_side_is_judged_on_validation_as_when_it_was_trained(place: Path):
    root, manifest = photos_of_run(place / "run")
    assert root == place.resolve()
    assert len(manifest) == 25
    subject = open_subject(load(place / "run"), root, manifest, cache=place / "cache")
    assert subject.main == "validation"
    assert len(subject.at("validation")) == 8
    assert len(subject.at("test")) == 0
    assert [path for path, _ in subject.unreadable] == ["photos/bee/broken.jpg"]
    table = pd.read_csv(place / "run" / "predictions.csv")
    assert subject.frame["path"].tolist() == table["path"].tolist()
    assert [subject.classes[number] for number in subject.numbers] == table["true_label"].tolist()
    np.testing.assert_allclose(subject.probabilities, table[["p:ant", "p:bee"]], atol=1e-5)


@pytest.mark.integration
def test_a_run_can_be_judged_when_its_photos_are_gone_and_its_cache_is_not(place: Path):
    root, manifest = photos_of_run(place / "run")
    there = open_subject(load(place / "run"), root, manifest, cache=place / "cache")
    gone = open_subject(load(place / "run"), place / "nowhere", manifest, cache=place / "cache")
    np.testing.assert_array_equal(gone.probabilities, there.probabilities)


# A few photos for a closer look ---------------------------------------------------------------------------


def fairest(sizes: np.ndarray, count: int) -> list[int]:
    """Return how many of each class there are, fewest first, when they are dealt one at a time to the poorest."""
    dealt = np.zeros_like(sizes)
    for _ in range(min(count, int(sizes.sum()))):
        open_classes = np.flatnonzero(dealt < sizes)
        dealt[open_classes[dealt[open_classes].argmin()]] += 1
    return sorted(dealt.tolist())


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10, 20, 48, 95, 96, 500])
def test_a_few_photos_are_spread_evenly_over_the_classes(count: int):
    sizes = np.array([50, 3, 12, 30, 1])
    true = np.random.default_rng(1).permutation(np.repeat(np.arange(5), sizes))
    chosen = spread(true, count)
    assert len(chosen) == min(count, 96)
    assert (np.diff(chosen) > 0).all(), "in rising order, none twice"
    assert sorted(np.bincount(true[chosen], minlength=5).tolist()) == fairest(sizes, count)
    np.testing.assert_array_equal(chosen, spread(true, count))


def test_within_a_class_the_few_are_drawn_from_all_over():
    chosen = spread(np.zeros(1000, np.int64), 100)
    assert 35 < (chosen < 500).sum() < 65
