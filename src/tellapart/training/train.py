"""Trains a network on pictures: inputs, model, plan, fit, save. Knows nothing about folders of photos.

One call owns one run folder's checkpoints, history and ``model.keras``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from tellapart.training.callbacks import (
    Announce,
    Checkpoints,
    EvaluatedWeights,
    Journal,
    tensorboard,
    write_log,
)
from tellapart.training.checkpoint import load_checkpoint, load_weights, save_weights
from tellapart.training.environment import accelerators
from tellapart.training.schedule import PlannedRate, Segment, plan, stages_of
from tellapart.training.timing import Budget, Precision, choose_precision, seconds_per_image

_CORES = os.cpu_count() or 1
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
        plan: what was done, to do it again.
    """

    best_epoch: int
    seconds: float
    images_per_second: float
    precision: Precision
    plan: Replay


@dataclass(frozen=True)
class Replay:
    """What one training did, for another to do the same.

    Attributes:
        segments: in their order.
        steps: as many as were planned at first; the weight average takes its length from them.
    """

    segments: tuple[Segment, ...]
    steps: int


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
        return positions.astype(np.int64), numbers[positions].astype(np.int64)


def train_network(
    run: Path,
    recipe: Recipe,
    photos: Photos,
    *,
    deadline: float | None = None,
    replay: Replay | None = None,
    progress: Progress = no_progress,
    announce: Announce = lambda line: None,
) -> Training:
    """Train the recipe's network, or go on where the run was interrupted, and write ``model.keras``.

    Args:
        run: the run folder; ``checkpoints/last.npz`` in it is gone on from.
        recipe: what to do.
        photos: what to do it with.
        deadline: by `time.time`, when everything must be done; replaces ``train.epochs``.
        replay: an earlier run's plan to go through exactly, instead of planning.
        progress: called often with (what, done, total).
        announce: called with the plan before the first step.

    Raises:
        InputError: too few photos.
        TrainingStoppedError: the loss is no longer finite; checkpoints are kept.
    """
    # Inputs
    inputs = _Inputs(recipe, photos)
    last = run / "checkpoints" / "last.npz"
    resumes = last.exists()
    if recipe.train.deterministic and keras.backend.backend() == "tensorflow":
        from tellapart.models.fused import make_deterministic

        make_deterministic()

    state = load_weights(last)[1] if resumes else {}
    precision = _choose_precision(inputs, state)

    # Plan
    stages = stages_of(recipe)
    budget = None if deadline is None or replay else _measure(inputs, precision, stages, deadline)
    if not resumes:
        epochs = _planned_epochs(recipe, stages, budget, 0.0)
        steps = epochs * inputs.images_per_epoch // recipe.train.batch_size
        if replay:
            epochs, steps = sum(segment.epochs for segment in replay.segments), replay.steps
        state = {"epoch": 0, "done": 0.0, "segments": [], "planned_steps": steps, **asdict(precision)}
        announce(_describe(inputs, stages, epochs, budget, precision.name))
    waiting = list(replay.segments[len(state["segments"]) :]) if replay else []

    # Model and optimiser
    model, rate = _compiled(recipe, inputs.num_classes, precision.name, state["planned_steps"])
    if resumes:
        state = load_checkpoint(last, model)
        announce(f"Going on after epoch {state['epoch']}.")

    # Fit
    evaluated = EvaluatedWeights(inputs.clean())
    while not state.get("stopped") and (state["done"] < 1 or "segment" in state):
        if "segment" not in state:
            _enter(state, _next_segment(recipe, stages, state, budget, waiting), int(model.optimizer.iterations))
        started, first_epoch = time.perf_counter(), state["epoch"]
        _fit_segment(run, inputs, model, rate, state, evaluated, progress)
        if budget is not None and state["epoch"] > first_epoch:
            budget.learn(state["image_px"], (time.perf_counter() - started) / (state["epoch"] - first_epoch))
        if "segment" in state and state["epoch"] == state["first_epoch"] + state["segment"]["epochs"]:
            _leave(state)

    # Save
    if "best" not in state:
        _keep_last(run, model, evaluated, state)
    _save_plain(run, recipe, inputs.num_classes)
    seconds = state.get("seconds_training", 0.0)
    write_log(run, "trained", epochs=state["epoch"], best=state["best"], seconds=seconds, segments=state["segments"])
    return Training(
        best_epoch=int(state["best"]["epoch"]),
        seconds=seconds,
        images_per_second=state["epoch"] * inputs.images_per_epoch / seconds if seconds else 0.0,
        precision=Precision(state["name"], state["milliseconds_per_image"], state["reason"]),
        plan=Replay(tuple(Segment.from_dict(values) for values in state["segments"]), state["planned_steps"]),
    )


class _Inputs:
    """The photos of a run as batches: for training at any size, for validation, and clean ones."""

    def __init__(self, recipe: Recipe, photos: Photos) -> None:
        self.recipe = recipe
        self.photos = photos
        self.num_classes = len(photos.classes)
        self.positions, self.targets = photos.side("train")
        if self.num_classes < 2 or len(self.positions) < self.num_classes:
            raise InputError(
                f"Found {self.num_classes} class(es) and {len(self.positions)} readable training photos. "
                "Expected at least two classes with a photo each."
            )
        held_out, targets = photos.side("validation")
        self.num_validation = len(held_out)
        self.validation = CleanBatches(
            photos.pictures, held_out, targets, num_classes=self.num_classes, batch_size=128, workers=_CORES
        )

    @property
    def images_per_epoch(self) -> int:
        """Training pictures in an epoch: whole batches."""
        batches = self.training(self.recipe.data.image_px)
        return len(batches) * batches.batch_size

    def training(self, image_px: int, epoch: int = 0) -> TrainingBatches:
        """Return the training batches at a picture size, beginning with an epoch."""
        settings = self.recipe.train
        return TrainingBatches(
            self.photos.sources,
            self.positions,
            self.targets,
            num_classes=self.num_classes,
            augment=self.recipe.augment,
            batch_size=settings.batch_size,
            image_px=image_px,
            seed=settings.seed,
            epoch=epoch,
            workers=settings.workers or _CORES,
        )

    def clean(self) -> CleanBatches | None:
        """Return training photos as they are, for BatchNormalization's statistics, where the recipe wants them."""
        settings = self.recipe.train
        count = min(settings.recalibrate_photos, len(self.positions))
        if not count:
            return None
        chosen = generator(settings.seed, "recalibrate").choice(self.positions, count, replace=False)
        return CleanBatches(self.photos.pictures, np.sort(chosen), batch_size=128)


def _fit_segment(
    run: Path,
    inputs: _Inputs,
    model: keras.Model,
    rate: PlannedRate,
    state: dict[str, Any],
    evaluated: EvaluatedWeights,
    progress: Progress,
) -> None:
    """Train the epochs of ``state["segment"]`` that are not done yet."""
    settings, segment = inputs.recipe.train, Segment.from_dict(state["segment"])
    batches = inputs.training(segment.image_px, state["epoch"])
    rate.enter(segment, state["first_step"], segment.epochs * len(batches))
    if keras.backend.backend() != "tensorflow":
        model.train_function = None  # traced with the old speed of the schedule
    last_epoch = state["first_epoch"] + segment.epochs
    model.fit(
        batches,
        initial_epoch=state["epoch"],
        epochs=last_epoch,
        shuffle=False,
        validation_data=inputs.validation if inputs.num_validation else None,
        validation_freq=_looks(settings.validate_every, last_epoch),
        callbacks=[
            evaluated,
            Checkpoints(run / "checkpoints", evaluated, state, settings.patience),
            Journal(run, state, len(batches), progress),
            *tensorboard(run),
        ],
        verbose=0,
    )


def _choose_precision(inputs: _Inputs, saved: dict[str, Any]) -> Precision:
    """Keep the precision of a run that goes on; choose it for a new one."""
    if saved:
        return Precision(saved["name"], saved["milliseconds_per_image"], saved["reason"])
    recipe = inputs.recipe
    return choose_precision(
        recipe.train.precision,
        lambda name: _compiled(recipe, inputs.num_classes, name)[0],
        inputs.training(stages_of(recipe)[-1].image_px),
    )


def _keep_last(run: Path, model: keras.Model, evaluated: EvaluatedWeights, state: dict[str, Any]) -> None:
    """Without validation the last weights are the best there are."""
    evaluated.set_model(model)
    evaluated.on_test_begin()
    evaluated.on_test_end()
    state["best"] = {"epoch": state["epoch"], "score": None}
    save_weights(run / "checkpoints" / "best.npz", evaluated.weights, state["best"])


def optimizer_for(recipe: Recipe, rate: Any, steps: int) -> keras.optimizers.Optimizer:
    """Return the recipe's Keras optimiser with `rate` as its learning rate, for about `steps` steps in all."""
    settings = recipe.train
    window = max(2.0, settings.weight_average * steps)
    average = {"use_ema": True, "ema_momentum": 1 - 1 / window} if settings.weight_average else {}
    if settings.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay, **average)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return optimizer
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **average)
    return keras.optimizers.Adam(rate, **average)


def _compiled(recipe: Recipe, num_classes: int, precision: str, steps: int = 1000) -> tuple[keras.Model, PlannedRate]:
    seed = derived_seed(recipe.train.seed, "network")
    model = build_for_training(recipe.model, num_classes, precision=precision, seed=seed)
    rate = PlannedRate(recipe.train)
    model.compile(
        optimizer=optimizer_for(recipe, rate, steps),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=recipe.train.label_smoothing),
        metrics=["accuracy"],
        # On the processor XLA's convolutions are slower than TensorFlow's own: see models/fused.py.
        jit_compile="auto" if accelerators() or keras.backend.backend() != "tensorflow" else False,
    )
    return model, rate


def _measure(inputs: _Inputs, precision: Precision, stages: Sequence[Stage], deadline: float) -> Budget:
    """Time a few steps at each picture size on a throw-away model; the last size may be known already."""
    recipe = inputs.recipe
    model, rate = _compiled(recipe, inputs.num_classes, precision.name)
    rate.enter(Segment(stages[0].image_px, 1, (0.0, 0.01)), 0, 1000)
    known = precision.milliseconds_per_image.get(precision.name)
    epoch_seconds, at_full_size = {}, 0.0
    for image_px in {stage.image_px for stage in stages}:
        if known is not None and image_px == stages[-1].image_px:
            seconds = known / 1000
        else:
            seconds = seconds_per_image(model, inputs.training(image_px))
        epoch_seconds[image_px] = seconds * inputs.images_per_epoch
        at_full_size = max(at_full_size, seconds * (recipe.data.image_px / image_px) ** 2)
    seen = inputs.num_validation + recipe.train.recalibrate_photos
    return Budget(
        deadline=deadline,
        epoch_seconds=epoch_seconds,
        validation_seconds=0.35 * at_full_size * seen,  # forward is a third of a training step
        final_seconds=4 + 0.3 * at_full_size * len(inputs.photos.pictures),
        validate_every=recipe.train.validate_every,
    )


def _describe(inputs: _Inputs, stages: Sequence[Stage], epochs: int, budget: Budget | None, precision: str) -> str:
    """Say in one line what training will do."""
    segments = plan(stages, epochs)
    parts = ", then ".join(f"{part.epochs} at {part.image_px} px" for part in segments)
    line = f"Plan: {len(inputs.positions):,} training photos, {epochs} epochs ({parts}), {precision}"
    if budget is not None:
        seconds = sum(part.epochs * budget.epoch_seconds[part.image_px] for part in segments)
        seconds += epochs / budget.validate_every * budget.validation_seconds
        line += f"; about {seconds:.0f} s of training and {budget.final_seconds:.0f} s for the final measurement"
        if time.time() + seconds + budget.final_seconds > budget.deadline + 1:
            line += ". Even one epoch takes longer than the time given: it will run over"
    return line + "."


def _next_segment(
    recipe: Recipe,
    stages: Sequence[Stage],
    state: dict[str, Any],
    budget: Budget | None,
    waiting: list[Segment],
) -> Segment:
    if waiting:
        return waiting.pop(0)
    left = _planned_epochs(recipe, stages, budget, state["done"])
    if budget is None:
        return plan(stages, left, start=state["done"])[0]
    whole = left / (1 - state["done"])
    return plan(stages, left, start=state["done"], longest=math.ceil(whole / _PARTS_OF_A_BUDGET))[0]


def _planned_epochs(recipe: Recipe, stages: Sequence[Stage], budget: Budget | None, done: float) -> int:
    """Return the epochs that are left when the share `done` of the schedule is.

    Small data sets would get thousands of epochs in a budget: four times the recipe's is the most.
    """
    if budget is None:
        return max(1, round(recipe.train.epochs * (1 - done)))
    most = max(1, round(4 * recipe.train.epochs * (1 - done)))
    return min(most, budget.epochs_left(stages, done))


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
