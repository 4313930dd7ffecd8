"""What a run will do, from its recipe, its time or another run's record: computed by hand, and walked through."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from held import held_photos
from tellapart.run_folder import RunRecord
from tellapart.settings import Recipe, load_recipe
from tellapart.training import planning
from tellapart.training.inputs import Inputs
from tellapart.training.network import compiled
from tellapart.training.planning import Planner, TrainingPlan, final_seconds, time_budget
from tellapart.training.schedule import Segment
from tellapart.training.state import TrainingState
from tellapart.training.timing import Budget, Deadline, Precision, StepTime

FLOAT32 = Precision("float32", {}, "")
PHOTOS = held_photos(24)
"""48 to train on, in 6 steps an epoch, and 16 to validate."""
TWO = "[{image_px=16, share=2}, {image_px=24, share=3}]"


def recipe_of(*changes: str) -> Recipe:
    small = ["data.image_px=24", f"train.stages={TWO}", "train.epochs=10", "train.batch_size=8", "model.width=0.25"]
    return load_recipe(changes=[*small, *changes])


def planner(*changes: str, budget: Budget | None = None, replay: TrainingPlan | None = None) -> Planner:
    return Planner(Inputs(recipe_of(*changes), PHOTOS), FLOAT32, budget, replay)


def budget_of(seconds: float, **changes: Any) -> Budget:
    """10 s for an epoch at 16 px and 20 s at 24 px, from 1,000 on: 16 s for a mean one, and nothing else costs."""
    costs = {"compile_seconds": {}, "validation_seconds": 0.0, "final_seconds": 0.0, "validate_every": 1}
    return Budget(**{"deadline": 1000.0 + seconds, "epoch_seconds": {16: 10.0, 24: 20.0}} | costs | changes)


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still."""
    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now)
    return clock


def walked(plan: Planner, clock: Clock | None = None, cost: Callable[[int], float] = lambda _: 0.0) -> TrainingState:
    """Go through a training as `train_network` does, with epochs that take `cost` of their picture size."""
    state = plan.begin()
    while state.goes_on and plan.enter_next(state, 6 * state.epoch):
        began, first_epoch = clock.now if clock else 0.0, state.epoch
        for _ in range(state.current.epochs):
            seconds = state.current.share * cost(state.current.image_px)
            if plan.budget and state.epoch and clock.now + seconds > plan.budget.training_ends:
                clock.now = plan.budget.training_ends
                plan.cut_short(state)
                return state
            if clock:
                clock.now += seconds
            state.epoch += 1
        plan.leave(state, state.epoch - first_epoch, clock.now - began if clock else 0.0)
    return state


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(None, 60), (96.5, 36), (95.5, 32), (1e6, 240), (3.0, 1), (-500.0, 1)],
    ids=["no budget", "just six", "not quite six", "four times the recipe's", "less than one", "late already"],
)
def test_steps_are_planned_for_the_epochs_that_the_recipe_or_the_time_allows(clock, seconds, steps):
    plan = planner(budget=None if seconds is None else budget_of(seconds))
    assert plan.begin() == TrainingState(FLOAT32, steps)


def test_a_replay_takes_its_length_from_the_first_plan_and_has_no_budget(clock):
    segments = (Segment(16, 3, (0.0, 0.5)), Segment(24, 1, (0.5, 0.6)))
    plan = planner(budget=budget_of(0.0), replay=TrainingPlan(segments, 777))
    assert plan.begin().planned_steps == 777
    clock.now = 9000.0
    state = walked(plan, clock, lambda _: 500.0)
    assert TrainingPlan.of(state) == plan.replay
    assert state.done == 1.0


def test_a_run_without_a_budget_knows_its_steps_and_epochs_from_the_beginning():
    plan, seen = planner(), []
    state = plan.begin()
    while state.goes_on and plan.enter_next(state, 6 * state.epoch):
        seen.append((state.current.image_px, state.first_epoch, state.last_epoch, state.first_step, state.epochs))
        state.epoch = state.last_epoch
        plan.leave(state, state.current.epochs, 1.0)
    assert seen == [(16, 0, 4, 0, 10), (24, 4, 10, 24, 10)]
    assert state.done == 1.0
    assert not state.goes_on


def stages_of(shares: list[int]) -> str:
    return ", ".join(f"{{image_px={16 + 8 * place}, share={share}}}" for place, share in enumerate(shares))


def epochs_at(segments: tuple[Segment, ...]) -> dict[int, int]:
    counts = dict.fromkeys((segment.image_px for segment in segments), 0)
    for segment in segments:
        counts[segment.image_px] += segment.epochs
    return counts


@pytest.mark.parametrize(
    ("shares", "epochs"),
    [
        ([2, 3], 36),
        ([1, 2, 4], 20),
        ([1, 1], 8),
        ([1, 1], 9),  # rounding what is left after the first stage would give it a fifth epoch
        ([2, 1, 1], 2),
    ],
)
def test_what_is_announced_is_what_is_done(shares: list[int], epochs: int):
    plan = planner(f"train.stages=[{stages_of(shares)}]", f"train.epochs={epochs}")
    said = ", then ".join(f"{number} at {px} px" for px, number in epochs_at(walked(plan).segments).items())
    assert f"{epochs} epochs ({said})" in plan.describe()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 60))
def test_all_epochs_are_done_whatever_the_shares_of_the_stages(shares: list[int], epochs: int):
    """Each segment is planned when the one before it is over; no epoch gets lost or comes twice."""
    state = walked(planner(f"train.stages=[{stages_of(shares)}]", f"train.epochs={epochs}"))
    counts = epochs_at(state.segments)
    assert state.epoch == sum(counts.values()) == epochs
    assert list(counts) == sorted(counts)
    for place, share in enumerate(shares):
        assert abs(counts.get(16 + 8 * place, 0) - epochs * share / sum(shares)) <= 1 + 1e-6


@pytest.mark.parametrize("slower", [0.4, 1.0, 2.5, 6.0])
def test_a_budget_is_kept_on_a_machine_of_another_speed_than_was_measured(clock, slower: float):
    """What is left at the end is less than half an epoch, or all that the recipe allows was done."""
    budget = budget_of(
        700.0, compile_seconds={16: 5.0, 24: 5.0}, validation_seconds=2.0, final_seconds=50.0, validate_every=1
    )
    plan = planner("train.epochs=40", budget=budget)
    state = walked(plan, clock, lambda px: slower * ({16: 10.0, 24: 20.0}[px] + 2.0))
    assert clock.now <= budget.training_ends + 0.1 * slower * 22 + 1e-6
    assert budget.training_ends - clock.now < 0.5 * slower * 22
    assert len(state.segments) >= 3, "planned again on the way"
    for segment, following in itertools.pairwise(state.segments):
        assert segment.progress[1] == following.progress[0]
        assert segment.image_px <= following.image_px
    assert state.epoch == sum(segment.epochs for segment in state.segments)
    assert [segment.image_px for segment in state.segments][-1] == 24


def test_parts_of_a_budget_are_an_eighth_of_the_whole_even_near_its_end(clock):
    """40 epochs at one size in just their time: eight parts of five, and not ever shorter ones."""
    budget = budget_of(40 * 20.0, epoch_seconds={24: 20.0})
    state = walked(planner("train.stages=[]", budget=budget), clock, lambda _: 20.0)
    assert [segment.epochs for segment in state.segments] == [5] * 8


@pytest.mark.parametrize(
    ("done", "seconds", "left", "share"),
    [
        (0.0, None, 10, 1.0),
        (0.4, None, 6, 1.0),
        (0.97, None, 1, 1.0),
        (0.4, 61.0, 3, 1.0),  # the rest is at 24 px, 20 s an epoch
        (0.4, 50.0, 3, 0.9 * 50 / 60),  # two whole ones would leave 10 s: three, of parts, and a tenth to spare
        (0.2, 71.0, 4, 1.0),  # a quarter of the rest at 16 px: 17.5 s
        (0.5, 1e6, 20, 1.0),  # half of four times the recipe's
        (0.4, 12.0, 1, 0.9 * 12 / 20),
        (0.4, -3.0, 1, 0.25),
        (0.98, 100.0, 1, 1.0),  # all that four times the recipe's leaves
        (0.98, 12.0, 1, 0.9 * 12 / 20),  # a part of it
    ],
)
def test_epochs_that_are_left_and_of_how_much_of_the_photos(
    clock, done, seconds: float | None, left: int, share: float
):
    assert planner(budget=None if seconds is None else budget_of(seconds)).epochs_left(done) == (
        left, pytest.approx(share),
    )  # fmt: skip


def test_validations_are_paid_for_before_parts_of_epochs_are(clock):
    """Three epochs in 50 s, each with 2 s for its half of a validation, whatever part of the photos it sees."""
    budget = budget_of(50.0, validation_seconds=4.0, validate_every=2)
    assert planner(budget=budget).epochs_left(0.4) == (3, pytest.approx(0.9 * (50 / 3 - 2) / 20))


def test_on_a_device_epochs_stay_whole(clock):
    for seconds, epochs in ((50.0, 2), (12.0, 1)):
        assert planner(budget=budget_of(seconds, in_whole_epochs=True)).epochs_left(0.4) == (epochs, 1.0)


@pytest.mark.parametrize(("seconds", "fits"), [(16.1, True), (15.9, False), (-1.0, False)])
def test_there_is_time_where_one_mean_epoch_fits(clock, seconds: float, fits: bool):
    assert planner(budget=budget_of(seconds)).has_time() == fits


@pytest.mark.parametrize(
    ("left", "whole", "goes_on"), [(18.1, True, True), (17.9, True, False), (5.1, False, True), (4.9, False, False)]
)
def test_a_last_epoch_that_nearly_fits_is_begun(clock, left: float, whole: bool, goes_on: bool):
    """Nine tenths of the 20 s that an epoch takes, a quarter where it may be a part; after it the schedule is over."""
    plan = planner(budget=budget_of(1000.0, in_whole_epochs=whole))
    state = TrainingState(FLOAT32, 60, epoch=5, done=0.5)
    clock.now = plan.budget.training_ends - left
    assert plan.enter_next(state, 30) == goes_on
    assert (state.current.progress[1] == 1.0) if goes_on else (state.done == 1.0)


def test_a_segment_that_took_longer_is_learned_as_its_mean_without_validations():
    budget = budget_of(1000.0, compile_seconds={16: 3.0, 24: 4.0}, validation_seconds=4.0, validate_every=2)
    plan = planner(budget=budget)
    segment = Segment(16, 4, (0.0, 0.4))
    state = TrainingState(FLOAT32, 60, segment=segment, segments=(segment,), epoch=2)
    plan.leave(state, 2, 30.0)
    assert budget.epoch_seconds == {16: 13.0, 24: 20.0}
    assert budget.compile_seconds == {24: 4.0}
    assert state.segment == segment, "two of its epochs are not done yet"
    plan.leave(state, 0, 99.0)  # a run that was killed between two segments
    assert budget.epoch_seconds == {16: 13.0, 24: 20.0}
    state.epoch = 4
    plan.leave(state, 2, 20.0)
    assert budget.epoch_seconds == {16: 8.0, 24: 20.0}
    assert (state.segment, state.done) == (None, 0.4)


def test_a_part_of_an_epoch_tells_what_a_whole_one_takes():
    budget = budget_of(1000.0, validation_seconds=4.0)
    segment = Segment(24, 1, (0.5, 1.0), share=0.5)
    state = TrainingState(FLOAT32, 60, segment=segment, segments=(segment,), epoch=1)
    planner(budget=budget).leave(state, 1, 16.0)
    assert budget.epoch_seconds[24] == 24.0


@pytest.mark.parametrize(("end", "done"), [(1 - 1e-12, 1.0), (0.9999, 0.9999)])
def test_shares_that_add_up_to_one_but_for_rounding_end_the_run(end: float, done: float):
    segment = Segment(24, 1, (0.5, end))
    state = TrainingState(FLOAT32, 60, epoch=1, segment=segment, segments=(segment,))
    planner().leave(state, 1, 1.0)
    assert state.done == done


def test_a_segment_that_was_cut_in_its_first_epoch_counts_as_never_begun():
    first, second = Segment(16, 4, (0.0, 0.4)), Segment(24, 6, (0.4, 1.0))
    state = TrainingState(FLOAT32, 60, 4, 0.4, (first, second), second, first_epoch=4)
    planner().cut_short(state)
    assert state.segments == (first,)
    assert not state.goes_on


def test_a_plan_is_read_from_a_record_as_it_was_done():
    plan = TrainingPlan((Segment(16, 3, (0.0, 1 / 3)), Segment(24, 4, (1 / 3, 1.0), share=0.7)), 42)
    segments = [segment.to_dict() for segment in plan.segments]
    record = RunRecord.model_validate(json.loads(json.dumps({"segments": segments, "planned_steps": plan.steps})))
    assert TrainingPlan.of_record(record) == plan


COSTLY = {"compile_seconds": {16: 3.0}, "validation_seconds": 4.0, "final_seconds": 7.0, "validate_every": 2}


@pytest.mark.parametrize(
    ("budget", "replay", "line"),
    [
        (None, None, "10 epochs (4 at 16 px, then 6 at 24 px), float32."),
        (  # 2 · 10 + 3 · 20 s, 2.5 validations of 4 s, and 3 s to compile
            budget_of(100.0, **COSTLY),
            None,
            "5 epochs (2 at 16 px, then 3 at 24 px), float32; about 93 s of training and 7 s for the final "
            "measurement.",
        ),
        (
            budget_of(10.0, **COSTLY),
            None,
            "1 epochs of 25% of them each (1 at 24 px), float32; about 10 s of training and 7 s for the final "
            "measurement. Even that takes longer than the time given: it will run over.",
        ),
        (
            budget_of(100.0, **COSTLY),
            TrainingPlan((Segment(16, 3, (0.0, 0.3)), Segment(24, 4, (0.3, 0.8))), 99),
            "7 epochs (3 at 16 px, then 4 at 24 px), float32.",
        ),
    ],
    ids=["recipe", "budget", "too little time", "replay"],
)
def test_a_plan_is_one_line_that_says_what_it_costs(clock, budget, replay, line: str):
    assert planner(budget=budget, replay=replay).describe() == f"Plan: 48 training photos, {line}"


def timed(
    monkeypatch: pytest.MonkeyPatch, *changes: str, precision: Precision = FLOAT32
) -> tuple[Budget, list[tuple[int, bool]]]:
    """Time with clocks that say a millisecond a pixel of the side, and as many seconds to compile; spoil the weights.

    Returns:
        The budget, and (picture size, whether the step was to be compiled anew) in the order of timing.
    """
    inputs, seen = Inputs(recipe_of(*changes), PHOTOS), []
    model, rate = compiled(inputs.recipe, 2, "float32")

    def step_time(given: Any, batches: Any) -> StepTime:
        seen.append((batches.image_px, given.train_function is None))
        given.set_weights([weight + 1 for weight in given.get_weights()])
        given.train_function = "compiled"
        return StepTime(batches.image_px / 1000, float(batches.image_px))

    monkeypatch.setattr(planning, "step_time", step_time)
    before = model.get_weights()
    budget = time_budget(inputs, model, rate, precision, Deadline(5000.0, 0.01))
    assert all(np.array_equal(old, now) for old, now in zip(before, model.get_weights(), strict=True))
    return budget, seen


KNOWN = Precision("float32", {"float32": 50.0, "mixed_bfloat16": 99.0}, "", 11.0)
OTHER = Precision("float32", {"mixed_bfloat16": 99.0}, "", 11.0)
LARGER = Precision("float32", {"float32": 50.0}, "", 11.0, timed_px=32)
SHRINKING = "train.stages=[{image_px=24, share=1}, {image_px=16, share=1}]"
AND_BACK = "train.stages=[{image_px=16, share=1}, {image_px=24, share=1}, {image_px=16, share=1}]"


@pytest.mark.parametrize(
    ("changes", "precision", "order", "compiling", "kept"),
    [
        ([], FLOAT32, [24, 16], {24: 24, 16: 0}, 16),
        ([SHRINKING], FLOAT32, [16, 24], {16: 16, 24: 0}, 24),
        (["train.stages=[]"], FLOAT32, [24], {24: 0}, 24),
        ([AND_BACK], FLOAT32, [16, 24], {16: 16, 24: 24}, None),  # what is compiled last is not what comes first
        (["train.weight_average=0.1"], FLOAT32, [24, 16], {24: 24, 16: 16}, None),  # its length is not known yet
        ([], KNOWN, [16], {24: 11, 16: 0}, 16),
        (["train.stages=[]"], KNOWN, [], {24: 11}, None),
        ([], OTHER, [24, 16], {24: 24, 16: 0}, 16),
        ([], LARGER, [16], {24: 11, 16: 0}, 16),
        ([SHRINKING], LARGER, [16, 24], {16: 16, 24: 0}, 24),
        (["train.stages=[]"], LARGER, [24], {24: 0}, 24),
    ],
    ids=[
        "grows",
        "shrinks",
        "one size",
        "and back",
        "averaged",
        "known",
        "all known",
        "of another precision",
        "of larger pictures",
        "of larger pictures, shrinks",
        "of larger pictures, one size",
    ],
)
def test_each_size_is_timed_once_and_that_of_the_first_stage_last(
    monkeypatch: pytest.MonkeyPatch, changes, precision, order, compiling, kept
):
    """The step that was compiled last is kept for the training, and then costs nothing more."""
    budget, seen = timed(monkeypatch, *changes, precision=precision)
    assert seen == [(px, True) for px in order]
    per_image = {24: 0.05 if precision is KNOWN else 0.024, 16: 0.016}
    if precision is LARGER and not changes:  # 16 px take 16 ms and 32 px 50: in between by area
        per_image[24] = 0.016 + 0.034 * (24**2 - 16**2) / (32**2 - 16**2)
    assert budget.epoch_seconds == pytest.approx({px: 48 * per_image[px] for px in compiling})
    assert budget.compile_seconds == compiling
    assert budget.compiled_px == kept


def test_the_other_costs_of_a_budget_follow_from_a_look_at_a_photo(monkeypatch: pytest.MonkeyPatch):
    """0.01 s a photo: 16 validated and 30 recalibrated ones in each validation, all 64 at the end."""
    budget, _ = timed(monkeypatch, "train.recalibrate_photos=30", "train.validate_every=3")
    assert (budget.deadline, budget.validate_every) == (5000.0, 3)
    assert budget.validation_seconds == pytest.approx(0.46)
    assert budget.final_seconds == pytest.approx(4 + 64 * 0.0102)
    inputs = Inputs(load_recipe("transfer", ["model.weights=somewhere"]), PHOTOS)
    assert final_seconds(inputs, 0.1) == pytest.approx(7 + 64 * 0.1002), "a pretrained network is larger"


def test_a_device_times_its_own_steps_and_no_step_of_keras_is_kept():
    class Device:
        asked: list[int] = []  # noqa: RUF012

        def seconds_per_image(self, image_px: int) -> float:
            self.asked.append(image_px)
            return image_px / 1e6

    inputs = Inputs(recipe_of(), PHOTOS)
    model, rate = compiled(inputs.recipe, 2, "float32")
    budget = time_budget(inputs, model, rate, KNOWN, Deadline(5000.0, 0.0), Device())
    assert Device.asked == [24, 16]
    assert budget.epoch_seconds == pytest.approx({24: 48 * 24e-6, 16: 48 * 16e-6})
    assert (budget.compile_seconds, budget.compiled_px) == ({24: 0.0, 16: 0.0}, None)
    assert model.train_function is None


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(each)) for each in (*model.weights, *model.optimizer.variables)]


@pytest.mark.slow
@pytest.mark.integration
def test_real_steps_are_timed_and_the_step_that_is_kept_is_not_traced_again():
    inputs = Inputs(recipe_of("train.stages=[]"), PHOTOS)
    model, rate = compiled(inputs.recipe, 2, "float32")
    before = values(model)
    budget = time_budget(inputs, model, rate, FLOAT32, Deadline(5000.0, 0.0))
    assert all(np.array_equal(old, now) for old, now in zip(before, values(model), strict=True))
    assert 0 < budget.epoch_seconds[24] < 60
    assert (budget.compile_seconds, budget.compiled_px) == ({24: 0.0}, 24)
    kept, traces = model.train_function, []
    one_step = type(model).train_step
    model.train_step = lambda *given: traces.append(1) or one_step(model, *given)
    model.fit(inputs.training(24), epochs=1, verbose=0, shuffle=False)
    assert model.train_function is kept
    assert not traces
