"""Batches depend on (seed, epoch, index) alone, whoever makes them and in whatever order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from drawing import save_photo
from recorder import Recorder
from tellapart.data.batches import CleanBatches, TrainingBatches
from tellapart.data.cache import Pictures
from tellapart.files import sha256
from tellapart.settings import Augment

PX = 24
UNCHANGED = Augment(flip=False, rotation=0, zoom=0, contrast=0)
TARGETS = np.arange(22) % 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Pictures:
    folder: Path = tmp_path_factory.mktemp("photos")
    paths = [save_photo(folder / f"{number}.jpg", number, (40, 40)) for number in range(30)]
    return Pictures(paths, [sha256(path.read_bytes()) for path in paths], 32)


def batches_of(pictures: Pictures, **changes) -> TrainingBatches:
    options = {"num_classes": 3, "augment": Augment(), "batch_size": 5, "image_px": PX, "seed": 7} | changes
    return TrainingBatches(pictures, np.arange(4, 26), TARGETS, **options)


def fed_by_keras(batches: TrainingBatches, epochs: int) -> NDArray:
    """Return (epochs, batches, images, …) as `fit` feeds pictures and targets to a model."""
    recorder = Recorder()
    recorder.compile(run_eagerly=True)
    recorder.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    fed = [np.concatenate([images.reshape(len(images), -1), targets], axis=1) for images, targets in recorder.seen]
    return np.stack(fed).reshape(epochs, len(batches), batches.batch_size, -1)


@pytest.mark.integration
def test_keras_threads_change_nothing(pictures):
    assert batches_of(pictures, workers=1).workers == 2, "of one, Keras makes a pipeline that is late"
    one = fed_by_keras(batches_of(pictures, workers=1), 2)
    many = fed_by_keras(batches_of(pictures, workers=8), 2)
    np.testing.assert_array_equal(one, many)
    resumed = fed_by_keras(batches_of(pictures, workers=3, epoch=1), 1)
    np.testing.assert_array_equal(one[1], resumed[0])
    assert not np.array_equal(one[0], one[1])


def test_a_batch_depends_on_seed_epoch_and_index_alone(pictures):
    batches = batches_of(pictures)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 5))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda index: batches[int(index)], order))
    for index, (images, targets) in zip(order, made, strict=True):
        again = batches_of(pictures)[int(index)]
        np.testing.assert_array_equal(images, again[0])
        np.testing.assert_array_equal(targets, again[1])
    other_seed = batches_of(pictures, seed=8)
    assert not any(np.array_equal(batches[index][0], other_seed[index][0]) for index in range(4))


def test_a_part_of_an_epoch_is_its_first_batches_and_the_next_part_has_other_photos(pictures):
    whole, part = batches_of(pictures), batches_of(pictures, share=0.5)
    assert (len(whole), len(part), len(batches_of(pictures, share=0.01))) == (4, 2, 1)
    for index in range(2):
        np.testing.assert_array_equal(part[index][0], whole[index][0])
    first = {int(member) for index in range(2) for member in part.members(index)}
    part.on_epoch_end()
    assert first != {int(member) for index in range(2) for member in part.members(index)}


def test_a_photo_is_changed_anew_in_each_epoch_and_place(pictures):
    same = np.zeros(6, np.int64)  # one photo, six times
    options = {"num_classes": 1, "augment": Augment(), "batch_size": 3, "image_px": PX, "seed": 0}
    seen = set()
    for epoch in range(3):
        batches = TrainingBatches(pictures, same, same, epoch=epoch, **options)
        seen |= {image.tobytes() for index in range(2) for image in batches[index][0]}
    assert len(seen) == 18


def test_every_photo_comes_at_most_once_an_epoch_with_its_own_target(pictures):
    batches = batches_of(pictures, augment=UNCHANGED, image_px=32)
    known = {pictures.read(4 + member).tobytes(): member for member in range(22)}
    seen_ever = set()
    for _ in range(4):
        seen = []
        for index in range(len(batches)):
            images, targets = batches[index]
            assert (images.dtype, targets.dtype) == (np.uint8, np.float32)
            members = [known[image.tobytes()] for image in images]
            np.testing.assert_array_equal(targets, np.eye(3)[TARGETS[members]])
            seen += members
        assert len(seen) == len(set(seen)) == 20, "four batches of five; two of 22 photos wait"
        seen_ever.update(seen)
        batches.on_epoch_end()
    assert seen_ever == set(range(22))


def test_fewer_photos_than_a_batch_form_one_smaller_batch(pictures):
    batches = TrainingBatches(
        pictures, np.arange(3), np.arange(3), num_classes=3, augment=UNCHANGED, batch_size=32, image_px=32, seed=0
    )  # fmt: skip
    assert len(batches) == 1
    assert batches[0][0].shape == (3, 32, 32, 3)


def test_clean_batches_are_the_photos_in_order(pictures):
    positions = np.arange(25, 4, -1)
    batches = CleanBatches(pictures, positions, TARGETS[:21], num_classes=3, batch_size=8)
    made = [batches[index] for index in range(len(batches))]
    assert [len(images) for images, _ in made] == [8, 8, 5]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in made]), pictures.batch(positions.tolist()))
    np.testing.assert_array_equal(np.concatenate([t for _, t in made]).argmax(axis=1), TARGETS[:21])
    assert len(CleanBatches(pictures, positions)[0]) == 1, "no targets where none are known"
