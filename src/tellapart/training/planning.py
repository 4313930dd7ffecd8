"""What a run will do, from its recipe, its budget or another run's record. Knows nothing about networks' insides.

The state of a run is a dictionary that goes into every checkpoint: ``epoch`` (done so far), ``done`` (of the schedule,
0 to 1), ``segments`` (entered so far), ``planned_steps``, and while a segment is being trained ``segment``,
``first_step`` and ``first_epoch``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.settings import Recipe, Stage
from tellapart.training.inputs import Inputs
from tellapart.training.network import compiled, forget_compiled_step
from tellapart.training.schedule import Segment, plan, stages_of
from tellapart.training.timing import Budget, Precision, seconds_per_image, seconds_per_prediction

_PARTS_OF_A_BUDGET = 8
"""A budgeted run is planned again so many times, since machines do not keep their speed."""
_MOST_EPOCHS = 4
"""Times the recipe's epochs: small data sets would get thousands in a budget."""


@dataclass(frozen=True)
class Replay:
    """What one training did, for another to do the same.

    Attributes:
        segments: in their order.
        steps: as many as were planned at first; the weight average takes its length from them.
    """

    segments: tuple[Segment, ...]
    steps: int

    @classmethod
    def of(cls, state: dict[str, Any]) -> Replay:
        """Return what the state of a run says was done."""
        return cls(tuple(Segment.from_dict(values) for values in state["segments"]), state["planned_steps"])


class Planner:
    """Divides a run into segments, one at a time, so that a budget can be kept on a machine that changes its speed.

    Args:
        inputs: the photos, and the recipe.
        precision: what the network computes in, and how long its steps took where that was measured.
        deadline: by `time.time`; replaces ``train.epochs``. Steps are timed when it is given.
        replay: another run's segments, to go through as they are.
    """

    def __init__(self, inputs: Inputs, precision: Precision, deadline: float | None, replay: Replay | None) -> None:
        self.inputs = inputs
        self.precision = precision
        self.replay = replay
        self.stages = stages_of(inputs.recipe)
        self.budget = None if deadline is None or replay else measure(inputs, precision, self.stages, deadline)

    def begin(self) -> dict[str, Any]:
        """Return the state of a run that begins."""
        if self.replay:
            steps = self.replay.steps
        else:
            steps = self.epochs_left(0.0) * self.inputs.images_per_epoch // self.inputs.recipe.train.batch_size
        return {"epoch": 0, "done": 0.0, "segments": [], "planned_steps": steps}

    def enter_next(self, state: dict[str, Any], first_step: int) -> None:
        """Choose the next segment and write it into the state: what a resumed run needs to go on inside it."""
        segment = self._next(state)
        state["segment"] = segment.to_dict()
        state["segments"] = [*state["segments"], segment.to_dict()]
        state["first_step"], state["first_epoch"] = first_step, state["epoch"]
        state["image_px"] = segment.image_px
        left = 1 - segment.progress[1]
        per_epoch = (segment.progress[1] - segment.progress[0]) / segment.epochs
        state["epochs"] = state["epoch"] + segment.epochs + round(left / per_epoch)

    def leave(self, state: dict[str, Any], epochs: int, seconds: float) -> None:
        """Take note that `epochs` of the segment took `seconds`, and leave the segment if it is done."""
        if self.budget is not None and epochs:
            self.budget.learn(state["image_px"], seconds / epochs)
        if state["epoch"] == state["first_epoch"] + state["segment"]["epochs"]:
            done = state.pop("segment")["progress"][1]
            state["done"] = 1.0 if done > 1 - 1e-9 else done

    def epochs_left(self, done: float) -> int:
        """Return the epochs that are left when the share `done` of the schedule is; at least 1."""
        whole = self.inputs.recipe.train.epochs
        if self.budget is None:
            return max(1, round(whole * (1 - done)))
        most = max(1, round(_MOST_EPOCHS * whole * (1 - done)))
        return min(most, self.budget.epochs_left(self.stages, done))

    def has_time(self) -> bool:
        """Return whether an epoch can be done before the deadline, or was done by the run that is replayed."""
        if self.replay is not None:
            return bool(self.replay.segments)
        return self.budget is None or self.budget.epochs_that_fit(self.stages, 0.0) >= 1

    def describe(self) -> str:
        """Say in one line what training will do."""
        segments = list(self.replay.segments) if self.replay else plan(self.stages, self.epochs_left(0.0))
        epochs = sum(part.epochs for part in segments)
        parts = ", then ".join(f"{part.epochs} at {part.image_px} px" for part in segments)
        line = f"Plan: {len(self.inputs.positions):,} training photos, {epochs} epochs ({parts}), {self.precision.name}"
        if self.budget is not None:
            budget = self.budget
            seconds = sum(part.epochs * budget.epoch_seconds[part.image_px] for part in segments)
            seconds += epochs / budget.validate_every * budget.validation_seconds
            line += f"; about {seconds:.0f} s of training and {budget.final_seconds:.0f} s for the final measurement"
            if time.time() + seconds + budget.final_seconds > budget.deadline + 1:
                line += ". Even one epoch takes longer than the time given: it will run over"
        return line + "."

    def _next(self, state: dict[str, Any]) -> Segment:
        if self.replay:
            return self.replay.segments[len(state["segments"])]
        left = self.epochs_left(state["done"])
        longest = None
        if self.budget is not None:
            longest = math.ceil(left / (1 - state["done"]) / _PARTS_OF_A_BUDGET)
        return plan(self.stages, left, start=state["done"], longest=longest)[0]


def measure(inputs: Inputs, precision: Precision, stages: Sequence[Stage], deadline: float) -> Budget:
    """Time a few steps at each picture size on a throw-away model; the last size may be known already."""
    recipe: Recipe = inputs.recipe
    model, rate = compiled(recipe, inputs.num_classes, precision.name)
    rate.enter(Segment(stages[0].image_px, 1, (0.0, 0.01)), 0, 1000)
    known = precision.milliseconds_per_image.get(precision.name)
    epoch_seconds, at_full_size = {}, 0.0
    for image_px in {stage.image_px for stage in stages}:
        if known is not None and image_px == stages[-1].image_px:
            seconds = known / 1000
        else:
            forget_compiled_step(model)
            seconds = seconds_per_image(model, inputs.training(image_px))
        epoch_seconds[image_px] = seconds * inputs.images_per_epoch
        at_full_size = max(at_full_size, seconds * (recipe.data.image_px / image_px) ** 2)
    forward = 0.35 * at_full_size  # a third of a training step, of which the whole network learns
    if recipe.model.weights:
        forward = seconds_per_prediction(model, inputs.training(recipe.data.image_px)[0][0])
    seen = inputs.num_validation + recipe.train.recalibrate_photos
    return Budget(
        deadline=deadline,
        epoch_seconds=epoch_seconds,
        validation_seconds=forward * seen,
        final_seconds=(8 if recipe.model.weights else 4) + forward * len(inputs.photos.pictures),
        validate_every=recipe.train.validate_every,
    )
