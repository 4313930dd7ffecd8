"""Mixing against Keras' layers given the same draws, exact weights of labels, erasing as in the paper."""

from __future__ import annotations

import hashlib

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from drawing import photo
from recorder import Recorder
from tellapart.data.batches import CleanBatches, TrainingBatches
from tellapart.data.mix import (
    ERASED_AREA,
    ERASED_ASPECT,
    cutmix,
    draw_boxes,
    draw_mixing,
    erase,
    kept_shares,
    mix,
    mixup,
)
from tellapart.data.randaugment import randaugment
from tellapart.randomness import generator
from tellapart.settings import Augment, recipe_from
from tellapart.training.network import compiled

NUM, PX = 12, 40
CLASSES = np.arange(22) % 3


def photos() -> NDArray[np.uint8]:
    return np.stack([photo(seed, (PX, PX)) for seed in range(NUM)])


class Noise:
    """Stored pictures that are the same on every machine."""

    image_px = 24

    def read(self, position: int) -> NDArray[np.uint8]:
        return np.random.default_rng(position).integers(0, 256, (24, 24, 3), np.uint8)

    def batch(self, positions) -> NDArray[np.uint8]:
        return np.stack([self.read(int(position)) for position in positions])


def batches_of(augment: Augment, **changes) -> TrainingBatches:
    options = {"num_classes": 3, "batch_size": 5, "image_px": 24, "seed": 7, "epoch": 1} | changes
    return TrainingBatches(Noise(), np.arange(4, 26), CLASSES, augment=augment, **options)


@pytest.mark.parametrize("seed", range(4))
def test_mixup_is_keras_mixup(seed):
    rng = np.random.default_rng(seed)
    images, partners = photos(), rng.permutation(NUM)
    shares = rng.beta(0.4, 0.4, NUM)
    drawn = {"mix_weight": shares.astype(np.float32), "permutation_order": partners}
    layer = keras.layers.MixUp()
    expected = np.asarray(layer.transform_images(images, transformation=drawn))
    mixup(images, partners, shares)
    assert np.abs(images - expected).max() <= 0.5 + 1e-3, "rounding to whole grey levels is all that may differ"


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_is_keras_cutmix(seed):
    rng = np.random.default_rng(seed)
    images, partners = photos(), rng.permutation(NUM)
    boxes = draw_boxes(rng.beta(1, 1, NUM), PX, rng)
    layer = keras.layers.CutMix()
    left, top, right, bottom = boxes.T.astype(np.float32)
    masks, weights = layer._generate_batch_mask((NUM, PX, PX, 3), (left, right, top, bottom))
    drawn = {"batch_masks": masks, "mix_weight": weights, "permutation_order": partners}
    expected = np.asarray(layer.transform_images(images, transformation=drawn))
    cutmix(images, partners, boxes)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_allclose(kept_shares(boxes, PX), np.ravel(weights), atol=1e-6)


def test_boxes_have_the_area_of_their_share_before_they_are_clipped():
    rng = np.random.default_rng(0)
    shares = rng.random(20_000)
    left, top, right, bottom = draw_boxes(shares, 224, rng).T
    inside = (left > 0) & (top > 0) & (right < 224) & (bottom < 224)
    np.testing.assert_array_equal((right - left)[inside], np.rint(224 * np.sqrt(1 - shares))[inside])
    np.testing.assert_array_equal((right - left)[inside], (bottom - top)[inside])
    assert stats.kstest(((left + right) / 448)[inside & (shares > 0.99)], "uniform", (0.05, 0.9)).pvalue > 0.01
    assert min(left.min(), top.min()) == 0
    assert max(right.max(), bottom.max()) == 224


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_targets_say_which_pictures_were_mixed_and_by_how_much(name):
    flat = np.arange(0, 240, 20)[:NUM]  # each picture has one level, so that pixels tell where they come from
    images = np.broadcast_to(flat[:, None, None, None], (NUM, PX, PX, 3)).astype(np.uint8)
    mixing = draw_mixing(NUM, PX, Augment(**{name: 1.0}), np.random.default_rng(3))
    mixed, targets = mix(images, np.eye(NUM, dtype=np.float32), mixing)
    assert mixed is images
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert (np.count_nonzero(targets, axis=1) == 2).sum() >= NUM - 3, "its own class and its partner's"
    if name == "mixup":
        np.testing.assert_allclose(mixed[:, 0, 0, 0], targets @ flat, atol=0.5 + 1e-3)
    for picture, target in zip(mixed if name == "cutmix" else [], targets, strict=False):
        pixels = (picture[..., :1] == flat).mean(axis=(0, 1))
        np.testing.assert_allclose(pixels, target, atol=1e-6, err_msg="the exact share of pixels")
    partners = (targets - np.diag(np.diag(targets))).argmax(axis=1)[np.diag(targets) < 1]
    assert len(set(partners)) == len(partners), "a permutation: each is a partner once"


def test_shares_are_beta_and_kinds_and_batches_are_chosen_as_asked():
    pixels, one_class_each = np.zeros((1500, 1, 1, 3), np.uint8), np.eye(1500, dtype=np.float32)
    for alpha in (0.2, 1.0):
        mixing = draw_mixing(1500, 1, Augment(mixup=alpha), np.random.default_rng(1))
        shares = np.diag(mix(pixels, one_class_each, mixing)[1])
        assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    augment = Augment(mixup=0.4, cutmix=1.0, mix_probability=0.6)
    kinds = []
    rng = np.random.default_rng(0)
    for _ in range(1000):
        images = np.repeat(np.array([0, 100], np.uint8), 16 * 16 * 3).reshape(2, 16, 16, 3)
        levels = set(np.unique(mix(images, np.eye(2, dtype=np.float32), draw_mixing(2, 16, augment, rng))[0]))
        kinds.append("mixup" if levels - {0, 100} else "other")
    # 0.6 mixed, half by MixUp, half of these with another partner than themselves, nearly all seen at 8 bits
    assert kinds.count("mixup") / 1000 == pytest.approx(0.15, abs=0.035)


def test_batches_with_all_of_it_off_are_what_they_were_before_it_existed():
    batches = batches_of(Augment(rotation=0, zoom=0, brightness=0.2))  # no interpolation: the same on every machine
    digest = hashlib.sha256()
    for index in range(len(batches)):
        for part in batches[index]:
            digest.update(part.tobytes())
    assert digest.hexdigest() == "c6f744c821c5fe35b76c8f07bb089dd3f6d6beddfcabb51307bf0c156f61361e"


def test_each_setting_draws_from_a_generator_of_its_own():
    augment = Augment(randaugment_ops=2, erase=0.5, mixup=0.4, cutmix=1.0)
    images, targets = batches_of(Augment())[2]
    rng = generator(7, "randaugment", 1, 2)
    for image in images:
        randaugment(image, 2, 0.3, rng)
    np.testing.assert_array_equal(batches_of(Augment(randaugment_ops=2))[2][0], images)
    rng = generator(7, "erase", 1, 2)
    for number in np.flatnonzero(rng.random(5) < 0.5):
        erase(images[number], rng)
    np.testing.assert_array_equal(batches_of(Augment(randaugment_ops=2, erase=0.5))[2][0], images)
    images, targets = mix(images, targets, draw_mixing(5, PX, augment, generator(7, "mix", 1, 2)))
    made = batches_of(augment)[2]
    np.testing.assert_array_equal(made[0], images)
    np.testing.assert_array_equal(made[1], targets)


def test_one_and_eight_workers_make_the_same_batches():
    augment = Augment(randaugment_ops=2, erase=0.5, mixup=0.4, cutmix=1.0, mix_probability=0.8)
    fed = []
    for workers in (1, 8):
        recorder = Recorder()
        recorder.compile(run_eagerly=True)
        recorder.fit(batches_of(augment, workers=workers), epochs=3, shuffle=False, verbose=0)
        fed.append(np.concatenate([part.ravel() for batch in recorder.seen for part in batch]))
    np.testing.assert_array_equal(fed[0], fed[1])


def test_erased_rectangles_are_as_in_the_paper():
    rng = np.random.default_rng(0)
    areas, aspects, tops, levels = [], [], [], []
    for _ in range(1500):
        picture = np.zeros((120, 100, 3), np.uint8)
        erase(picture, rng)
        rows, columns = np.flatnonzero(picture.any(axis=(1, 2))), np.flatnonzero(picture.any(axis=(0, 2)))
        top, left, height, width = rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1
        assert picture[top : top + height, left : left + width].any(axis=2).mean() > 0.9, "a full rectangle"
        areas.append(height * width / (120 * 100))
        aspects.append(height / width)
        tops.append((top + rng.random()) / (120 - height + 1))
        levels.append((picture[top, left, 0] + rng.random()) / 256)
    assert ERASED_AREA[0] - 0.003 <= min(areas) < 0.03, "whole pixels are all that may differ"
    assert 0.37 < max(areas) <= ERASED_AREA[1] + 0.003
    assert 0.93 * ERASED_ASPECT[0] <= min(aspects) < 0.4
    assert 2.5 < max(aspects) <= 1.07 * ERASED_ASPECT[1]
    assert stats.kstest(tops, "uniform").pvalue > 0.01, "anywhere"
    assert stats.kstest(levels, "uniform").pvalue > 0.01, "noise of all levels"


def test_the_setting_is_the_share_of_pictures_that_are_erased():
    changed = [
        (batches_of(Augment(erase=0.3), seed=seed)[0][0] != batches_of(Augment(), seed=seed)[0][0]).any(axis=(1, 2, 3))
        for seed in range(60)
    ]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.06)


@pytest.mark.slow
def test_loss_and_accuracy_under_soft_targets_are_what_numpy_says_and_validation_is_never_mixed():
    recipe = recipe_from(
        {
            "data": {"image_px": 24},
            "augment": {"mixup": 1.0},
            "model": {"dropout": 0.0, "l2": 0.0},
            "train": {"label_smoothing": 0.1, "precision": "float32"},
        }
    )
    model, _ = compiled(recipe, 3, "float32")
    images, targets = batches_of(recipe.augment, batch_size=22)[0]
    assert targets.max(axis=1).min() < 0.9
    probabilities = np.asarray(model(images, training=True), np.float64)
    smooth = targets * 0.9 + 0.1 / 3
    loss = -(smooth * np.log(probabilities)).sum(axis=1).mean()
    accuracy = (probabilities.argmax(axis=1) == targets.argmax(axis=1)).mean()
    logs = model.train_on_batch(images, targets, return_dict=True)
    assert logs["loss"] == pytest.approx(loss, rel=1e-4)
    assert logs["accuracy"] == pytest.approx(accuracy, abs=1e-6)

    clean = CleanBatches(Noise(), np.arange(4, 26), CLASSES, num_classes=3, batch_size=22)
    history = model.fit(batches_of(recipe.augment), validation_data=clean, epochs=1, verbose=0).history
    images, targets = clean[0]
    np.testing.assert_array_equal(images, Noise().batch(range(4, 26)))
    np.testing.assert_array_equal(targets, np.eye(3)[CLASSES])
    probabilities = np.asarray(model(images, training=False), np.float64)
    assert history["val_accuracy"][0] == pytest.approx((probabilities.argmax(axis=1) == CLASSES).mean(), abs=1e-6)
