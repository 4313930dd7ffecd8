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

from tellapart.records import Announce, Observer
from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe
from tellapart.training.callbacks import Checkpoints, EvaluatedWeights, Journal, OutOfTimeError, tensorboard
from tellapart.training.checkpoint import load_checkpoint, load_weights, save_weights
from tellapart.training.environment import accelerators
from tellapart.training.inputs import Inputs, Photos
from tellapart.training.network import (
    begin_with_weights_of,
    compiled,
    forget_compiled_step,
    plain_network,
    save_network,
    set_average,
)
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
_FEW_BATCHES = 16
"""Of training photos, to measure weights on that are kept without training: a curve of one point needs no more."""
_JAX_FLAG = "--xla_gpu_deterministic_ops"
_SECONDS_TO_BUILD = 20.0
"""For the step of fine-tuning that is compiled and timed, 10 s of MobileNetV2 at 224 px, and for an epoch."""


@dataclass(frozen=True)
class TrainingRequest:
    """What a training is bound to, beside its recipe.

    Attributes:
        deadline: when everything must be done, the final measurement too; replaces ``train.epochs``.
        replay: an earlier run's plan to go through exactly, instead of planning.
        begin_from: a run whose kept weights training begins with; None: drawn, or those that the recipe names.
        precision: of `precision_ahead`.
    """

    deadline: Deadline | None = None
    replay: TrainingPlan | None = None
    begin_from: RunFolder | None = None
    precision: Future[Precision] | None = None


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
        model: the network with the weights that were kept, as ``model.keras`` has it.
    """

    best_epoch: int
    seconds: float
    processor_seconds: float
    images_per_second: float
    precision: Precision
    plan: TrainingPlan
    model: keras.Model


@dataclass
class _Trainee:
    """A network that is being trained: the one of a run, built once.

    Attributes:
        model: compiled.
        rate: its learning rate.
        device: trains it, on an accelerator under JAX; elsewhere Keras does.
        compiled_px: picture size of the step that is compiled and may be used; None: there is none.
    """

    model: keras.Model
    rate: PlannedRate
    device: OnDevice | None = None
    compiled_px: int | None = None


def train_network(
    run: RunFolder,
    recipe: Recipe,
    photos: Photos,
    *,
    request: TrainingRequest | None = None,
    observer: Observer | None = None,
) -> Training:
    """Train the recipe's network, or go on where the run was interrupted, and write ``model.keras``.

    Args:
        run: its files; ``checkpoints/last.npz`` is gone on from.
        recipe: what to do.
        photos: what to do it with.
        request: what it is bound to beside the recipe.
        observer: whom to tell.

    Raises:
        InputError: too few photos.
        RunError: the run to begin from has another network.
        TrainingStoppedError: the loss is no longer finite; checkpoints are kept.
    """
    request, observer = request or TrainingRequest(), observer or Observer()
    # Plan
    inputs = Inputs(recipe, photos)
    saved = _saved_state(run)
    if recipe.train.deterministic:
        _be_deterministic(observer.announce)
    # A resumed run keeps the precision that it began with: its plan and its checkpoints belong to it.
    precision = saved.precision if saved else _precision(inputs, request)
    trainee = _Trainee(*compiled(recipe, inputs.num_classes, precision.name))
    # The head comes first: it is epoch 0, and the budget below divides the time that it leaves.
    head = None if saved or not recipe.model.weights else _fit_head(run, inputs, trainee.model, request, observer)
    trains = bool(recipe.train.epochs) and (recipe.model.unfreeze or not head)
    # Before the budget: there the device times the steps.
    if trains and _is_accelerated():
        trainee.device = _on_device(inputs, trainee)
    budget = None
    if request.deadline and not request.replay and trains:
        budget = _time_budget(inputs, precision, request.deadline, trainee, fine_tunes=bool(head))
        trainee.compiled_px = budget.compiled_px
    planner = Planner(inputs, precision, budget, request.replay)
    state = saved or planner.begin()
    if head:
        state.history, state.best = [head], Best(0, head.get("val_loss"))
        # The head counts as training: a resumed run reads from here how much of its budget is spent.
        state.seconds_training = head["seconds"]
    if head and (not trains or not planner.has_time()):
        observer.announce("The fitted head is kept as it is: nothing is fine-tuned.")
        return _finish(run, inputs, state)
    if not trains and request.begin_from:
        observer.announce("No epochs: the weights that it begins with are kept.")
        _keep_first(run, inputs, trainee.model, state, request.begin_from)
        return _finish(run, inputs, state)
    observer.announce(f"Going on after epoch {state.epoch}." if saved else planner.describe())

    # Only now is the number of steps known. Before the first `fit`: TensorFlow compiles the momentum into the step.
    set_average(trainee.model.optimizer, recipe, state.planned_steps)
    if saved:
        load_checkpoint(run.last_checkpoint, trainee.model)
    elif request.begin_from and not head:
        begin_with_weights_of(request.begin_from, trainee.model, photos.classes)

    # Fit and save
    evaluated = EvaluatedWeights(inputs.clean())
    ends = budget.training_ends if budget else None
    _fit_segments(run, inputs, trainee, state, planner, evaluated, observer=observer, ends=ends)
    if not any(map(was_validated, state.history)) and state.epoch:
        _keep_last(run, trainee.model, evaluated, state)
    return _finish(run, inputs, state)


def _fit_segments(
    run: RunFolder,
    inputs: Inputs,
    trainee: _Trainee,
    state: TrainingState,
    planner: Planner,
    evaluated: EvaluatedWeights,
    *,
    observer: Observer,
    ends: float | None,
) -> None:
    """Train one segment after the other, until the schedule is over or no further epoch fits the time."""
    while state.goes_on:
        # A run that was killed at the end of a segment still stands in it: no epoch is trained then, but `leave` must
        # be called before the next segment is entered.
        if state.segment is None and not planner.enter_next(state, int(trainee.model.optimizer.iterations)):
            break
        started, first_epoch = time.perf_counter(), state.epoch
        try:
            _fit_segment(run, inputs, trainee, state, evaluated, observer=observer, ends=ends)
        except OutOfTimeError:
            observer.announce(f"Epoch {state.epoch + 1} would end too late: it is given up.")
            planner.cut_short(state)
            if trainee.device is None:
                # The weights are those of the middle of an epoch, and `_keep_last` may keep them. A device assigns
                # whole epochs only.
                load_checkpoint(run.last_checkpoint, trainee.model)
            break
        planner.leave(state, state.epoch - first_epoch, time.perf_counter() - started)


def _saved_state(run: RunFolder) -> TrainingState | None:
    """Return how far an interrupted training came; None: it has not begun."""
    last = run.last_checkpoint
    return TrainingState.from_dict(load_weights(last)[1]) if last.exists() else None


def _precision(inputs: Inputs, request: TrainingRequest) -> Precision:
    """Return what was measured on the way here, or measure it."""
    if request.deadline and request.deadline.precision:
        return request.deadline.precision
    if request.precision is not None:
        return request.precision.result()
    recipe = inputs.recipe
    return choose_precision(
        recipe.train.precision,
        lambda name: compiled(recipe, inputs.num_classes, name)[0],
        inputs.training(stages_of(recipe)[-1].image_px),
    )


def _fit_head(
    run: RunFolder, inputs: Inputs, model: keras.Model, request: TrainingRequest, observer: Observer
) -> dict[str, Any]:
    """Begin a pretrained network; return the first row of its history."""
    until = request.deadline.at - final_seconds(inputs, 0.0) if request.deadline else inf
    return begin_pretrained(run, inputs, model, begin_from=request.begin_from, progress=observer.progress, until=until)


def _be_deterministic(announce: Announce) -> None:
    """Let the backend use only operations that give the same bits each time, or say that it cannot."""
    if keras.backend.backend() == "tensorflow":
        from tellapart.models.fused import make_deterministic

        make_deterministic()
    elif accelerators() and _JAX_FLAG not in os.environ.get("XLA_FLAGS", ""):
        # JAX reads its flags when it starts, long before this.
        announce(f"warning: on this GPU the same bits are not promised: start again with XLA_FLAGS={_JAX_FLAG}=true.")


def _finish(run: RunFolder, inputs: Inputs, state: TrainingState) -> Training:
    """Write the best weights as a model of plain Keras layers, for any Keras to open, and say how it went."""
    # From the file: the network that was trained has the weights of its last step, not those that were kept.
    model = plain_network(inputs.recipe, inputs.num_classes, run.best_weights)
    save_network(model, run.model_path)
    seconds, best = state.seconds_training, state.best or Best(state.epoch, None)
    segments = [segment.to_dict() for segment in state.segments]
    epochs = sum(segment.epochs * segment.share for segment in state.segments)
    run.log("trained", epochs=state.epoch, best=asdict(best), seconds=seconds, segments=segments)
    return Training(
        best_epoch=best.epoch,
        seconds=seconds,
        processor_seconds=state.processor_seconds_training,
        images_per_second=epochs * inputs.images_per_epoch / seconds if seconds else 0.0,
        precision=state.precision,
        plan=TrainingPlan.of(state),
        model=model,
    )


def _fit_segment(
    run: RunFolder,
    inputs: Inputs,
    trainee: _Trainee,
    state: TrainingState,
    evaluated: EvaluatedWeights,
    *,
    observer: Observer,
    ends: float | None,
) -> None:
    """Train the epochs of the segment under way that are not done yet."""
    settings, segment = inputs.recipe.train, state.current
    batches = inputs.training(segment.image_px, state.epoch, segment.share)
    trainee.rate.enter(segment, state.first_step, segment.epochs * len(batches))
    validation_epochs = _validation_epochs(settings.validate_every, state.last_epoch, is_cut=segment.is_cut)
    # The checkpoints come first: what the journal tells others of an epoch must be on disk by then.
    checkpoints = partial(
        Checkpoints, run.checkpoints, evaluated, state, settings.patience, snapshots=settings.snapshots
    )
    journal = partial(Journal, run, state, len(batches), observer, ends=ends)
    if trainee.device is not None:
        trainee.device.fit(
            segment.image_px,
            first_epoch=state.epoch,
            last_epoch=state.last_epoch,
            share=segment.share,
            looks=validation_epochs,
            evaluated=evaluated,
            callbacks=[checkpoints(pause=_PAUSE), journal(every=1)],
        )
        return
    # A step that meets a second size would be made for sides of any length: on photos9 an epoch at 64 px took 14 to
    # 16 s instead of 8.4 (docs/experiments.md). The step that was timed at this size is still good.
    if keras.backend.backend() != "tensorflow" or segment.image_px != trainee.compiled_px:
        forget_compiled_step(trainee.model)
    trainee.compiled_px = segment.image_px
    trainee.model.fit(
        batches,
        initial_epoch=state.epoch,
        epochs=state.last_epoch,
        # Keras would shuffle by Python's own random numbers, which no checkpoint holds. The order is random already.
        shuffle=False,
        validation_data=inputs.validation if inputs.num_validation else None,
        validation_freq=validation_epochs,
        # `evaluated` before the checkpoints, which write the weights that it holds.
        callbacks=[evaluated, checkpoints(), journal(), *tensorboard(run)],
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
    precision = pool.submit(precision_on_device, recipe.train.precision, stages_of(recipe)[-1].image_px)
    # Do not wait: the thread ends with its only task.
    pool.shutdown(wait=False)
    return precision


def _is_accelerated() -> bool:
    """Whether JAX computes on something else than the processor."""
    return keras.backend.backend() == "jax" and bool(accelerators())


def _on_device(inputs: Inputs, trainee: _Trainee) -> OnDevice:
    """Return what trains the network on an accelerator."""
    from tellapart.training.on_device import OnDevice

    sizes = [stage.image_px for stage in stages_of(inputs.recipe)]
    return OnDevice(trainee.model, trainee.rate, inputs, sizes)


def _time_budget(
    inputs: Inputs, precision: Precision, deadline: Deadline, trainee: _Trainee, *, fine_tunes: bool
) -> Budget:
    """Time the recipe's steps, where there is time for one: for fine-tuning alone to compile it takes many seconds."""
    if fine_tunes and time.time() + final_seconds(inputs, deadline.forward) + _SECONDS_TO_BUILD > deadline.at:
        # Epochs of infinite length: the planner finds no time for one, and keeps the head.
        return Budget(deadline.at, {stage.image_px: inf for stage in stages_of(inputs.recipe)}, {}, 0.0, 0.0, 1)
    return time_budget(inputs, trainee.model, trainee.rate, precision, deadline, trainee.device)


def _keep_last(run: RunFolder, model: keras.Model, evaluated: EvaluatedWeights, state: TrainingState) -> None:
    """Keep the last weights, averaged and with clean statistics: without validation none are known to be better."""
    evaluated.set_model(model)
    # This is a validation without photos: it puts averaged weights and clean statistics in place and notes them.
    evaluated.on_test_begin()
    evaluated.on_test_end()
    state.best = Best(state.epoch, None)
    save_weights(run.best_weights, evaluated.weights, asdict(state.best))


def _keep_first(run: RunFolder, inputs: Inputs, model: keras.Model, state: TrainingState, origin: RunFolder) -> None:
    """Keep the weights of another run, which are epoch 0 of the history, as a fitted head is."""
    began = time.perf_counter()
    begin_with_weights_of(origin, model, inputs.photos.classes)
    image_px = inputs.recipe.data.image_px
    row: dict[str, Any] = {"epoch": 0, "image_px": image_px, "learning_rate": 0.0}
    seen = inputs.training(image_px, 0)
    row |= model.evaluate(seen, steps=min(_FEW_BATCHES, len(seen)), verbose=0, return_dict=True)
    if inputs.num_validation:
        found = model.evaluate(inputs.validation, verbose=0, return_dict=True)
        row |= {f"val_{name}": value for name, value in found.items()}
    state.seconds_training = row["seconds"] = time.perf_counter() - began
    state.history, state.best = [row], Best(0, row.get("val_loss"))
    save_weights(run.best_weights, model.get_weights(), asdict(state.best))
    run.write_history([row])
    run.log("begun", **row)


def _validation_epochs(validate_every: int, last_epoch: int, *, is_cut: bool = False) -> list[int]:
    """Return the epochs after which Keras validates, counted from 1: every so many, and the last.

    Args:
        validate_every: so many.
        last_epoch: of the segment.
        is_cut: whether a replay goes through a segment whose last epoch was to be another one: what was not looked at
            then must not be kept now.
    """
    every = set(range(validate_every, last_epoch + 1, validate_every))
    return sorted(every if is_cut else {*every, last_epoch})
