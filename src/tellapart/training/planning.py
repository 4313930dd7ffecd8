"""What a run will do, from its recipe, its budget or another run's record. Knows nothing about networks' insides."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import keras

from tellapart.run_folder import RunRecord
from tellapart.training.inputs import Inputs
from tellapart.training.network import forget_compiled_step, unchanged
from tellapart.training.schedule import PlannedRate, Segment, plan, stages_of
from tellapart.training.state import TrainingState
from tellapart.training.timing import Budget, Deadline, Precision, StepTime, step_time

if TYPE_CHECKING:
    from tellapart.training.on_device import OnDevice

_PARTS_OF_A_BUDGET = 8
"""A budgeted run is planned again so many times, since machines do not keep their speed."""
_MOST_EPOCHS = 4
"""Times the recipe's epochs: small data sets would get thousands in a budget."""
_NEARLY_FITS = 0.9
"""Of a whole epoch: the last one ends the schedule at its low rate, and is worth running over by a little."""
_SMALLEST_PART = 0.25
"""Of an epoch: a shorter one is hardly worth its validation."""
_SURELY_FITS = 0.9
"""Of what fits, where epochs are of parts: an epoch that is late is given up as a whole."""
_FIXED_SECONDS = {"from scratch": 4.0, "pretrained": 7.0}
"""For opening the network, intervals, pictures and files at the end; a pretrained network is larger."""
SECONDS_PER_ROW = 2e-4
"""For a photo's place in tables and intervals at the end."""


@dataclass(frozen=True)
class TrainingPlan:
    """What one training did, for another to do the same.

    Attributes:
        segments: in their order.
        steps: as many as were planned at first; the weight average takes its length from them.
    """

    segments: tuple[Segment, ...]
    steps: int

    @classmethod
    def of(cls, state: TrainingState) -> TrainingPlan:
        """Return what the state of a run says was done."""
        return cls(state.segments, state.planned_steps)

    @classmethod
    def of_record(cls, record: RunRecord) -> TrainingPlan:
        """Return what a finished run did."""
        return cls(tuple(map(Segment.from_dict, record.segments)), record.planned_steps)


class Planner:
    """Divides a run into segments, one at a time, so that a budget can be kept on a machine that changes its speed.

    Args:
        inputs: the photos, and the recipe.
        precision: what the network computes in.
        budget: replaces ``train.epochs``.
        replay: another run's segments, to go through as they are; then there is no budget.
    """

    def __init__(
        self, inputs: Inputs, precision: Precision, budget: Budget | None, replay: TrainingPlan | None
    ) -> None:
        self.inputs = inputs
        self.precision = precision
        self.replay = replay
        self.stages = stages_of(inputs.recipe)
        self.budget = None if replay else budget

    def begin(self) -> TrainingState:
        """Return the state of a run that begins."""
        if self.replay:
            steps = self.replay.steps
        else:
            epochs, share = self.epochs_left(0.0)
            steps = int(epochs * share * self.inputs.images_per_epoch) // self.inputs.recipe.train.batch_size
        return TrainingState(self.precision, steps)

    def enter_next(self, state: TrainingState, first_step: int) -> bool:
        """Choose the next segment and write it into the state: what a resumed run needs to go on inside it.

        Returns:
            False where training ends instead, since no further epoch fits the time.
        """
        if self._is_over(state):
            state.done = 1.0
            return False
        segment = self._next(state)
        state.segment, state.segments = segment, (*state.segments, segment)
        state.first_step, state.first_epoch = first_step, state.epoch
        left = 1 - segment.progress[1]
        # Only for the progress line: what is left, at this segment's pace.
        per_epoch = (segment.progress[1] - segment.progress[0]) / segment.epochs
        state.epochs = state.epoch + segment.epochs + round(left / per_epoch)
        return True

    def leave(self, state: TrainingState, epochs: int, seconds: float) -> None:
        """Take note that `epochs` of the segment took `seconds`, and leave the segment if it is done."""
        # The measured epochs replace the estimate: the next segment is planned from what this one took.
        if self.budget is not None and epochs:
            self.budget.learn(state.current.image_px, seconds / epochs, state.current.share)
        if state.epoch == state.last_epoch:
            done = state.current.progress[1]  # shares of a schedule add up to 1 but for rounding
            state.segment, state.done = None, 1.0 if done > 1 - 1e-9 else done

    def epochs_left(self, done: float) -> tuple[int, float]:
        """Return the epochs, at least 1, that are left when so much of the schedule is done, and the share of each."""
        recipe_epochs = self.inputs.recipe.train.epochs
        if self.budget is None:
            return max(1, round(recipe_epochs * (1 - done))), 1.0
        # One epoch at least, even if it will be late: a run must end with a network.
        most = max(1, round(_MOST_EPOCHS * recipe_epochs * (1 - done)))
        fitting = self.budget.epochs_that_fit(self.stages, done)
        whole = max(1, min(most, int(fitting)))
        # One more, of a part of the photos each, only where whole ones would leave more of the time.
        used_up = whole <= fitting and (whole == most or whole >= _SURELY_FITS * fitting)
        if self.budget.in_whole_epochs or used_up:
            return whole, 1.0
        epochs = max(1, math.ceil(fitting))
        share = _SURELY_FITS * self.budget.share_that_fits(self.stages, done, epochs)
        return epochs, min(max(share, _SMALLEST_PART), 1.0)

    def has_time(self) -> bool:
        """Return whether an epoch can be done before the deadline, or was done by the run that is replayed."""
        if self.replay is not None:
            return bool(self.replay.segments)
        return self.budget is None or self.budget.epochs_that_fit(self.stages, 0.0) >= 1

    def cut_short(self, state: TrainingState) -> None:
        """End training inside a segment: what was not finished of it counts as never begun, also for a replay."""
        # What is recorded must be what was done: a replay goes through these segments, epoch by epoch.
        segment, epochs = state.current, state.epoch - state.first_epoch
        low, high = segment.progress
        progress = low, low + (high - low) * epochs / segment.epochs
        done = replace(segment, epochs=epochs, progress=progress, is_cut=True)
        state.segments = (*state.segments[:-1], *([done] if epochs else []))
        state.segment, state.done = None, 1.0

    def _is_over(self, state: TrainingState) -> bool:
        """Whether a run that has something to keep has no time for another epoch, or a replay no further segment."""
        if self.replay is not None:
            return len(state.segments) >= len(self.replay.segments)
        # The first epoch is always trained.
        if self.budget is None or not state.epoch:
            return False
        least = _NEARLY_FITS if self.budget.in_whole_epochs else _SMALLEST_PART
        return self.budget.epochs_that_fit(self.stages, state.done) < least

    def describe(self) -> str:
        """Say in one line what training will do."""
        left, share = self.epochs_left(0.0)
        segments = list(self.replay.segments) if self.replay else plan(self.stages, left)
        epochs = sum(part.epochs for part in segments)
        parts = ", then ".join(f"{part.epochs} at {part.image_px} px" for part in segments)
        parted = "" if self.replay or share == 1 else f" of {share:.0%} of them each"
        line = f"Plan: {len(self.inputs.positions):,} training photos, {epochs} epochs{parted} ({parts}), "
        line += self.precision.name
        if self.budget is not None:
            budget = self.budget
            seconds = sum(share * part.epochs * budget.epoch_seconds[part.image_px] for part in segments)
            seconds += epochs / budget.validate_every * budget.validation_seconds + sum(budget.compile_seconds.values())
            line += f"; about {seconds:.0f} s of training and {budget.final_seconds:.0f} s for the final measurement"
            if time.time() + seconds + budget.final_seconds > budget.deadline + 1:
                line += ". Even that takes longer than the time given: it will run over"
        return line + "."

    def _next(self, state: TrainingState) -> Segment:
        if self.replay:
            return self.replay.segments[len(state.segments)]
        if self.budget is None:
            # As it was announced: what is left, rounded anew after each segment, may give a stage another epoch.
            return plan(self.stages, self.epochs_left(0.0)[0])[len(state.segments)]
        left, share = self.epochs_left(state.done)
        # Counted from the whole schedule, so that parts do not get shorter and shorter towards its end.
        longest = math.ceil(left / (1 - state.done) / _PARTS_OF_A_BUDGET)
        return replace(plan(self.stages, left, start=state.done, longest=longest)[0], share=share)


def time_budget(
    inputs: Inputs,
    model: keras.Model,
    rate: PlannedRate,
    precision: Precision,
    deadline: Deadline,
    device: OnDevice | None = None,
) -> Budget:
    """Time a few steps at each picture size; the last size may be known already.

    Args:
        inputs: the photos, and the recipe.
        model: compiled; its weights are as they were, after it.
        rate: its learning rate.
        precision: with the time of a step at the last size, or at a larger one, where it was measured.
        deadline: when the run must be over.
        device: times steps instead, on an accelerator, and the model stays as it is.
    """
    recipe, stages = inputs.recipe, stages_of(inputs.recipe)
    # Any schedule will do for timing: the weights are put back afterwards.
    rate.enter(Segment(stages[0].image_px, 1, (0.0, 0.01)), 0, 1000)
    known = precision.milliseconds_per_image.get(precision.name)
    first_px, last_px = stages[0].image_px, stages[-1].image_px
    times: dict[int, StepTime] = {}
    compiled_px = None
    # The first stage comes last: its compiled step is what training begins with.
    for image_px in dict.fromkeys(stage.image_px for stage in reversed(stages)):
        if device is not None:
            times[image_px] = StepTime(device.seconds_per_image(image_px), 0.0)
        # To compile that step again takes seconds. A plan may have made pictures smaller since it was timed; what an
        # earlier version recorded says 0, and is taken for the last size as it was then.
        elif known is not None and image_px == last_px and precision.timed_px in (0, last_px):
            times[image_px] = StepTime(known / 1000, precision.compile_seconds)
        elif known is not None and first_px < image_px == last_px < precision.timed_px:
            continue  # it lies between two sizes that are timed
        else:
            forget_compiled_step(model)
            with unchanged(model):
                times[image_px] = step_time(model, inputs.training(image_px))
            compiled_px = image_px
    if last_px not in times and known is not None:
        low, high = times[first_px].per_image, known / 1000
        # What a step costs grows with the area, from what it costs whatever the size.
        part = (last_px**2 - first_px**2) / (precision.timed_px**2 - first_px**2)
        times[last_px] = StepTime(low + part * (high - low), precision.compile_seconds)
    epoch_seconds = {image_px: timed.per_image * inputs.images_per_epoch for image_px, timed in times.items()}
    compile_seconds = {image_px: timed.compiling for image_px, timed in times.items()}
    if recipe.train.weight_average or compiled_px != stages[0].image_px:
        compiled_px = None  # the length of the average is part of a compiled step, and is not known before the plan
    else:
        compile_seconds[compiled_px] = 0.0
    return Budget(
        deadline=deadline.at,
        epoch_seconds=epoch_seconds,
        compile_seconds=compile_seconds,
        validation_seconds=deadline.forward * (inputs.num_validation + recipe.train.recalibrate_photos),
        final_seconds=final_seconds(inputs, deadline.forward),
        validate_every=recipe.train.validate_every,
        compiled_px=compiled_px,
        in_whole_epochs=device is not None,  # whole calls of many steps are compiled there
    )


def final_seconds(inputs: Inputs, forward: float) -> float:
    """Return the seconds from the end of training to the end of the run."""
    fixed = _FIXED_SECONDS["pretrained" if inputs.recipe.model.weights else "from scratch"]
    return fixed + (forward + SECONDS_PER_ROW) * len(inputs.photos.pictures)
