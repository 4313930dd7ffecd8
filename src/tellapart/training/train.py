"""Trains a network on pictures: inputs, plan, model, fit, save. Knows nothing about folders of photos.

One call owns one run folder's checkpoints, history and ``model.keras``.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tellapart.records import Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe
from tellapart.training.callbacks import (
    Announce,
    Checkpoints,
    EvaluatedWeights,
    Journal,
    OutOfTimeError,
    Watch,
    tensorboard,
    unwatched,
)
from tellapart.training.checkpoint import load_checkpoint, load_weights, save_weights
from tellapart.training.environment import accelerators
from tellapart.training.inputs import Inputs, Photos
from tellapart.training.network import compiled, forget_compiled_step, plain_network, save_network, set_average
from tellapart.training.planning import Planner, TrainingPlan, final_seconds, time_budget
from tellapart.training.schedule import PlannedRate, stages_of
from tellapart.training.selection import was_validated
from tellapart.training.state import Best, TrainingState
from tellapart.training.timing import Budget, Deadline, Precision, choose_precision, precision_on_device
from tellapart.training.transfer import begin_pretrained

if TYPE_CHECKING:
    from tellapart.training.on_device import OnDevice

_PAUSE = 5.0
"""Seconds between two checkpoints on an accelerator, whose epochs may take less than a checkpoint does."""
_JAX_FLAG = "--xla_gpu_deterministic_ops"
_SECONDS_TO_BUILD = 20.0
"""For a network that is fine-tuned, its first step compiled, twice: once to be timed."""


@dataclass(frozen=True)
class Training:
    """How one training went.

    Attributes:
        best_epoch: the epoch whose weights were kept, counted from 1.
        seconds: spent in epochs, validation included.
        processor_seconds: of all processors in that time.
        images_per_second: training pictures per second of `seconds`.
        precision: what was computed in, and why.
        plan: what was done, to do it again.
    """

    best_epoch: int
    seconds: float
    processor_seconds: float
    images_per_second: float
    precision: Precision
    plan: TrainingPlan


def train_network(
    run: Path,
    recipe: Recipe,
    photos: Photos,
    *,
    deadline: Deadline | None = None,
    replay: TrainingPlan | None = None,
    ahead: Future[Precision] | None = None,
    progress: Progress = no_progress,
    announce: Announce = lambda line: None,
    watch: Watch = unwatched,
) -> Training:
    """Train the recipe's network, or go on where the run was interrupted, and write ``model.keras``.

    Args:
        run: the run folder; ``checkpoints/last.npz`` in it is gone on from.
        recipe: what to do.
        photos: what to do it with.
        deadline: when everything must be done, the final measurement too; replaces ``train.epochs``.
        replay: an earlier run's plan to go through exactly, instead of planning.
        ahead: of `precision_ahead`.
        progress: called often with (what, done, total).
        announce: called with the plan before the first step.
        watch: called with each epoch's row of the history; what it raises ends the training.

    Raises:
        InputError: too few photos.
        TrainingStoppedError: the loss is no longer finite; checkpoints are kept.
    """
    # Plan
    inputs = Inputs(recipe, photos)
    last = RunFolder(run).last_checkpoint
    saved = TrainingState.from_dict(load_weights(last)[1]) if last.exists() else None
    if recipe.train.deterministic:
        _be_deterministic(announce)
    known = deadline.precision if deadline else None
    precision = saved.precision if saved else known or (ahead and ahead.result()) or _choose_precision(inputs)
    begins = bool(recipe.model.weights) and not saved
    until = deadline.at - final_seconds(inputs, 0.0) if deadline else inf
    head = begin_pretrained(run, inputs, precision.name, progress, until) if begins else None
    trains = recipe.model.unfreeze or not head
    built = _built(inputs, precision) if trains and _is_accelerated() else None
    budget = _time_budget(inputs, precision, deadline, built, fine_tunes=begins) if deadline and not replay else None
    planner = Planner(inputs, precision, budget, replay)
    state = saved or planner.begin()
    if head:
        state.history, state.best = [head], Best(0, head.get("val_loss"))
        state.seconds_training = head["seconds"]
    if head and (not recipe.model.unfreeze or not planner.has_time()):
        announce("The fitted head is kept as it is: nothing is fine-tuned.")
        _save_plain(run, recipe, inputs.num_classes)
        return _training(run, inputs, state)
    announce(f"Going on after epoch {state.epoch}." if saved else planner.describe())

    # Model and optimiser
    # Anew where steps were timed: timing trains, and would leave its steps in the weights.
    model, rate, device = built or _built(inputs, precision)
    set_average(model.optimizer, recipe, state.planned_steps)
    if saved:
        load_checkpoint(last, model)
    elif head:
        model.set_weights(load_weights(RunFolder(run).best_weights)[0])

    # Fit
    evaluated = EvaluatedWeights(inputs.clean())
    ends = budget.training_ends if budget else None
    while state.goes_on:
        if state.segment is None and not planner.enter_next(state, int(model.optimizer.iterations)):
            break
        started, first_epoch = time.perf_counter(), state.epoch
        try:
            _fit_segment(
                run, inputs, model, rate, state, device,
                evaluated=evaluated, progress=progress, watch=watch, ends=ends,
            )  # fmt: skip
        except OutOfTimeError:
            announce(f"Epoch {state.epoch + 1} would end too late: it is given up.")
            planner.cut_short(state)
            if device is None:
                load_checkpoint(last, model)  # the weights are in the middle of an epoch
            break
        planner.leave(state, state.epoch - first_epoch, time.perf_counter() - started)

    # Save
    if not any(map(was_validated, state.history)) and state.epoch:
        _keep_last(run, model, evaluated, state)
    _save_plain(run, recipe, inputs.num_classes)
    return _training(run, inputs, state)


def _be_deterministic(announce: Announce) -> None:
    """Let the backend use only operations that give the same bits each time, or say that it cannot."""
    if keras.backend.backend() == "tensorflow":
        from tellapart.models.fused import make_deterministic

        make_deterministic()
    elif accelerators() and _JAX_FLAG not in os.environ.get("XLA_FLAGS", ""):
        # JAX reads its flags when it starts, long before this.
        announce(f"warning: on this GPU the same bits are not promised: start again with XLA_FLAGS={_JAX_FLAG}=true.")


def _training(run: Path, inputs: Inputs, state: TrainingState) -> Training:
    """Say how it went, in ``log.jsonl`` too."""
    seconds, best = state.seconds_training, state.best or Best(state.epoch, None)
    segments = [segment.to_dict() for segment in state.segments]
    RunFolder(run).log("trained", epochs=state.epoch, best=asdict(best), seconds=seconds, segments=segments)
    return Training(
        best_epoch=best.epoch,
        seconds=seconds,
        processor_seconds=state.processor_seconds_training,
        images_per_second=state.epoch * inputs.images_per_epoch / seconds if seconds else 0.0,
        precision=state.precision,
        plan=TrainingPlan.of(state),
    )


def _fit_segment(
    run: Path,
    inputs: Inputs,
    model: keras.Model,
    rate: PlannedRate,
    state: TrainingState,
    device: OnDevice | None,
    *,
    evaluated: EvaluatedWeights,
    progress: Progress,
    watch: Watch,
    ends: float | None,
) -> None:
    """Train the epochs of the segment under way that are not done yet."""
    settings, segment = inputs.recipe.train, state.current
    batches = inputs.training(segment.image_px, state.epoch)
    rate.enter(segment, state.first_step, segment.epochs * len(batches))
    first_epoch, last_epoch = state.epoch, state.last_epoch
    looks = _looks(settings.validate_every, last_epoch)
    checkpoints = partial(Checkpoints, RunFolder(run).checkpoints, evaluated, state, settings.patience)
    journal = partial(Journal, run, state, len(batches), progress, watch, ends)
    if device is not None:
        callbacks = [checkpoints(snapshots=settings.snapshots, pause=_PAUSE), journal(every=1)]
        device.fit(
            segment.image_px,
            first_epoch=first_epoch,
            last_epoch=last_epoch,
            looks=looks,
            evaluated=evaluated,
            callbacks=callbacks,
        )
        return
    if keras.backend.backend() != "tensorflow" or segment.image_px != _size_before(state):
        forget_compiled_step(model)
    model.fit(
        batches,
        initial_epoch=first_epoch,
        epochs=last_epoch,
        shuffle=False,
        validation_data=inputs.validation if inputs.num_validation else None,
        validation_freq=looks,
        callbacks=[evaluated, checkpoints(snapshots=settings.snapshots), journal(), *tensorboard(run)],
        verbose=0,
    )


def precision_ahead(recipe: Recipe, cache: Path) -> Future[Precision] | None:
    """Begin to choose the precision on an accelerator under JAX, which takes seconds, while photos are scanned.

    Args:
        recipe: what is to be trained.
        cache: what XLA compiles is kept in its folder ``xla``.
    """
    if not _is_accelerated():
        return None
    from tellapart.training.on_device import keep_compiled

    keep_compiled(cache / "xla")
    pool = ThreadPoolExecutor(1)
    found = pool.submit(precision_on_device, recipe.train.precision, stages_of(recipe)[-1].image_px)
    pool.shutdown(wait=False)
    return found


def _is_accelerated() -> bool:
    """Whether JAX computes on something else than the processor."""
    return keras.backend.backend() == "jax" and bool(accelerators())


def _built(inputs: Inputs, precision: Precision) -> tuple[keras.Model, PlannedRate, OnDevice | None]:
    """Return the network, its rate, and what trains it on an accelerator under JAX; None: Keras trains."""
    model, rate = compiled(inputs.recipe, inputs.num_classes, precision.name)
    if not _is_accelerated():
        return model, rate, None
    from tellapart.training.on_device import OnDevice

    return model, rate, OnDevice(model, rate, inputs, [stage.image_px for stage in stages_of(inputs.recipe)])


def _size_before(state: TrainingState) -> int | None:
    """Return the picture size of the segment before the one that is under way."""
    return state.segments[-2].image_px if len(state.segments) > 1 else None


def _time_budget(inputs: Inputs, precision: Precision, deadline: Deadline, built: Any, *, fine_tunes: bool) -> Budget:
    """Time the recipe's steps, where there is time for one: for fine-tuning alone building them takes many seconds."""
    if fine_tunes and time.time() + final_seconds(inputs, deadline.forward) + _SECONDS_TO_BUILD > deadline.at:
        return Budget(deadline.at, {stage.image_px: inf for stage in stages_of(inputs.recipe)}, {}, 0.0, 0.0, 1)
    model, rate, device = built or _built(inputs, precision)
    return time_budget(inputs, model, rate, precision, deadline, device)


def _choose_precision(inputs: Inputs) -> Precision:
    recipe = inputs.recipe
    return choose_precision(
        recipe.train.precision,
        lambda name: compiled(recipe, inputs.num_classes, name)[0],
        inputs.training(stages_of(recipe)[-1].image_px),
    )


def _keep_last(run: Path, model: keras.Model, evaluated: EvaluatedWeights, state: TrainingState) -> None:
    """Keep the last weights, averaged and with clean statistics: without validation none are known to be better."""
    evaluated.set_model(model)
    evaluated.on_test_begin()
    evaluated.on_test_end()
    state.best = Best(state.epoch, None)
    save_weights(RunFolder(run).best_weights, evaluated.weights, asdict(state.best))


def _looks(validate_every: int, last_epoch: int) -> list[int]:
    """Return the epochs after which Keras validates, counted from 1: every so many, and the last."""
    return sorted({*range(validate_every, last_epoch + 1, validate_every), last_epoch})


def _save_plain(run: Path, recipe: Recipe, num_classes: int) -> None:
    """Write the best weights as a model of plain Keras layers, for any Keras to open."""
    save_network(plain_network(recipe, num_classes, RunFolder(run).best_weights), RunFolder(run).model_path)
