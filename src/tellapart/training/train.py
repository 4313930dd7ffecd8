"""Trains a network on pictures: inputs, model, plan, resume, fit, save. Knows nothing about folders of photos.

One call owns one run folder's checkpoints, history and ``model.keras``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.batches import CleanBatches, TrainingBatches
from tellapart.data.cache import Pictures
from tellapart.errors import InputError, RunError
from tellapart.files import atomic_file
from tellapart.models.build import build, build_for_training
from tellapart.randomness import derived_seed, generator
from tellapart.records import Progress, no_progress
from tellapart.settings import Recipe, Stage
from tellapart.training.callbacks import Announce, Checkpoints, EvaluatedWeights, Journal, tensorboard, write_log
from tellapart.training.checkpoint import load_checkpoint, load_weights, save_weights
from tellapart.training.schedule import PlannedRate, Segment, plan, stages_of
from tellapart.training.timing import Budget, Precision, choose_precision, seconds_per_image

_PARTS_OF_A_BUDGET = 8
"""A budgeted run is planned again so many times, since machines do not keep their speed."""


@dataclass(frozen=True)
class Training:
    """How one training went.

    Attributes:
        best_epoch: the epoch whose weights were kept, counted from 1.
        seconds: spent in epochs, validation included.
        images_per_second: training pictures per second of `seconds`.
        precision: what was computed in, and why.
        segments: what was done, to do it again.
    """

    best_epoch: int
    seconds: float
    images_per_second: float
    precision: Precision
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Photos:
    """What is trained on.

    Attributes:
        pictures: all readable photos of the data set, as the network sees them.
        sources: the same photos, larger where the recipe asks for it: training pictures are cut from them.
        frame: their label and split, in the order of `pictures`.
        classes: names in the order of the network's outputs.
    """

    pictures: Pictures
    sources: Pictures
    frame: pd.DataFrame
    classes: list[str]

    def side(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (positions, class numbers) of the photos on one side of the split."""
        positions = np.flatnonzero((self.frame["split"] == name).to_numpy())
        numbers = self.frame["label"].map({label: i for i, label in enumerate(self.classes)}).to_numpy(np.int64)
        return positions, numbers[positions]


def train_network(
    run: Path,
    recipe: Recipe,
    photos: Photos,
    *,
    deadline: float | None = None,
    replay: Sequence[Segment] = (),
    progress: Progress = no_progress,
    announce: Announce = lambda line: None,
) -> Training:
    """Train the recipe's network, or go on where the run was interrupted, and write ``model.keras``.

    Args:
        run: the run folder; ``checkpoints/last.npz`` in it is gone on from.
        recipe: what to do.
        photos: what to do it with.
        deadline: by `time.time`, when everything must be done; replaces ``train.epochs``.
        replay: segments of an earlier run to go through exactly, instead of planning.
        progress: called often with (what, done, total).
        announce: called with the plan before the first step.

    Raises:
        InputError: too few photos.
        TrainingStoppedError: the loss is no longer finite; checkpoints are kept.
    """
    # Inputs
    settings, num_classes = recipe.train, len(photos.classes)
    positions, targets = photos.side("train")
    if num_classes < 2 or len(positions) < num_classes:
        raise InputError(
            f"Found {num_classes} class(es) and {len(positions)} readable training photos. "
            "Expected at least two classes with a photo each."
        )

    def batches_at(image_px: int, epoch: int = 0) -> TrainingBatches:
        return TrainingBatches(
            photos.sources, positions, targets, num_classes=num_classes, augment=recipe.augment,
            batch_size=settings.batch_size, image_px=image_px, seed=settings.seed, epoch=epoch,
            workers=settings.workers or os.cpu_count() or 1,
        )  # fmt: skip

    held_out, held_out_targets = photos.side("validation")
    validation = CleanBatches(
        photos.pictures, held_out, held_out_targets, num_classes=num_classes, batch_size=128, workers=os.cpu_count() or 1
    )

    # Model and optimiser
    if settings.deterministic and keras.backend.backend() == "tensorflow":
        from tellapart.models.fused import make_deterministic

        make_deterministic()
    stages = stages_of(recipe)
    state: dict[str, Any] = {"epoch": 0, "done": 0.0, "segments": [], "image_px": stages[0].image_px}
    resumes = (run / "checkpoints" / "last.npz").exists()
    saved = load_weights(run / "checkpoints" / "last.npz")[1] if resumes else {}
    first = batches_at(stages[-1].image_px)
    wanted = saved.get("precision", settings.precision)
    precision = choose_precision(wanted, lambda name: _compiled(recipe, num_classes, name)[0], first)
    model, rate = _compiled(recipe, num_classes, precision.name)
    if resumes:
        state = load_checkpoint(run / "checkpoints" / "last.npz", model)
        announce(f"Going on after epoch {state['epoch']}.")
    else:
        state |= {"precision": precision.name, "precision_why": precision.reason,
                  "precision_ms_per_image": precision.milliseconds_per_image}  # fmt: skip

    # Plan
    budget = None
    if deadline is not None and not replay:
        budget = _measure(recipe, num_classes, precision.name, stages, batches_at, photos, deadline, len(held_out))
    waiting = list(replay)[len(state["segments"]) - ("segment" in state) :]
    if not resumes:
        announce(_describe(recipe, stages, budget, precision, len(positions), state["done"]))

    # Fit
    evaluated = EvaluatedWeights(_clean_photos(recipe, photos, positions))
    while not state.get("stopped") and (state["done"] < 1 or "segment" in state):
        if "segment" not in state:
            _enter(state, _next_segment(recipe, stages, state, budget, waiting), int(model.optimizer.iterations))
        segment = Segment.from_dict(state["segment"])
        batches = batches_at(segment.image_px, state["epoch"])
        rate.enter(segment, state["first_step"], segment.epochs * len(batches))
        if keras.backend.backend() != "tensorflow":
            model.train_function = None  # traced with the old speed of the schedule
        last_epoch = state["first_epoch"] + segment.epochs
        started, first_epoch = time.perf_counter(), state["epoch"]
        model.fit(
            batches,
            initial_epoch=state["epoch"],
            epochs=last_epoch,
            shuffle=False,
            validation_data=validation if len(held_out) else None,
            validation_freq=_looks(settings.validate_every, last_epoch),
            callbacks=[
                evaluated,
                Checkpoints(run / "checkpoints", evaluated, state, settings.patience),
                Journal(run, state, len(batches), progress),
                *tensorboard(run),
            ],
            verbose=0,
        )
        if budget is not None:
            mean = (time.perf_counter() - started) / max(1, state["epoch"] - first_epoch)
            budget.epoch_seconds[segment.image_px] = mean - budget.validation_seconds / settings.validate_every
        if state["epoch"] == last_epoch:
            _leave(state)

    # Save
    if not len(held_out) or "best" not in state:
        model.optimizer.build(model.trainable_variables)
        evaluated.set_model(model)
        evaluated.on_test_begin()
        evaluated.on_test_end()
        state["best"] = {"epoch": state["epoch"], "score": None}
        save_weights(run / "checkpoints" / "best.npz", evaluated.weights, state["best"])
    _save_plain(run, recipe, num_classes)
    seconds = state.get("seconds_training", 0.0)
    num_images = state["epoch"] * len(first) * first.batch_size
    write_log(run, "trained", epochs=state["epoch"], best=state["best"], seconds=seconds, segments=state["segments"])
    return Training(
        best_epoch=int(state["best"]["epoch"]),
        seconds=seconds,
        images_per_second=num_images / seconds if seconds else 0.0,
        precision=Precision(state["precision"], state["precision_ms_per_image"], state["precision_why"]),
        segments=tuple(Segment.from_dict(segment) for segment in state["segments"]),
    )


def optimizer_for(recipe: Recipe, rate: Any) -> keras.optimizers.Optimizer:
    """Return the recipe's Keras optimiser with `rate` as its learning rate."""
    settings = recipe.train
    average = {"use_ema": True, "ema_momentum": settings.weight_average} if settings.weight_average else {}
    if settings.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay, **average)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return optimizer
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **average)
    return keras.optimizers.Adam(rate, **average)


def _compiled(recipe: Recipe, num_classes: int, precision: str) -> tuple[keras.Model, PlannedRate]:
    seed = derived_seed(recipe.train.seed, "network")
    model = build_for_training(recipe.model, num_classes, precision=precision, seed=seed)
    rate = PlannedRate(recipe.train)
    model.compile(
        optimizer=optimizer_for(recipe, rate),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.train.label_smoothing),
        metrics=["accuracy"],
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",  # XLA is slower on the CPU
    )
    return model, rate


def _measure(
    recipe: Recipe, num_classes: int, precision: str, stages: Sequence[Stage], batches_at: Any,
    photos: Photos, deadline: float, num_validation: int,
) -> Budget:  # fmt: skip
    """Time a few steps at each picture size on a throw-away model."""
    model, rate = _compiled(recipe, num_classes, precision)
    rate.enter(Segment(stages[0].image_px, 1, (0.0, 0.01)), 0, 1000)
    epoch_seconds, slowest = {}, 0.0
    for image_px in {stage.image_px for stage in stages}:
        batches = batches_at(image_px)
        seconds = seconds_per_image(model, batches)
        epoch_seconds[image_px] = seconds * len(batches) * batches.batch_size
        slowest = max(slowest, seconds * (recipe.data.image_px / image_px) ** 2)
    seen = num_validation + recipe.train.recalibrate_photos
    return Budget(
        deadline=deadline,
        epoch_seconds=epoch_seconds,
        validation_seconds=0.35 * slowest * seen,
        final_seconds=10 + 0.5 * slowest * len(photos.pictures),
    )


def _describe(
    recipe: Recipe, stages: Sequence[Stage], budget: Budget | None, precision: Precision, num_train: int, done: float
) -> str:
    """Say in one line what training will do."""
    epochs = recipe.train.epochs if budget is None else _budgeted_epochs(recipe, stages, budget, done)
    segments = plan(stages, epochs, start=done)
    parts = ", then ".join(f"{part.epochs} at {part.image_px} px" for part in segments)
    line = f"Plan: {num_train:,} training photos, {epochs} epochs ({parts}), {precision.name}"
    if budget is not None:
        seconds = sum(part.epochs * budget.epoch_seconds[part.image_px] for part in segments)
        seconds += epochs / recipe.train.validate_every * budget.validation_seconds
        line += f"; about {seconds:.0f} s of training and {budget.final_seconds:.0f} s for the final measurement"
        if time.time() + seconds + budget.final_seconds > budget.deadline + 1:
            line += ". Even one epoch takes longer than the time given: it will run over"
    return line + "."


def _next_segment(
    recipe: Recipe, stages: Sequence[Stage], state: dict[str, Any], budget: Budget | None, waiting: list[Segment]
) -> Segment:
    if waiting:
        return waiting.pop(0)
    if budget is None:
        left = recipe.train.epochs - state["epoch"]
        return plan(stages, left, start=state["done"])[0]
    left = _budgeted_epochs(recipe, stages, budget, state["done"])
    whole = left / (1 - state["done"])
    return plan(stages, left, start=state["done"], longest=math.ceil(whole / _PARTS_OF_A_BUDGET))[0]


def _budgeted_epochs(recipe: Recipe, stages: Sequence[Stage], budget: Budget, done: float) -> int:
    """Small data sets would get thousands of epochs: four times the recipe's is the most."""
    most = max(1, round(4 * recipe.train.epochs * (1 - done)))
    return min(most, budget.epochs_left(recipe, stages, done))


def _enter(state: dict[str, Any], segment: Segment, first_step: int) -> None:
    """Write a segment into the state: what a resumed run needs to go on inside it."""
    state["segment"] = segment.to_dict()
    state["segments"] = [*state["segments"], segment.to_dict()]
    state["first_step"], state["first_epoch"] = first_step, state["epoch"]
    state["image_px"] = segment.image_px
    left = 1 - segment.progress[1]
    per_epoch = (segment.progress[1] - segment.progress[0]) / segment.epochs
    state["epochs"] = state["epoch"] + segment.epochs + round(left / per_epoch)


def _leave(state: dict[str, Any]) -> None:
    state["done"] = min(1.0, state.pop("segment")["progress"][1])
    if state["done"] > 1 - 1e-9:
        state["done"] = 1.0


def _looks(validate_every: int, last_epoch: int) -> list[int]:
    """Return the epochs after which Keras validates, counted from 1: every so many, and the last."""
    return sorted({*range(validate_every, last_epoch + 1, validate_every), last_epoch})


def _clean_photos(recipe: Recipe, photos: Photos, positions: NDArray[np.int64]) -> CleanBatches | None:
    count = min(recipe.train.recalibrate_photos, len(positions))
    if not count:
        return None
    chosen = generator(recipe.train.seed, "recalibrate").choice(positions, count, replace=False)
    return CleanBatches(photos.pictures, np.sort(chosen), batch_size=128)


def _save_plain(run: Path, recipe: Recipe, num_classes: int) -> None:
    """Write the best weights as a model of plain Keras layers, for any Keras to open."""
    weights, _ = load_weights(run / "checkpoints" / "best.npz")
    model = build(recipe.model, num_classes, recipe.data.image_px)
    if [value.shape for value in weights] != [tuple(variable.shape) for variable in model.weights]:
        raise RunError(f"{run / 'checkpoints' / 'best.npz'} belongs to another network than the run's recipe.")
    model.set_weights(weights)
    model.save(run / ".model.keras")
    with atomic_file(run / "model.keras") as stream:
        stream.write((run / ".model.keras").read_bytes())
    (run / ".model.keras").unlink()
