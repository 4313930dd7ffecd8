"""Which photos a network learns from, is validated on and takes its statistics from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from held import Held, held_photos, noise
from tellapart.errors import InputError
from tellapart.settings import Recipe, load_recipe
from tellapart.training.inputs import Inputs, Photos

PLAIN = ["augment.flip=false", "augment.rotation=0", "augment.zoom=0", "augment.contrast=0", "data.image_px=16"]


def recipe(*changes: str) -> Recipe:
    return load_recipe(changes=[*PLAIN, *changes])


def photos_of(labels: str, sides: str, classes: str) -> Photos:
    """A letter for each photo: its class, and t, v or x for training, validation and test."""
    names = {"t": "train", "v": "validation", "x": "test"}
    frame = pd.DataFrame({"label": list(labels), "split": [names[side] for side in sides]})
    pictures = Held(noise(len(labels), 16))
    return Photos(pictures, pictures, frame, list(classes), workers=1)


def seen(photos: Photos, batches) -> list[int]:
    """Return the positions of the pictures in all batches."""
    known = {picture.tobytes(): position for position, picture in enumerate(photos.pictures.levels)}
    return [known[picture.tobytes()] for index in range(len(batches)) for picture in batches[index][0]]


def test_each_photo_is_on_its_side_only_and_has_its_own_class():
    photos = photos_of("aaabbbccc", "tvxxtvvxt", "abc")
    inputs = Inputs(recipe("train.batch_size=3", "train.recalibrate_photos=9"), photos)
    batches = inputs.training(16)
    places = seen(photos, batches)
    assert sorted(places) == [0, 4, 8]
    assert ["abc"[number] for number in batches[0][1].argmax(axis=1)] == [photos.frame["label"][n] for n in places]
    assert seen(photos, inputs.validation) == [1, 5, 6]
    assert inputs.validation[0][1].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert inputs.num_validation == 3
    assert sorted(seen(photos, inputs.clean())) == [0, 4, 8]


def test_classes_keep_their_numbers_where_one_has_no_photo():
    """A network's outputs are in the order of the classes of the whole data set, not of those that were found."""
    positions, numbers = photos_of("ca", "tt", "abc").side("train")
    assert (positions.tolist(), numbers.tolist()) == ([0, 1], [2, 0])
    assert Inputs(recipe(), photos_of("cac", "ttt", "abc")).training(16)[0][1].shape == (3, 3)


@pytest.mark.parametrize(
    ("batch_size", "pictures"),
    [(1, 48), (10, 40), (48, 48), (500, 48)],
    ids=["single", "the rest waits", "one batch", "too few for a batch"],
)
def test_an_epoch_counts_the_pictures_of_whole_batches(batch_size: int, pictures: int):
    inputs = Inputs(recipe(f"train.batch_size={batch_size}"), held_photos())
    assert inputs.images_per_epoch == pictures
    assert len(seen(inputs.photos, inputs.training(16))) == pictures


def test_batches_that_begin_with_a_later_epoch_are_those_of_an_uninterrupted_run():
    inputs = Inputs(load_recipe(changes=["data.image_px=16", "train.batch_size=8"]), held_photos())
    batches = inputs.training(16)
    first = batches[0][0]
    for _ in range(3):
        batches.on_epoch_end()
    np.testing.assert_array_equal(inputs.training(16, epoch=3)[0][0], batches[0][0])
    assert not np.array_equal(first, batches[0][0])


def test_training_pictures_come_from_the_larger_photos_and_validation_from_those_of_the_recipe():
    """The larger ones are white here, so that their pictures are known by it."""
    small = held_photos(16)
    white = Held(np.full((len(small.pictures), 32, 32, 3), 255, np.uint8))
    inputs = Inputs(recipe("train.source_px=32"), replace(small, sources=white))
    images = inputs.training(24)[0][0]
    assert images.shape == (32, 24, 24, 3)
    assert images.min() == 255
    assert inputs.validation[0][0].max() < 255
    assert inputs.validation[0][0].shape[1:] == (16, 16, 3)


def test_statistics_come_from_training_photos_of_all_classes_whatever_the_order_of_the_manifest():
    """Twelve of 96 photos that are sorted by class: the first twelve would be of one class."""
    photos = held_photos(classes=4)
    asked = ["train.recalibrate_photos=12"]
    clean = Inputs(recipe(*asked), photos).clean()
    places = seen(photos, clean)
    assert len(set(places)) == 12
    assert set(photos.frame["split"][places]) == {"train"}
    assert photos.frame["label"][places].nunique() == 4
    assert (np.diff(places) < 0).sum() > 2, "not sorted"
    assert seen(photos, Inputs(recipe(*asked), photos).clean()) == places, "a resumed run sees the same ones"
    assert seen(photos, Inputs(recipe(*asked, "train.seed=1"), photos).clean()) != places


def test_statistics_of_more_photos_than_there_are_come_from_each_of_them_once():
    photos = held_photos(train=5, validation=3)
    clean = Inputs(recipe("train.recalibrate_photos=500"), photos).clean()
    assert sorted(seen(photos, clean)) == [*range(5), *range(8, 13)]
    assert Inputs(recipe(), photos).clean() is None


@pytest.mark.parametrize(
    ("labels", "sides", "classes", "found"),
    [
        ("aaa", "ttt", "a", r"Found 1 class\(es\) and 3 readable training photos"),
        ("ab", "vx", "ab", r"Found 2 class\(es\) and 0 readable training photos"),
        ("abc", "ttv", "abc", r"Found 3 class\(es\) and 2 readable training photos"),
        ("", "", "", r"Found 0 class\(es\) and 0 readable training photos"),
    ],
)
def test_too_few_photos_are_refused_with_their_number(labels: str, sides: str, classes: str, found: str):
    with pytest.raises(InputError, match=rf"{found}\. Expected at least two classes with a photo each"):
        Inputs(recipe(), photos_of(labels, sides, classes))


def test_a_photo_for_each_class_is_enough_to_train_and_none_is_needed_to_validate():
    inputs = Inputs(recipe(), photos_of("ab", "tt", "ab"))
    assert inputs.images_per_epoch == 2
    assert (inputs.num_validation, len(inputs.validation)) == (0, 0)


def test_a_student_learns_from_its_own_photos_teacher_and_is_validated_on_labels_alone():
    """Targets are labels, then what the teacher says of the same photo; at temperature 1 that is what it said."""
    photos = photos_of("abab", "vttv", "ab")
    teacher = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    asked = recipe("distill.teacher=somewhere", "distill.temperature=1", "train.batch_size=2")
    inputs = Inputs(asked, replace(photos, teacher=teacher))
    batches = inputs.training(16)
    expected = {1: [0, 1, 0.8, 0.2], 2: [1, 0, 0.7, 0.3]}
    np.testing.assert_allclose(batches[0][1], [expected[place] for place in seen(photos, batches)], atol=1e-6)
    assert inputs.validation[0][1].tolist() == [[1, 0], [0, 1]]
