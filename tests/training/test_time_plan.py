"""Which sizes and how many photos fit a time: the arithmetic by hand, and one plan with real clocks."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drawing import save_photo
from tellapart.data.scan import find_photos, part_of
from tellapart.settings import Recipe, load_recipe
from tellapart.training import time_plan
from tellapart.training.planning import Planner, TrainingPlan
from tellapart.training.schedule import Segment
from tellapart.training.state import TrainingState
from tellapart.training.time_plan import Costs, TimePlan, at_size, expected_seconds, plan_for_time
from tellapart.training.timing import Budget, Precision, StepTime

FAST = load_recipe("fast")
FLOAT32 = Precision("float32", {}, "")
TRANSFER = load_recipe("transfer")


def clocked(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, costs: dict[str, float]) -> None:
    """Let clocks say what is given, in milliseconds a photo, at the recipe's own sizes."""
    base = {"scan": 1.0, "decode": 1.0, "forward": 1.0, "step": 1.0, "photo_px": 1000} | costs
    at = recipe.data.image_px

    def area(smaller: Recipe) -> float:
        return (smaller.data.image_px / at) ** 2 / 1000

    monkeypatch.setattr(time_plan, "_time_scan", lambda *_: (base["scan"] / 1000, base["photo_px"]))
    monkeypatch.setattr(time_plan, "_time_decoding", lambda *_: base["decode"] / 1000)
    monkeypatch.setattr(time_plan, "_time_forward", lambda recipe, *_: base["forward"] * area(recipe))
    monkeypatch.setattr(time_plan, "_time_training", lambda recipe, _: (None, base["step"] * area(recipe)))


def paths(count: int) -> list[Path]:
    return [Path(str(number)) for number in range(count)]


def planned(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, num_photos: int, seconds: float, **costs: float):
    clocked(monkeypatch, recipe, costs)
    return plan_for_time(paths(num_photos), 9, recipe, seconds)


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


@pytest.mark.parametrize("recipe", [FAST, TRANSFER], ids=["from scratch", "pretrained"])
def test_what_timing_takes_is_paid_from_the_time(monkeypatch: pytest.MonkeyPatch, recipe: Recipe):
    """30 s of 130 s go to timing a few photos: what is planned is what fits 100 s."""
    plan = planned(monkeypatch, recipe, 5000, 100, forward=18)
    clocked(monkeypatch, recipe, {"forward": 18.0})
    clock, timed = {"now": 50.0}, time_plan._time_forward

    def slowly(*given: Any) -> float:
        clock["now"] += 30.0
        return timed(*given)

    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(time_plan, "_time_forward", slowly)
    slow = plan_for_time(paths(5000), 9, recipe, 130)
    assert slow.share == pytest.approx(plan.share, rel=1e-3)
    assert 0 < plan.share < 1
    assert slow.recipe == plan.recipe


@pytest.mark.parametrize("recipe", [FAST, TRANSFER], ids=["from scratch", "pretrained"])
def test_of_a_time_that_is_too_short_for_the_rest_photos_get_a_quarter(monkeypatch, recipe: Recipe):
    """12 and 15 s are set aside for it: of 8 s nothing would be left, and a share below 0 is no plan."""
    plan = planned(monkeypatch, recipe, 10_000, 8, forward=2, step=0.5)
    costs = plan.costs
    a_photo = costs.scan + costs.decode + costs.forward + 0.00035
    a_photo += 4 * (0.7 * costs.step + 0.2 * costs.forward) if recipe is FAST else 0.1 * a_photo
    assert 10_000 * plan.share * a_photo == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(("image_px", "smallest"), [(64, 32), (30, 30), (24, 24)])
def test_pictures_from_scratch_do_not_shrink_below_32_pixels(monkeypatch, image_px: int, smallest: int):
    """In steps of an eighth; smaller ones only where the recipe's own are. The costs are those of the last size."""
    recipe = load_recipe("fast", [f"data.image_px={image_px}", "train.stages=[]"])
    plan = planned(monkeypatch, recipe, 10_000, 60, step=5)
    assert plan.recipe.data.image_px == smallest
    area = (smallest / image_px) ** 2
    assert (plan.costs.step, plan.costs.forward) == pytest.approx((0.005 * area, 0.001 * area))


@pytest.mark.parametrize(
    ("time_of_a_step", "image_px"), [(0.65, 64), (0.95, 56), (1.3, 48)], ids=["all", "seven eighths", "three quarters"]
)
def test_the_largest_pictures_that_leave_ten_epochs_are_taken(monkeypatch, time_of_a_step: float, image_px: int):
    """100 s less 12 for the rest; 10,000 photos take 13.5 s and more to read, and 7,000 are learned from."""
    assert planned(monkeypatch, FAST, 10_000, 100, forward=0.1, step=time_of_a_step).recipe.data.image_px == image_px


@pytest.mark.parametrize(
    ("photo_px", "image_px"), [(222, 224), (224, 224), (225, 224), (193, 224), (192, 192), (97, 128), (20, 96)]
)
def test_pictures_of_a_pretrained_network_are_whole_times_32(monkeypatch, photo_px: int, image_px: int):
    """It halves them five times; of fewer than 96 pixels hardly anything would be left."""
    assert planned(monkeypatch, TRANSFER, 100, 600, photo_px=photo_px).recipe.data.image_px == image_px


@pytest.mark.parametrize(
    ("image_px", "sizes"),
    [(64, (64, 48, 64, 64)), (96, (64, 48, 64, 64)), (32, (32, 24, 32, 32)), (51, (48, 40, 48, 48)), (17, (16,) * 4)],
)
def test_a_recipe_at_a_smaller_size_has_all_its_sizes_smaller(image_px: int, sizes: tuple[int, ...]):
    """Whole times four, 16 at least, and none larger than what is asked for."""
    stages = "train.stages=[{image_px=48, share=2}, {image_px=64, share=3}]"
    recipe = load_recipe("fast", ["data.image_px=64", "train.source_px=64", stages])
    found = at_size(recipe, image_px)
    stage_sizes = [stage.image_px for stage in found.train.stages]
    assert (found.data.image_px, *stage_sizes, found.train.source_px) == sizes
    assert [stage.share for stage in found.train.stages] == [2, 3]
    assert (found == recipe) == (image_px >= 64)


def test_a_run_without_a_budget_takes_its_epochs_and_what_is_besides(monkeypatch: pytest.MonkeyPatch):
    """Steps were timed at the last size, 64 px; two fifths of the epochs are at 48 px, which costs 9/16 of it."""
    stages = "train.stages=[{image_px=48, share=2}, {image_px=64, share=3}]"
    recipe = load_recipe("fast", ["data.image_px=64", "train.epochs=20", "train.validate_every=4", stages])
    clocked(monkeypatch, recipe, {"scan": 1.0, "decode": 2.0, "forward": 3.0, "step": 4.0})
    seconds, costs = expected_seconds(paths(1000), 9, recipe)
    assert (costs.scan, costs.decode, costs.forward, costs.step) == pytest.approx((0.001, 0.002, 0.003, 0.004))
    an_epoch = 700 * 0.004 * (0.4 * 9 / 16 + 0.6) + 200 * 0.003 / 4
    assert seconds == pytest.approx(12 + 1000 * (0.006 + 0.00035) + 20 * an_epoch)


def test_of_a_pretrained_network_only_the_features_are_foreseen(monkeypatch: pytest.MonkeyPatch):
    clocked(monkeypatch, TRANSFER, {"forward": 20.0})
    assert expected_seconds(paths(1000), 9, TRANSFER)[0] == pytest.approx(12 + 1000 * (0.022 + 0.00035))


def test_the_photos_that_are_timed_are_drawn_by_the_seed_from_all_of_them(monkeypatch: pytest.MonkeyPatch):
    """56 at most, and each once: the first of a folder are of one class, and may be of one camera."""
    seen = []
    clocked(monkeypatch, FAST, {})
    monkeypatch.setattr(time_plan, "_time_scan", lambda sample, _: seen.append(sample) or (0.001, 1000))
    for count, recipe in ((1000, FAST), (1000, FAST), (1000, load_recipe("fast", ["train.seed=1"])), (9, FAST)):
        plan_for_time(paths(count), 9, recipe, 600)
    assert [len(set(sample)) for sample in seen] == [len(sample) for sample in seen] == [56, 56, 56, 9]
    assert seen[0] == seen[1] != seen[2]
    assert sum(int(str(path)) >= 500 for path in seen[0]) > 14, "from the second half too"
    assert set(seen[3]) == set(paths(9))


@pytest.mark.parametrize(("count", "a_file"), [(17, 1.0), (16, 50.5), (1, 100.0), (0, 0.0)])
def test_the_first_files_of_many_are_not_timed(monkeypatch: pytest.MonkeyPatch, count: int, a_file: float):
    """Eight take 100 s each, as those that start the threads do, and all others 1 s."""
    clock, lock = {"now": 0.0}, threading.Lock()

    def work(path: Path) -> int:
        with lock:
            clock["now"] += 100.0 if int(str(path)) < 8 else 1.0
        return int(str(path))

    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    seconds, results = time_plan._time_per_file(work, paths(count))
    assert seconds == pytest.approx(a_file)
    assert results == list(range(count)), "each once, in their order"


def test_the_usual_size_of_photos_is_that_which_three_quarters_do_not_exceed(tmp_path: Path):
    """As squares of the same area; a file that cannot be read has none."""
    sizes = [(10, 10), (10, 40), (90, 10), (20, 80), (100, 100)]
    files = [save_photo(tmp_path / f"{number}.png", number, size) for number, size in enumerate(sizes)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    seconds, photo_px = time_plan._time_scan([*files, tmp_path / "broken.png"], 10**8)
    assert photo_px == 40
    assert seconds > 0
    assert time_plan._time_scan([tmp_path / "broken.png"], 10**8)[1] == 1024, "no photo says that smaller ones do"


@pytest.mark.parametrize(("source_px", "sizes"), [(0, [64]), (64, [64]), (96, [64, 96])])
def test_decoding_is_timed_at_each_size_once_and_a_broken_file_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_px: int, sizes: list[int]
):
    seen, decode = [], time_plan.decode_square
    monkeypatch.setattr(
        time_plan, "decode_square", lambda data, px, **more: seen.append(px) or decode(data, px, **more)
    )
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [save_photo(tmp_path / "0.png", 0), tmp_path / "broken.png"]
    recipe = load_recipe("fast", ["data.image_px=64", f"train.source_px={source_px}"])
    assert time_plan._time_decoding(files[:1], recipe) > 0
    assert sorted(seen) == sizes
    assert time_plan._time_decoding(files, recipe) > 0


@pytest.mark.parametrize(
    ("known", "timed", "step"),
    [
        ({}, True, 0.002),
        ({"mixed_bfloat16": 9.0}, True, 0.002),
        ({"float32": 7.0, "mixed_bfloat16": 9.0}, False, 0.007),
    ],
    ids=["settled without", "another one was timed", "timed already"],
)
def test_steps_are_timed_on_noise_where_the_choice_of_the_precision_did_not(monkeypatch, known, timed: bool, step):
    """Of the last stage, in batches of the recipe, with targets as wide as those of a student."""
    seen, chosen = [], Precision("float32", known, "as it was settled", 1.0)
    monkeypatch.setattr(
        time_plan, "choose_precision", lambda wanted, make, batches: [seen.append((wanted, batches)), chosen][1]
    )
    monkeypatch.setattr(
        time_plan, "step_time", lambda model, batches: seen.append((model, batches)) or StepTime(0.002, 3.0)
    )
    stages = "train.stages=[{image_px=16, share=1}, {image_px=24, share=1}]"
    recipe = load_recipe("fast", ["train.batch_size=6", "distill.teacher=somewhere", "model.width=0.25", stages])
    precision, seconds = time_plan._time_training(recipe, 5)
    assert seconds == pytest.approx(step)
    assert precision == (
        replace(chosen, milliseconds_per_image={"float32": 2.0}, compile_seconds=3.0, timed_px=24) if timed else chosen
    )
    assert len(seen) == 1 + timed
    images, targets = seen[0][1][0]
    assert (images.shape, images.dtype, targets.shape) == ((6, 24, 24, 3), np.uint8, (6, 10))
    assert (targets[:, :5].sum(axis=1) == 1).all()
    np.testing.assert_array_equal(targets[:, :5], targets[:, 5:])
    assert time_plan._time_training(TRANSFER, 5) == (None, 0.0), "a head is fitted to features"


@pytest.mark.parametrize(("image_px", "at_once"), [(16, 128), (144, 77)])
def test_a_prediction_is_timed_in_batches_as_the_run_makes_them(monkeypatch, image_px: int, at_once: int):
    seen = []
    monkeypatch.setattr(time_plan, "seconds_per_prediction", lambda forward, images: seen.append(images.shape) or 0.5)
    recipe = load_recipe("fast", [f"data.image_px={image_px}", "model.width=0.25"])
    assert time_plan._time_forward(recipe, 3, 100) == 0.5
    assert seen == [(at_once, image_px, image_px, 3)]


def test_a_plan_in_the_record_names_its_precision_only_where_one_was_measured():
    plan = TimePlan(FAST, 0.5, Costs(0.001, 0.002, 0.003, 0.0), None, 80)
    values = {"share": 0.5, "photo_px": 80, "image_px": FAST.data.image_px}
    values["seconds_per_photo"] = {"scan": 0.001, "decode": 0.002, "forward": 0.003, "step": 0.0}
    assert plan.to_dict() == values
    measured = {"name": "float32", "milliseconds_per_image": {}, "reason": "", "compile_seconds": 0.0, "timed_px": 0}
    assert replace(plan, precision=FLOAT32).to_dict() == values | {"precision": measured}


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
@pytest.mark.by_hand
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
    clock["now"], state.epoch = 1086.0, 1  # 4 s left for a quarter of an epoch of 20 s
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
