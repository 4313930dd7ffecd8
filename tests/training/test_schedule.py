"""The learning rate against numbers computed by hand, and plans that add up."""

from __future__ import annotations

import itertools
import json
import math

import keras
import numpy as np
import pytest

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
    for segment in plan(STAGES, 7, start=0.3):
        assert Segment.from_dict(json.loads(json.dumps(segment.to_dict()))) == segment


def test_snapshots_divide_the_second_half_of_the_schedule():
    """Three of them in 16 epochs: due after 5/8, 6/8 and 7/8, in the second of two segments of 8."""
    second = Segment(64, 8, (0.5, 1.0))
    assert [snapshots_due(second, epochs, 3) for epochs in range(1, 9)] == [0, 1, 1, 2, 2, 3, 3, 3]
    assert snapshots_due(Segment(64, 8, (0.0, 0.5)), 8, 3) == 0
    assert snapshots_due(second, 8, 0) == 0
