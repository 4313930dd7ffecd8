"""Checks of what trains on an accelerator, on JAX's processor device, in an environment with JAX.

Run as `python checks.py FOLDER`, by tests/training/test_on_device.py. Prints one JSON object: of each check its name
and "", or what failed.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import cv2
import jax
import keras
import numpy as np
import pandas as pd

import tellapart.training.train as training
from tellapart.data.batches import TrainingBatches
from tellapart.data.cache import Pictures
from tellapart.errors import TrainingStoppedError
from tellapart.models.fused_jax import FusedBlock
from tellapart.records import Observer
from tellapart.run_folder import RunFolder
from tellapart.settings import Augment, recipe_from, with_settings
from tellapart.training import device_batches
from tellapart.training.callbacks import EvaluatedWeights
from tellapart.training.inputs import Inputs, Photos
from tellapart.training.network import compiled
from tellapart.training.on_device import OnDevice
from tellapart.training.schedule import Segment
from tellapart.training.train import train_network

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (90, 96, 96, 3), np.uint8)
LEVELS = np.stack([cv2.GaussianBlur(picture, (0, 0), 2) for picture in NOISE])


class Held(Pictures):
    """Pictures that lie in memory."""

    def __init__(self, levels: np.ndarray) -> None:
        super().__init__([Path()] * len(levels), [""] * len(levels), levels.shape[1])
        self.levels = levels

    def read(self, position: int) -> np.ndarray:
        """Return one of them."""
        return self.levels[position]


def batches_are_those_of_the_processor() -> None:
    """Each change against the batches that OpenCV makes from the same draws."""
    everything = Augment(translation=0.06, brightness=0.1)
    cases = [
        (everything, 64), (everything, 24), (Augment(mixup=0.4), 48), (Augment(cutmix=1.0), 64),
        (Augment(mixup=0.4, cutmix=1.0, mix_probability=0.6), 32), (Augment(erase=0.4), 32),
    ]  # fmt: skip
    for augment, image_px in cases:
        batches = TrainingBatches(
            Held(LEVELS), np.arange(90), np.arange(90) % 5, num_classes=5, augment=augment, batch_size=16,
            image_px=image_px, seed=3, epoch=2,
        )  # fmt: skip
        draws = device_batches.draw(batches, 1, len(batches))
        packed = device_batches.pack(batches.source, 90, batches.source_px, 2)
        make = jax.jit(device_batches.make, static_argnums=3)
        for step in range(3):
            images, rows = make(packed, batches.targets, jax.tree.map(lambda part: part[step], draws), image_px)  # noqa: B023
            expected, targets = batches[1 + step]
            apart = np.abs(np.asarray(images).astype(np.int64) - expected)
            np.testing.assert_allclose(rows, targets, atol=1e-6)
            if draws.erased is None:
                assert apart.max() <= 2, "a level that is rounded the other way, and then contrast"
                assert (apart == 0).mean() > 0.999, augment
                continue
            for image, other, (left, top, right, bottom) in zip(images, apart, draws.erased[step], strict=True):
                noise = np.asarray(image)[top:bottom, left:right]
                assert not noise.size or abs(noise.mean() - 127.5) < 40, "noise of all levels"
                other[top:bottom, left:right] = 0
                assert other.max() <= 1, "and nothing else"
        assert draws.erased is None or 0.2 < (draws.erased[..., 2] > 0).mean() < 0.6


def draws_depend_on_seed_epoch_and_index_alone() -> None:
    """A call may hold any part of an epoch: what it draws for a batch is the same."""
    augment = Augment(mixup=0.4, cutmix=1.0, mix_probability=0.7, erase=0.4, translation=0.1)

    def batches(**changes: int) -> TrainingBatches:
        options = {"seed": 3, "epoch": 2} | changes
        return TrainingBatches(
            Held(LEVELS), np.arange(90), np.arange(90) % 5, num_classes=5, augment=augment, batch_size=16,
            image_px=32, **options,
        )  # fmt: skip

    whole = device_batches.draw(batches(), 0, 5)
    parts = [device_batches.draw(batches(), first, last) for first, last in ((0, 1), (1, 4), (4, 5))]
    for name, *values in zip(whole._fields, whole, *parts, strict=True):
        np.testing.assert_array_equal(values[0], np.concatenate(values[1:]), err_msg=name)
        assert len(values[0]) == 5, name
    for other in (batches(seed=4), batches(epoch=3)):
        drawn = device_batches.draw(other, 0, 5)
        assert not any(np.array_equal(ours, theirs) for ours, theirs in zip(whole, drawn, strict=True))
    assert len({int(seed) for seed in whole.noise}) == 5
    assert 0 < (whole.kept[..., 1] == 1).all(axis=1).sum() < 5, "batches that are mixed, and one that is not"


def packed_pictures_come_back_and_each_is_read_once() -> None:
    """More of them than a thread reads in one go, read by several threads, and by more than are needed."""
    pictures = RNG.integers(0, 256, (150, 6, 6, 3), np.uint8)
    for count, threads in ((150, 3), (1, 8), (0, 1)):
        read: list[int] = []
        packed = device_batches.pack(lambda number: [pictures[number], read.append(number)][0], count, 6, threads)  # noqa: B023
        assert (packed.dtype, packed.shape) == (np.uint32, (count, 6, 6))
        np.testing.assert_array_equal(device_batches.unpack(jax.numpy.asarray(packed)), pictures[:count])
        assert sorted(read) == list(range(count))


def pictures_go_on_as_their_reflections() -> None:
    """Beyond both edges, as far as you like, as NumPy's "symmetric" and OpenCV's BORDER_REFLECT have it."""
    for px in (1, 2, 7):
        expected = np.pad(np.arange(px), 5 * px, mode="symmetric")
        np.testing.assert_array_equal(device_batches._reflected(np.arange(-5 * px, 6 * px), px), expected)


def only_randaugment_is_left_to_the_processor() -> None:
    """All other changes are made on the device."""
    assert device_batches.is_drawable(Augment(mixup=0.4, cutmix=1.0, erase=0.5, rotation=0.5, translation=0.5))
    assert not device_batches.is_drawable(Augment(randaugment_ops=1))


def blocks_are_the_plain_layers() -> None:
    """Outputs, statistics and all gradients, in float32."""
    for averages in (False, True):
        found = []
        for fuses in (False, True):
            inputs = keras.Input((12, 16, 5))
            first, bias = keras.initializers.GlorotUniform(seed=1), keras.initializers.RandomNormal(seed=2)
            conv = keras.layers.Conv2D(
                16, 3, padding="same", activation="relu", kernel_initializer=first, bias_initializer=bias
            )
            gamma, beta = keras.initializers.RandomNormal(seed=3), keras.initializers.RandomNormal(seed=4)
            norm = keras.layers.BatchNormalization(momentum=0.9, gamma_initializer=gamma, beta_initializer=beta)
            pool = keras.layers.GlobalAveragePooling2D() if averages else keras.layers.MaxPooling2D(2)
            outputs = FusedBlock(conv, norm, pool)(inputs) if fuses else pool(norm(conv(inputs)))
            found.append(_everything(keras.Model(inputs, outputs)))
        for plain, fused in zip(*found, strict=True):
            np.testing.assert_allclose(fused, plain, atol=2e-5 * np.abs(plain).max())


def _everything(model: keras.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.normal(size=(6, 12, 16, 5)).astype(np.float32)
    weights = rng.normal(size=model(images).shape)
    trainable, others = (
        [v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables)
    )

    def total(trainable: Any, images: Any) -> Any:
        outputs, changed = model.stateless_call(trainable, others, images, training=True)
        return (outputs * weights).sum(), (outputs, changed)

    (_, seen), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(trainable, images)
    return [np.asarray(part) for part in jax.tree.leaves((seen, gradients))]


def _inputs(**changes: Any) -> Inputs:
    sections: dict[str, Any] = {
        "data": {"image_px": 32},
        "augment": {"rotation": 0.04},
        "model": {"dropout": 0.0},
        "train": {"batch_size": 16, "optimizer": "adamw", "weight_decay": 0.05, "weight_average": 0.2,
                  "recalibrate_photos": 48, "precision": "float32", "epochs": 4, "source_px": 64},
    }  # fmt: skip
    recipe = with_settings(recipe_from(sections), {name.replace("__", "."): value for name, value in changes.items()})
    frame = pd.DataFrame({"label": [f"c{n % 3}" for n in range(90)], "split": ["train"] * 68 + ["validation"] * 22})
    small = np.stack([cv2.resize(picture, (32, 32)) for picture in LEVELS])
    large = np.stack([cv2.resize(picture, (64, 64)) for picture in LEVELS])
    return Inputs(recipe, Photos(Held(small), Held(large), frame, ["c0", "c1", "c2"]))


def steps_are_those_of_keras() -> None:
    """Losses of an epoch, then what would be kept, and its validation, against Keras' own ways."""
    inputs = _inputs()
    model, rate = compiled(inputs.recipe, 3, "float32", 8)
    rate.enter(Segment(32, 2, (0.0, 0.5)), 0, 8)
    device = OnDevice(model, rate, inputs, [32])
    feed = next(device._feeds(32, 0, 1))
    state, found = device._steps(feed.batches, 4).result()(device._values(), device._speed(), *feed.arguments())
    prepared, sums = device._check(state)
    batches = inputs.training(32)
    expected = [float(_train(model, *batches[step])) for step in range(len(batches))]
    np.testing.assert_allclose(found.loss, expected, rtol=2e-3)
    evaluated = EvaluatedWeights(inputs.clean())
    evaluated.set_model(model)
    evaluated.on_test_begin()
    for ours, theirs in zip(device._weights(prepared), evaluated.weights, strict=True):
        # Where a gradient is nearly 0, AdamW makes a whole step of its sign.
        assert np.abs(ours - theirs).mean() <= 5e-3 * max(np.abs(theirs).max(), 0.05)
    loss, accuracy = model.evaluate(inputs.validation, verbose=0)
    assert abs(float(sums[0].loss) / 22 + float(sums[0].penalty) - loss) < 0.02 * loss
    assert abs(float(sums[0].right) / 22 - accuracy) < 0.1


def _train(model: keras.Model, images: np.ndarray, rows: np.ndarray) -> Any:
    model.reset_metrics()
    return model.train_on_batch(images, rows)[0]


def photos_that_do_not_fit_give_the_same_losses() -> None:
    """Photos on the device, photos sent ahead of each call, and batches that the processor makes."""
    found = {}
    for how in ("resident", "streamed", "made"):
        inputs = _inputs()
        model, rate = compiled(inputs.recipe, 3, "float32", 8)
        rate.enter(Segment(32, 2, (0.0, 0.5)), 0, 8)
        device = OnDevice(model, rate, inputs, [])
        device._room = 0 if how == "streamed" else device._room
        if how == "made":
            sys.modules[OnDevice.__module__].is_drawable = lambda augment: False
        losses = []
        state = device._values()
        for feed in device._feeds(32, 0, 1):
            run = device._steps(feed.batches, feed.last - feed.first).result()
            state, seen = run(state, device._speed(), *feed.arguments())
            losses += np.asarray(seen.loss).tolist()
        found[how] = losses
    sys.modules[OnDevice.__module__].is_drawable = device_batches.is_drawable
    np.testing.assert_allclose(found["streamed"], found["resident"], rtol=1e-4)
    np.testing.assert_allclose(found["made"], found["resident"], rtol=2e-3)


def a_run_that_was_stopped_goes_on_as_if_it_had_not_been() -> None:
    """`train_network` twice: at once, and stopped in its middle."""
    whole, parts = Path(sys.argv[1]) / "whole", Path(sys.argv[1]) / "parts"
    for run in (whole, parts):
        (run / "checkpoints").mkdir(parents=True)
    recipe = {"train__epochs": 6, "train__validate_every": 2, "model__dropout": 0.3}
    stages = [{"image_px": 24, "share": 0.5}, {"image_px": 32, "share": 0.5}]

    def train(run: Path, **options: Any) -> Any:
        inputs = _inputs(**recipe, train__stages=stages)
        return train_network(RunFolder(run), inputs.recipe, inputs.photos, **options)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise Stop

    first = train(whole)
    _raised(Stop, lambda: train(parts, observer=Observer(watch=stop)))
    second = train(parts)
    assert first.plan == second.plan
    tables = [pd.read_csv(run / "history.csv").drop(columns="seconds") for run in (whole, parts)]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["val_loss"].notna().tolist() == [False, True, True, True, False, True]
    models = [keras.saving.load_model(run / "model.keras") for run in (whole, parts)]
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def a_loss_that_is_not_finite_stops_at_its_step() -> None:
    """The step is named, and the message says what to do."""
    run = RunFolder(Path(sys.argv[1]) / "nan")
    run.checkpoints.mkdir(parents=True)
    inputs = _inputs(train__learning_rate=1e30, train__optimizer="sgd", model__batchnorm=False)
    assert "step" in str(_raised(TrainingStoppedError, lambda: train_network(run, inputs.recipe, inputs.photos)))


def _raised(kind: type[Exception], call: Any) -> Exception:
    """Call, and return the error that it must raise."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


CHECKS = (
    batches_are_those_of_the_processor,
    draws_depend_on_seed_epoch_and_index_alone,
    packed_pictures_come_back_and_each_is_read_once,
    pictures_go_on_as_their_reflections,
    only_randaugment_is_left_to_the_processor,
    blocks_are_the_plain_layers,
    steps_are_those_of_keras,
    photos_that_do_not_fit_give_the_same_losses,
    a_run_that_was_stopped_goes_on_as_if_it_had_not_been,
    a_loss_that_is_not_finite_stops_at_its_step,
)


def main() -> None:
    """Run all checks."""
    training._is_accelerated = lambda: True  # as on a machine with a GPU
    found = {}
    for check in CHECKS:
        try:
            check()
            found[check.__name__] = ""
        except Exception:  # noqa: BLE001
            found[check.__name__] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
