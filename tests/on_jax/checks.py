"""Checks of what trains on an accelerator, on JAX's processor device, in an environment with JAX.

Run as `python checks.py FOLDER`, by tests/training/test_on_device.py. Prints one JSON object: of each check its name
and "", or what failed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import jax
import keras
import numpy as np
import pandas as pd

import tellapart.training.train as training
from tellapart.data.augment import change_levels
from tellapart.data.batches import TrainingBatches
from tellapart.data.cache import Pictures
from tellapart.data.mix import draw_mixing, mix
from tellapart.errors import TrainingStoppedError
from tellapart.models.fused_jax import FusedBlock
from tellapart.records import Observer
from tellapart.run_folder import RunFolder
from tellapart.settings import Augment, recipe_from, with_settings
from tellapart.training import device_batches, on_device
from tellapart.training.callbacks import EvaluatedWeights, tensorboard
from tellapart.training.inputs import Inputs, Photos
from tellapart.training.network import compiled, set_average
from tellapart.training.on_device import OnDevice
from tellapart.training.schedule import Segment
from tellapart.training.timing import Precision, precision_on_device
from tellapart.training.train import precision_ahead, train_network

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


def mixing_brings_a_partners_noise_along() -> None:
    """Erasing comes before mixing: the device's own erased pictures, mixed by the processor's `mix`."""
    make = jax.jit(device_batches.make, static_argnums=3)
    for augment in (Augment(erase=0.6, mixup=0.4), Augment(erase=0.6, cutmix=1.0)):
        batches = TrainingBatches(
            Held(LEVELS), np.arange(90), np.arange(90) % 5, num_classes=5, augment=augment, batch_size=16,
            image_px=32, seed=3,
        )  # fmt: skip
        packed = device_batches.pack(batches.source, 90, batches.source_px, 2)
        draws = jax.tree.map(lambda part: part[0], device_batches.draw(batches, 2, 3))
        # Not mixed, in arrays of the same shapes: the same compiled function makes both.
        erased = draws._replace(kept=np.ones_like(draws.kept), boxes=np.zeros_like(draws.boxes))
        alone, labels = make(packed, batches.targets, erased, 32)
        images, rows = make(packed, batches.targets, draws, 32)
        mixing = draw_mixing(16, 32, augment, batches.generator("mix", 2))
        expected, targets = mix(np.array(alone), np.asarray(labels), mixing)
        assert np.abs(np.asarray(images).astype(np.int64) - expected).max() <= 1
        np.testing.assert_allclose(rows, targets, atol=1e-6)
        assert (draws.erased[:, 2] > 0).sum() > 5, "noise to bring along"


def levels_are_those_of_the_processor_beyond_black_and_white_too() -> None:
    """Contrast and brightness clip one after the other: what contrast makes white does not stay it when it darkens."""
    changes = [(contrast, brightness) for contrast in (0.1, 1.0, 1.9) for brightness in (-0.7, 0.0, 0.7)]
    images = np.stack([NOISE[number, :40, :40] for number in range(len(changes))])
    levels = np.array(changes, np.float32)
    found = np.asarray(device_batches._change_levels(jax.numpy.asarray(images, np.float32), levels))
    for image, other, (contrast, brightness) in zip(images, found, changes, strict=True):
        expected = image.copy()
        change_levels(expected, contrast, brightness)
        apart = np.abs(other - expected)
        assert apart.max() <= 1, (contrast, brightness)
        assert (apart == 0).mean() > 0.99, (contrast, brightness)


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


def _inputs(teacher: np.ndarray | None = None, **changes: Any) -> Inputs:
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
    return Inputs(recipe, Photos(Held(small), Held(large), frame, ["c0", "c1", "c2"], teacher))


@contextmanager
def _set(owner: Any, **values: Any) -> Iterator[None]:
    """Give a module other values for a while."""
    before = {name: getattr(owner, name) for name in values}
    vars(owner).update(values)
    try:
        yield
    finally:
        vars(owner).update(before)


def _feeding(inputs: Inputs, room: int) -> OnDevice:
    """What sends photos to the device, with so many bytes for them; nothing is compiled."""
    device = object.__new__(OnDevice)
    device.inputs, device._room = inputs, room
    return device


def calls_are_the_steps_of_an_epoch_in_turn() -> None:
    """None is longer than what is given; one length where one divides the epoch, else a shorter last call."""
    for steps in (1, 2, 3, 7, 8, 12, 15, 17):
        batches = TrainingBatches(
            Held(LEVELS), np.arange(steps), np.zeros(steps, np.int64), num_classes=2, augment=Augment(), batch_size=1,
            image_px=32, seed=0,
        )  # fmt: skip
        assert (len(batches), batches.source_px) == (steps, 64)
        for most in (1, 2, 5, 8, 50):
            resident = _feeding(_inputs(), 10**9), {"_PIXELS_AT_ONCE": most * 32**2 + 1}
            streamed = _feeding(_inputs(), 0), {"_BYTES_AT_ONCE": most * 4 * 64**2 + 1}
            for device, limit in (resident, streamed):
                with _set(on_device, **limit):
                    calls = device._calls(batches)
                assert [step for first, last in calls for step in range(first, last)] == list(range(steps))
                lengths, longest = [last - first for first, last in calls], min(most, steps)
                fitting = [length for length in range(longest // 2 + 1, longest + 1) if steps % length == 0]
                assert max(lengths) == (fitting or [longest])[-1]
                assert set(lengths[:-1]) <= {max(lengths)}
        with _set(on_device, _PIXELS_AT_ONCE=1):
            assert len(_feeding(_inputs(), 10**9)._calls(batches)) == steps, "a call has a step at least"


def arguments_are_made_one_call_ahead_and_no_more() -> None:
    """Each holds as many photos as the device may be sent at once."""
    begun: list[int] = []

    def feeds(count: int, broken: int) -> Iterator[on_device._Feed]:
        def arguments(number: int) -> int:
            return number // (number != broken)

        for number in range(count):
            begun.append(number)
            yield on_device._Feed(0, number, number + 1, [], lambda number=number: arguments(number))

    with ThreadPoolExecutor(2) as pool:
        for turn, feed in enumerate(on_device._one_ahead(pool, feeds(4, -1))):
            assert (feed.first, feed.arguments) == (turn, turn)
            assert begun == list(range(min(turn + 2, 4)))
        seen: list[int] = []
        _raised(ZeroDivisionError, lambda: seen.extend(feed.first for feed in on_device._one_ahead(pool, feeds(4, 2))))
    assert seen == [0, 1], "what fails to be made fails in its turn"


def each_validation_photo_counts_once_however_they_are_divided() -> None:
    """In batches of 5, whose last one is filled, at once or some of them at a time, held or sent again each time."""
    inputs = _inputs()
    inputs.validation.batch_size = 5
    wanted = inputs.photos.pictures.levels[68:]
    for steps_at_once, num_parts, steps in ((1, 5, 1), (2, 3, 2), (3, 2, 3), (4, 2, 3), (99, 1, 5)):
        for room in (0, 10**9):
            with _set(on_device, _BYTES_AT_ONCE=steps_at_once * 5 * 4 * 32**2):
                parts = _feeding(inputs, room)._validation_parts()
            assert len(parts) == num_parts
            assert {part()[2].shape for part in parts} == {(steps, 5)}, "one compiled function, as short as can be"
            assert (parts[0]()[0] is parts[0]()[0]) == bool(room)
            for place, expected in ((0, wanted), (1, inputs.validation.targets)):
                found = []
                for part in (part() for part in parts):
                    values = device_batches.unpack(part[0]) if place == 0 else part[1]
                    found.append(np.asarray(values)[np.asarray(part[2]) == 1])
                np.testing.assert_array_equal(np.concatenate(found), expected)
    nothing = replace(inputs.photos, frame=inputs.photos.frame.assign(split="train"))
    assert _feeding(Inputs(inputs.recipe, nothing), 10**9)._validation_parts() == []


def statistics_come_from_whole_batches() -> None:
    """Of 48 clean photos in batches of 20 the last eight are left out: sums over batches weigh all alike."""
    inputs = _inputs()
    clean = inputs.clean()
    clean.batch_size = 20
    inputs.clean = lambda: clean
    found = _feeding(inputs, 10**9)._clean_pictures()
    assert found.shape == (2, 20, 32, 32)
    pictures = np.asarray(device_batches.unpack(found)).reshape(40, 32, 32, 3)
    np.testing.assert_array_equal(pictures, clean.pictures.levels[clean.positions[:40]])
    assert _feeding(_inputs(train__recalibrate_photos=0), 10**9)._clean_pictures() is None


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


class Told(keras.callbacks.Callback):
    """Keeps what it is told, and stops after an epoch."""

    def __init__(self, last_epoch: int = 99) -> None:
        super().__init__()
        self.last_epoch, self.epochs, self.steps = last_epoch, [], {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note that it begins."""
        self.epochs.append((epoch, None))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the mean loss of the epoch so far."""
        self.steps[self.epochs[-1][0], batch] = logs["loss"]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note what is logged, and what a checkpoint would hold: the steps of the optimiser."""
        steps = int(self.model.optimizer.iterations)
        self.epochs.append((epoch, {**(logs or {}), "steps": steps}))
        self.model.stop_training = epoch == self.last_epoch


def no_fit_takes_a_batch_to_build_metrics() -> None:
    """Keras would not give it back: a run of two segments was another one when it was resumed in the second."""
    model, _ = compiled(_inputs().recipe, 3, "float32")
    assert model._compile_metrics.built
    assert model._compile_loss.built
    assert {float(value) for value in model.get_metrics_result().values()} == {0.0}


def epochs_are_those_of_keras_fit() -> None:
    """Two epochs, with a teacher, in calls of two steps, and one validation, after the second.

    What callbacks are told and when, what is validated, and what is left: the rate and the length of the average were
    not known when the steps were compiled. Then two things that must leave no trace: a stop, and steps that are timed.
    """
    teacher = np.random.default_rng(5).dirichlet(np.ones(3), 90)
    found = []
    for on_the_device in (False, True):
        inputs = _inputs(
            teacher, distill__teacher="somewhere", distill__temperature=2.0, model__width=0.25, train__optimizer="sgd",
            train__learning_rate=0.05, train__final_learning_rate=0.0, train__recalibrate_photos=0,
        )  # fmt: skip
        inputs.validation.batch_size = 5
        model, rate = compiled(inputs.recipe, 3, "float32", 1000)
        told, evaluated, first = Told(), EvaluatedWeights(inputs.clean()), model.get_weights()
        with _set(on_device, _PIXELS_AT_ONCE=2 * 16 * 32**2):
            device = OnDevice(model, rate, inputs, [32]) if on_the_device else None
        rate.enter(Segment(32, 2, (0.4, 1.0)), 0, 8)
        set_average(model.optimizer, inputs.recipe, 30)
        if device is None:
            for epoch in (0, 1):
                batches = inputs.training(32, epoch)
                images, rows = map(np.concatenate, zip(*map(batches.__getitem__, range(4)), strict=True))
                model.fit(
                    images, rows, batch_size=16, shuffle=False, verbose=0, initial_epoch=epoch, epochs=epoch + 1,
                    validation_data=inputs.validation, validation_freq=[2], callbacks=[evaluated, told],
                )  # fmt: skip
        else:
            with _set(on_device, _PIXELS_AT_ONCE=2 * 16 * 32**2):
                device.fit(32, first_epoch=0, last_epoch=2, looks=[2], evaluated=evaluated, callbacks=[told])
        found.append((told, evaluated.weights, model.get_weights()))
    (keras_told, *keras_weights), (told, *weights) = found
    assert [(epoch, logs and sorted(logs)) for epoch, logs in told.epochs] == [
        (epoch, logs and sorted(logs)) for epoch, logs in keras_told.epochs
    ]
    for (_, ours), (_, theirs) in zip(told.epochs, keras_told.epochs, strict=True):
        for name in ours or {}:
            tolerance = 0.05 if "accuracy" in name else 2e-3 * theirs[name]
            assert abs(ours[name] - theirs[name]) <= tolerance, (name, ours[name], theirs[name])
    assert list(told.steps) == [(0, 1), (0, 3), (1, 1), (1, 3)], "the last step of each call"
    for place, loss in told.steps.items():
        assert abs(loss - keras_told.steps[place]) <= 2e-3 * loss, place
    for ours, theirs, start in zip(
        (*weights[0], *weights[1]), (*keras_weights[0], *keras_weights[1]), first * 2, strict=True
    ):
        assert np.linalg.norm(ours - theirs) <= 0.2 * np.linalg.norm(theirs - start), "as far, the same way"
    moved, averaged = (
        sum(np.abs(ours - start).sum() for ours, start in zip(part, first, strict=True)) for part in weights[::-1]
    )
    assert averaged < 0.9 * moved, "an average lags behind"
    with _set(on_device, _PIXELS_AT_ONCE=2 * 16 * 32**2):
        before = [np.asarray(variable) for variable in (*model.variables, *model.optimizer.variables)]
        assert device.seconds_per_image(32) > 0
        for variable, value in zip((*model.variables, *model.optimizer.variables), before, strict=True):
            np.testing.assert_array_equal(variable, value)
        stopped = Told(last_epoch=2)
        device.fit(32, first_epoch=2, last_epoch=6, looks=[], evaluated=evaluated, callbacks=[stopped])
    assert [(epoch, logs and logs["steps"]) for epoch, logs in stopped.epochs] == [(2, None), (2, 12), (3, None)]
    assert list(stopped.steps) == [(2, 1), (2, 3)], "calls that were under way do not count"
    assert int(model.optimizer.iterations) == 12


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
        assert [feed.last for feed in device._feeds(32, 0, 2, 0.5) if feed.ends] == [2, 2], "half of four steps each"
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
    recipe = {"train__epochs": 6, "train__validate_every": 2, "model__dropout": 0.3, "model__width": 0.25}
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
    inputs = _inputs(train__learning_rate=1e30, train__optimizer="sgd", model__batchnorm=False)
    run = RunFolder(Path(sys.argv[1]) / "nan")
    run.checkpoints.mkdir(parents=True)
    error = _raised(TrainingStoppedError, lambda: train_network(run, inputs.recipe, inputs.photos))
    assert "in epoch 1, step 2. The last good checkpoint is kept" in str(error), error
    assert not run.last_checkpoint.exists()


def a_call_names_its_first_step_whose_loss_is_not_finite() -> None:
    """The steps 4 to 7 of an epoch: what was finite before it is no part of the message."""
    inputs, nan = _inputs(), float("nan")
    for losses, named in (([1.0, nan, 2.0, nan], 5), ([nan] * 4, 4), ([1.0, 2.0, 3.0, float("inf")], 7)):
        told: list[tuple[int, float]] = []
        watchers = keras.callbacks.CallbackList()
        watchers.on_train_batch_end = lambda step, logs: told.append((step, logs["loss"]))  # noqa: B023
        feed = on_device._Feed(0, 4, 8, inputs.training(8), None)
        metrics = on_device.Metrics(np.array(losses), np.zeros(4), np.zeros(4))
        _feeding(inputs, 0)._report(on_device._Called(feed, None, metrics, None), np.zeros(2), 9, None, watchers)
        assert told[0][0] == named
        assert not np.isfinite(told[0][1])
        assert told[1][0] == 7, "and then the mean of the epoch"


def a_precision_is_chosen_by_a_convolution_at_half_the_side() -> None:
    """bfloat16 where it takes nine tenths at most; what the recipe names is not measured."""
    asked: list[int] = []
    for bfloat16_ms, name in ((1.8, "mixed_bfloat16"), (1.81, "float32"), (0.5, "mixed_bfloat16")):
        times = {"float32": 2.0, "bfloat16": bfloat16_ms}
        with _set(on_device, convolution_milliseconds=lambda px: [times, asked.append(px)][0]):  # noqa: B023
            found = precision_on_device("auto", 64)
            assert precision_on_device("float32", 64) == Precision("float32", {}, "set in the recipe")
        reason = f"a convolution takes {bfloat16_ms:.2f} ms in bfloat16 and 2.00 ms in float32"
        assert found == Precision(name, {}, reason)
    assert asked == [32] * 3


def a_run_prepares_for_jax_alone() -> None:
    """What is compiled is kept in the cache, unless the environment names a folder; no TensorFlow is needed."""
    before, folder = jax.config.jax_compilation_cache_dir, Path(sys.argv[1]) / "cache"
    try:
        precision = precision_ahead(_inputs(train__precision="mixed_bfloat16").recipe, folder)
        assert precision.result(timeout=60) == Precision("mixed_bfloat16", {}, "set in the recipe")
        assert jax.config.jax_compilation_cache_dir == str(folder / "xla")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = "elsewhere"
        on_device.keep_compiled(folder / "other")
        assert jax.config.jax_compilation_cache_dir == str(folder / "xla")
    finally:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        jax.config.update("jax_compilation_cache_dir", before)
    with _set(training, _is_accelerated=lambda: False):
        assert precision_ahead(_inputs().recipe, folder) is None
    assert tensorboard(RunFolder(folder)) == ()
    assert on_device.peak_memory_mb() is None, "a processor does not say"


def a_gpu_without_the_flag_for_equal_bits_is_warned_of() -> None:
    """JAX reads its flags when it starts: a run can only say that they are missing."""
    for gpus, flags, warned in (
        (["gpu:0"], "", True),
        (["gpu:0"], training._JAX_FLAG + "=true", False),
        ([], "", False),
    ):
        said: list[str] = []
        before = os.environ.get("XLA_FLAGS")
        os.environ["XLA_FLAGS"] = flags
        try:
            with _set(training, accelerators=lambda: gpus):  # noqa: B023
                training._be_deterministic(said.append)
        finally:
            os.environ.pop("XLA_FLAGS") if before is None else os.environ.update(XLA_FLAGS=before)
        assert [training._JAX_FLAG in line for line in said] == [True] * warned


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
    mixing_brings_a_partners_noise_along,
    levels_are_those_of_the_processor_beyond_black_and_white_too,
    packed_pictures_come_back_and_each_is_read_once,
    pictures_go_on_as_their_reflections,
    only_randaugment_is_left_to_the_processor,
    blocks_are_the_plain_layers,
    calls_are_the_steps_of_an_epoch_in_turn,
    arguments_are_made_one_call_ahead_and_no_more,
    each_validation_photo_counts_once_however_they_are_divided,
    statistics_come_from_whole_batches,
    steps_are_those_of_keras,
    no_fit_takes_a_batch_to_build_metrics,
    epochs_are_those_of_keras_fit,
    photos_that_do_not_fit_give_the_same_losses,
    a_run_that_was_stopped_goes_on_as_if_it_had_not_been,
    a_loss_that_is_not_finite_stops_at_its_step,
    a_call_names_its_first_step_whose_loss_is_not_finite,
    a_precision_is_chosen_by_a_convolution_at_half_the_side,
    a_run_prepares_for_jax_alone,
    a_gpu_without_the_flag_for_equal_bits_is_warned_of,
)


def main() -> None:
    """Run all checks."""
    training._is_accelerated = lambda: True  # as on a machine with a GPU
    # Checks train the same network again and again, and most of their time is compilation.
    jax.config.update("jax_compilation_cache_dir", str(Path(sys.argv[1]) / "compiled"))
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
