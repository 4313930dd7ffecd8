"""Which sizes and how many photos fit a time: the arithmetic by hand, and one plan with real clocks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from drawing import save_photo
from tellapart.data.scan import find_photos, part_of
from tellapart.settings import Recipe, load_recipe
from tellapart.training import time_plan
from tellapart.training.planning import Planner, TrainingPlan
from tellapart.training.schedule import Segment
from tellapart.training.state import TrainingState
from tellapart.training.time_plan import plan_for_time
from tellapart.training.timing import Budget, Precision

FAST = load_recipe("fast")
FLOAT32 = Precision("float32", {}, "")
TRANSFER = load_recipe("transfer")


def planned(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, num_photos: int, seconds: float, **costs: float):
    """Plan with clocks that say what is given, in milliseconds a photo, at the recipe's own sizes."""
    base = {"scan": 1.0, "decode": 1.0, "forward": 1.0, "step": 1.0, "photo_px": 1000} | costs
    at = recipe.data.image_px

    def area(smaller: Recipe) -> float:
        return (smaller.data.image_px / at) ** 2 / 1000

    monkeypatch.setattr(time_plan, "_time_scan", lambda *_: (base["scan"] / 1000, base["photo_px"]))
    monkeypatch.setattr(time_plan, "_time_decoding", lambda *_: base["decode"] / 1000)
    monkeypatch.setattr(time_plan, "_time_forward", lambda recipe, *_: base["forward"] * area(recipe))
    monkeypatch.setattr(time_plan, "_time_training", lambda recipe, _: (None, base["step"] * area(recipe)))
    return plan_for_time([Path(str(n)) for n in range(num_photos)], 9, recipe, seconds)


def test_what_fits_is_left_as_it_is(monkeypatch):
    plan = planned(monkeypatch, FAST, 10_000, 600)
    assert plan.recipe == FAST
    assert plan.share == 1


def test_pictures_are_no_larger_than_the_photos(monkeypatch):
    plan = planned(monkeypatch, FAST, 1000, 600, photo_px=32)
    assert (plan.recipe.data.image_px, plan.recipe.train.source_px) == (32, 32)
    assert [stage.image_px for stage in plan.recipe.train.stages] == [24, 32]
    assert [stage.share for stage in plan.recipe.train.stages] == [0.4, 0.6]


def epochs_at(image_px: int) -> float:
    """Of 10,000 photos in 100 s: 2.35 ms each to read, then 1 ms to predict and 2 ms to learn from, at 64 px."""
    area = (image_px / 64) ** 2
    once, validation = 10_000 * (0.00235 + 0.001 * area), 2_000 * 0.001 * area / 3
    return (100 - 12 - once) / (7_000 * 0.002 * area + validation)


def test_pictures_shrink_until_ten_epochs_fit(monkeypatch):
    plan = planned(monkeypatch, FAST, 10_000, 100, step=2.0)
    assert plan.share == 1
    assert plan.recipe.data.image_px == 40
    assert epochs_at(48) < 10 < epochs_at(40)
    assert plan.costs.step == pytest.approx(0.002 * (40 / 64) ** 2)


def test_photos_are_left_out_where_all_of_them_would_have_fewer_than_four_epochs(monkeypatch):
    """As measured on 41,072 pictures of 32 px: all of them got two epochs in two minutes."""
    plan = planned(monkeypatch, FAST, 41_072, 107, photo_px=32, scan=0.364, decode=0.121, forward=1.1, step=1.86)
    assert plan.recipe.data.image_px == 32
    once = plan.costs.scan + plan.costs.decode + plan.costs.forward + 0.00035
    epoch = 0.7 * plan.costs.step + 0.2 * plan.costs.forward
    assert 41_072 * plan.share * (once + 4 * epoch) == pytest.approx(95, rel=1e-3)
    assert 0.7 < plan.share < 1


@pytest.mark.parametrize("scan", [20.0, 100.0])
def test_photos_are_left_out_where_reading_all_of_them_takes_the_time(monkeypatch, scan: float):
    plan = planned(monkeypatch, FAST, 40_000, 120, scan=scan)
    reading = 40_000 * plan.share * (plan.costs.scan + plan.costs.decode + plan.costs.forward + 0.00035)
    assert reading == pytest.approx(48, rel=0.01)
    assert plan.share < 0.1


def test_a_pretrained_network_keeps_its_size_and_looks_at_as_many_photos_as_it_can(monkeypatch):
    plan = planned(monkeypatch, TRANSFER, 17_000, 120, forward=18, photo_px=222)
    assert plan.recipe == TRANSFER
    a_photo = 0.020 + 0.00035  # with its part in the checks and the tables
    assert 17_000 * plan.share * a_photo == pytest.approx((120 - 15) / 1.1, rel=0.01)
    assert planned(monkeypatch, TRANSFER, 17_000, 1200, forward=180, photo_px=222).share * 17_000 * (
        a_photo + 0.162
    ) == pytest.approx(0.8 * 1200, rel=0.01), "a head for many photos takes longer"
    assert planned(monkeypatch, TRANSFER, 2_000, 120, forward=18).share == 1
    assert planned(monkeypatch, TRANSFER, 2_000, 120, photo_px=32).recipe.data.image_px == 96


def test_a_part_of_the_photos_has_all_classes_and_is_the_same_each_time(tmp_path: Path):
    for label, count in (("few", 6), ("many", 60)):
        for number in range(count):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{number}.jpg").touch()
    _, files, _ = find_photos(tmp_path)
    part = part_of(files, 0.3, seed=1)
    assert part["label"].value_counts().to_dict() == {"many": 18, "few": 6}
    assert part["path"].is_monotonic_increasing
    assert part.equals(part_of(files, 0.3, seed=1))
    assert not part.equals(part_of(files, 0.3, seed=2))
    assert part_of(files, 1.0, seed=1) is files


@pytest.mark.integration
def test_real_clocks_give_a_plan(tmp_path: Path):
    paths = [save_photo(tmp_path / f"{n}.jpg", n, (80, 60)) for n in range(30)]
    plan = plan_for_time(paths, 3, FAST, 600)
    assert plan.photo_px == 69
    assert plan.recipe == FAST
    assert plan.precision is not None
    assert plan.precision.milliseconds_per_image[plan.precision.name] == pytest.approx(1000 * plan.costs.step)
    assert all(0 < value < 1 for value in plan.to_dict()["seconds_per_photo"].values())


def planner(budget: Budget | None, replay: TrainingPlan | None = None) -> Planner:
    from types import SimpleNamespace

    recipe = load_recipe(changes=["train.epochs=8", "data.image_px=64"])
    return Planner(SimpleNamespace(recipe=recipe), FLOAT32, budget, replay)


def test_training_ends_when_no_further_epoch_fits(monkeypatch):
    clock = {"now": 1000.0}
    monkeypatch.setattr(time, "time", lambda: clock["now"])
    plan = planner(Budget(1100.0, {64: 20.0}, {}, 0.0, 10.0, 1))
    state = TrainingState(FLOAT32, 80)
    assert plan.enter_next(state, 0)
    clock["now"], state.epoch = 1073.0, 1  # 17 s left for an epoch of 20 s
    state.segment, state.done = None, 0.25
    assert not plan.enter_next(state, 10)
    assert state.done == 1
    late = TrainingState(FLOAT32, 80)
    clock["now"] = 5000.0
    assert plan.enter_next(late, 0), "a run without any epoch has nothing to keep: one is trained, however late"


def test_a_segment_that_was_cut_short_is_replayed_as_far_as_it_went():
    plan = planner(None)
    whole = Segment(64, 4, (0.5, 1.0))
    segments = (Segment(64, 4, (0.0, 0.5)), whole)
    state = TrainingState(FLOAT32, 80, epoch=5, first_epoch=4, done=0.5, segment=whole, segments=segments)
    plan.cut_short(state)
    assert state.done == 1
    assert state.segment is None
    done = TrainingPlan.of(state)
    assert done.segments == (Segment(64, 4, (0.0, 0.5)), Segment(64, 1, (0.5, 0.625), is_cut=True))
    again, repeated = planner(None, done), TrainingState(FLOAT32, 80)
    for segment in done.segments:
        assert again.enter_next(repeated, 0)
        assert repeated.current == segment
        repeated.segment, repeated.done = None, segment.progress[1]
        repeated.epoch += segment.epochs
    assert not again.enter_next(repeated, 0)
