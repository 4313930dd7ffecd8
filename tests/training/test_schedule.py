"""The learning rate against numbers computed by hand, and plans that add up."""

from __future__ import annotations

import itertools
import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.settings import Recipe, Stage, Train
from tellapart.training.schedule import PlannedRate, Segment, plan, rate_at, snapshots_due, stages_of

WARM = Train(epochs=36, warmup_epochs=3, learning_rate=8e-3, final_learning_rate=8e-5)
STAGES = (Stage(image_px=48, share=2), Stage(image_px=64, share=3))


@pytest.mark.parametrize(
    ("progress", "rate"),
    [
        (0, 0),
        (1 / 24, 4e-3),  # half of the warm-up
        (1 / 12, 8e-3),  # its end
        (1 / 12 + 11 / 48, 8e-5 + 7.92e-3 * (2 + math.sqrt(2)) / 4),  # a quarter of the cosine
        (1 / 12 + 11 / 24, 4.04e-3),  # its middle
        (1, 8e-5),
        (1.5, 8e-5),
    ],
)
def test_the_rate_rises_and_falls_as_computed_by_hand(progress, rate):
    assert rate_at(progress, WARM) == pytest.approx(rate, abs=1e-12)


def test_without_warm_up_the_highest_rate_comes_first():
    train = Train(warmup_epochs=0, learning_rate=1e-3, final_learning_rate=1e-4)
    assert [rate_at(p, train) for p in (0, 0.5, 1)] == pytest.approx([1e-3, 5.5e-4, 1e-4])


@pytest.mark.parametrize("train", [WARM, Train(warmup_epochs=0)], ids=["warm-up", "none"])
def test_the_optimiser_steps_with_the_planned_rate_through_all_segments(train):
    """The gradient of the one weight is 1, so each step shows the rate that was used."""
    rate = PlannedRate(train)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(rate), loss=lambda true, output: output)
    ones = np.ones((2, 1), np.float32)
    first_step = 0
    for segment, steps in (
        (Segment(48, 1, (0.0, 0.05)), 3),
        (Segment(48, 1, (0.05, 0.6)), 4),
        (Segment(64, 2, (0.6, 1.0)), 5),
    ):
        rate.enter(segment, first_step, steps)
        low, high = segment.progress
        for step in range(steps):
            before = float(model.get_weights()[0][0, 0])
            model.train_on_batch(ones, ones)
            moved = before - float(model.get_weights()[0][0, 0])
            assert moved == pytest.approx(rate_at(low + (high - low) * (step + 0.5) / steps, train), abs=3e-7)
        first_step += steps
    assert int(model.optimizer.iterations) == first_step == 12


@pytest.mark.parametrize("longest", [None, 1, 4])
@pytest.mark.parametrize("start", [0.0, 0.13, 0.4, 0.77])
@pytest.mark.parametrize("epochs", [1, 2, 5, 36])
def test_plans_add_up_and_progress_is_continuous(epochs, start, longest):
    segments = plan(STAGES, epochs, start=start, longest=longest)
    assert sum(segment.epochs for segment in segments) == epochs
    assert all(1 <= segment.epochs <= (longest or epochs) for segment in segments)
    sizes = [segment.image_px for segment in segments]
    assert sizes == sorted(sizes)
    assert segments[0].progress[0] == pytest.approx(start)
    assert segments[-1].progress[1] == pytest.approx(1)
    for segment, following in itertools.pairwise(segments):
        assert segment.progress[1] == pytest.approx(following.progress[0])
    for segment in segments:
        low, high = segment.progress
        assert high - low == pytest.approx((1 - start) * segment.epochs / epochs)


def test_stages_get_their_shares_of_what_is_left():
    assert [(s.image_px, s.epochs) for s in plan(STAGES, 35)] == [(48, 14), (64, 21)]
    assert [(s.image_px, s.epochs) for s in plan(STAGES, 12, start=0.2)] == [(48, 3), (64, 9)]
    assert [(s.image_px, s.epochs) for s in plan(STAGES, 7, start=0.4)] == [(64, 7)]
    assert [s.epochs for s in plan(STAGES, 35, longest=10)] == [10, 4, 10, 10, 1]


def test_without_stages_all_epochs_are_at_the_recipes_size():
    stages = stages_of(Recipe())
    assert plan(stages, 45) == [Segment(224, 45, (0.0, 1.0))]


def test_segments_survive_json():
    for segment in (*plan(STAGES, 7, start=0.3), Segment(48, 1, (0.3, 0.4), is_cut=True)):
        values = json.loads(json.dumps(segment.to_dict()))
        assert Segment.from_dict(values) == segment
        assert ("is_cut" in values) == segment.is_cut, "runs that were not cut are recorded as they always were"


def test_snapshots_divide_the_second_half_of_the_schedule():
    """Three of them in 16 epochs: due after 5/8, 6/8 and 7/8, in the second of two segments of 8."""
    second = Segment(64, 8, (0.5, 1.0))
    assert [snapshots_due(second, epochs, 3) for epochs in range(1, 9)] == [0, 1, 1, 2, 2, 3, 3, 3]
    assert snapshots_due(Segment(64, 8, (0.0, 0.5)), 8, 3) == 0
    assert snapshots_due(second, 8, 0) == 0


@pytest.mark.parametrize(("progress", "rate"), [(0.125, 2e-3), (0.25, 4e-3), (0.5, 8e-3), (0.75, 4.04e-3), (1.0, 8e-5)])
def test_the_warm_up_of_few_epochs_is_half_of_them(progress: float, rate: float):
    """Three epochs of warm-up in four of training would leave one to learn in."""
    train = Train(epochs=4, warmup_epochs=3, learning_rate=8e-3, final_learning_rate=8e-5)
    planned = PlannedRate(train)
    planned.enter(Segment(48, 4, (progress, progress)), 0, 1)
    assert rate_at(progress, train) == pytest.approx(rate, rel=1e-6)
    assert float(planned(0)) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("train", [WARM, Train(epochs=10, warmup_epochs=0)], ids=["warm-up", "none"])
def test_two_segments_are_one_schedule(train: Train):
    """A segment of 60 steps, and the same steps in three segments that begin where the one before ends."""
    whole, parts, found = PlannedRate(train), PlannedRate(train), []
    whole.enter(Segment(48, 6, (0.0, 1.0)), 0, 60)
    for first, steps in ((0, 10), (10, 35), (45, 15)):
        parts.enter(Segment(48, 1, (first / 60, (first + steps) / 60)), first, steps)
        found += [float(parts(step)) for step in range(first, first + steps)]
    assert found == pytest.approx([float(whole(step)) for step in range(60)], rel=1e-4)
    assert found == pytest.approx([rate_at((step + 0.5) / 60, train) for step in range(60)], rel=1e-4)


def test_a_speed_that_is_given_counts_instead_of_the_own_one_until_it_is_taken_back():
    """A compiled function gets the speed as an argument; else a new plan would compile it again."""
    rate, other = PlannedRate(WARM), PlannedRate(WARM)
    rate.enter(Segment(48, 1, (0.0, 0.1)), 0, 100)
    other.enter(Segment(48, 1, (0.5, 1.0)), 40, 20)
    own, given_one = float(rate(45)), float(other(45))
    with rate.given(other.speed):
        assert float(rate(45)) == given_one != own
    assert float(rate(45)) == own
    with pytest.raises(ZeroDivisionError), rate.given(other.speed):
        _ = 1 / 0
    assert float(rate(45)) == own


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.floats(0.05, 10.0), min_size=1, max_size=5),
    epochs=st.integers(1, 200),
    start=st.floats(0.0, 0.99),
)
def test_no_stage_is_further_than_an_epoch_from_its_share(shares: list[float], epochs: int, start: float):
    stages = [Stage(image_px=16 + place, share=share) for place, share in enumerate(shares)]
    segments, edge, total = plan(stages, epochs, start=start), 0.0, sum(shares)
    assert sum(segment.epochs for segment in segments) == epochs
    for stage in stages:
        low, edge = max(edge, start), edge + stage.share / total
        wanted = epochs * max(edge - low, 0.0) / (1 - start)
        found = sum(segment.epochs for segment in segments if segment.image_px == stage.image_px)
        assert abs(found - wanted) <= 1 + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 20),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
)
def test_all_snapshots_are_due_in_turn_by_the_last_epoch_and_none_in_the_first_half(count: int, lengths: list[int]):
    """Whatever the segments: how many are due never falls, and each is due within an epoch of its place."""
    total, done, due = sum(lengths), 0, [0]
    for length in lengths:
        segment = Segment(48, length, (done / total, (done + length) / total))
        due += [snapshots_due(segment, epoch, count) for epoch in range(1, length + 1)]
        done += length
    assert due == sorted(due)
    assert due[-1] == count
    for number in range(1, count + 1):
        first = next(epoch for epoch, so_far in enumerate(due) if so_far >= number)
        assert first == math.ceil(total * (0.5 + 0.5 * number / (count + 1)) - 1e-6)
