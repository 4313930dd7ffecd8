"""Training through stages of picture size, in a given time, and what is left when the time is over."""

from __future__ import annotations

import json
import math
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tellapart
from drawing import make_classes
from held import held_photos
from tellapart.models import passes
from tellapart.records import Observer
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.settings import Recipe, load_recipe
from tellapart.training import train as training
from tellapart.training.callbacks import recalibrate
from tellapart.training.checkpoint import load_checkpoint, load_weights
from tellapart.training.inputs import Inputs, Photos
from tellapart.training.network import compiled
from tellapart.training.planning import Planner, TrainingPlan
from tellapart.training.schedule import Segment
from tellapart.training.timing import Deadline, Precision
from tellapart.training.train import Training, TrainingRequest, train_network


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("budget", [None, pytest.param(25.0, marks=pytest.mark.slow)], ids=["epochs", "budget"])
def test_every_stage_trains_in_the_fused_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float | None):
    """TensorFlow would generalise the step at the second size to sides of any length, twice as slow."""
    seen, gradient = [], passes.max_gradient
    monkeypatch.setattr(
        passes, "max_gradient", lambda raw, *others: [seen.append(raw.shape[1]), *gradient(raw, *others)][1:]
    )
    photos = make_classes(tmp_path / "photos", {"a": 30, "b": 30})
    changes = [
        "data.image_px=24", "train.stages=[{image_px=16, share=1}, {image_px=24, share=1}]", "train.batch_size=8",
        "train.epochs=2", "train.precision=float32",
    ]  # fmt: skip
    tellapart.train(photos, changes=changes, time_budget=budget, out=tmp_path / "run", cache=tmp_path / "cache")
    steps = 42 // 8
    assert seen.count(16) >= steps, "the first block at 16 px"
    assert seen.count(24) >= steps, "and at 24 px"


SMALL = [
    "data.image_px=16", "train.batch_size=8", "train.precision=float32", "train.deterministic=true",
    "train.learning_rate=5e-3", "model.width=0.25", "model.dropout=0.2",
]  # fmt: skip
FULL = ["train.weight_average=0.2", "train.recalibrate_photos=20"]
LONG = 1e6
"""Seconds: any training here fits, and then a budget allows four times the recipe's epochs, in eight parts."""


def small(*changes: str) -> Recipe:
    return load_recipe(changes=[*SMALL, *changes])


def train(folder: Path, recipe: Recipe, photos: Photos, observer: Observer | None = None, **request: Any) -> Training:
    """Train in a folder; `seconds` from now until all must be done."""
    if "seconds" in request:
        request["deadline"] = Deadline(time.time() + request.pop("seconds"), 0.0, request.pop("known", None))
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    return train_network(run, recipe, photos, request=TrainingRequest(**request), observer=observer)


def without_validation(photos: Photos) -> Photos:
    return replace(photos, frame=photos.frame.assign(split=photos.frame["split"].replace("validation", "test")))


def kept(folder: Path) -> list[np.ndarray]:
    return load_weights(RunFolder(folder).best_weights)[0]


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("every", "last", "is_cut", "epochs"),
    [
        (1, 3, False, [1, 2, 3]),
        (3, 9, False, [3, 6, 9]),
        (3, 10, False, [3, 6, 9, 10]),
        (3, 10, True, [3, 6, 9]),
        (3, 9, True, [3, 6, 9]),
        (5, 2, False, [2]),
        (5, 2, True, []),
    ],
)
def test_each_so_many_epochs_are_validated_and_the_last_one_unless_time_was_over(every, last, is_cut, epochs):
    assert training._validation_epochs(every, last, is_cut=is_cut) == epochs


def test_a_precision_that_was_measured_on_the_way_is_not_chosen_again():
    """The plan for a time budget comes first: it timed whole steps. Else what began ahead, while photos were read."""
    inputs, measured, ahead = Inputs(small(), held_photos()), Precision("mixed_bfloat16", {}, "timed"), Future()
    ahead.set_result(Precision("mixed_bfloat16", {}, "ahead"))
    for deadline, reason in ((Deadline(0.0, 0.0, measured), "timed"), (Deadline(0.0, 0.0), "ahead"), (None, "ahead")):
        assert training._precision(inputs, TrainingRequest(deadline=deadline, precision=ahead)).reason == reason
    for request in (TrainingRequest(), TrainingRequest(deadline=Deadline(0.0, 0.0))):
        assert training._precision(inputs, request) == Precision("float32", {}, "set in the recipe")


@pytest.mark.parametrize(
    ("fine_tunes", "left", "is_timed"),
    [(True, 24.65, False), (True, 24.66, True), (True, -5.0, False), (False, 24.65, True)],
)
def test_fine_tuning_is_not_even_timed_where_the_head_leaves_no_time_for_it(
    monkeypatch: pytest.MonkeyPatch, fine_tunes: bool, left: float, is_timed: bool
):
    """20 s to build its step, 4 s for the end, and 10.2 ms for each of 64 photos; then the head is kept as it is."""
    inputs, calls = Inputs(small(), held_photos()), []
    float32, trainee = Precision("float32", {}, ""), training._Trainee(None, None)
    monkeypatch.setattr(training, "time_budget", lambda *given: calls.append(given))
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    budget = training._time_budget(inputs, float32, Deadline(1000.0 + left, 0.01), trainee, fine_tunes=fine_tunes)
    assert len(calls) == is_timed
    if not is_timed:
        assert budget.epoch_seconds == {16: math.inf}
        assert not Planner(inputs, float32, budget, None).has_time()


class Late:
    """A clock that jumps beyond any deadline after an epoch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
        self.epoch, self.jump, real = epoch, 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.jump)
        self.said: list[str] = []
        self.observer = Observer(watch=self.watch, announce=self.said.append)

    def watch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.epoch:
            self.jump = 2 * LONG


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ([], None),
        pytest.param(FULL, None, marks=pytest.mark.by_hand),
        pytest.param(
            ["train.stages=[]", *FULL],
            Precision("float32", {"float32": 1.0}, "measured before", 1.0),
            marks=pytest.mark.by_hand,
        ),
    ],
    ids=["the timed step is kept", "compiled anew", "nothing is timed"],
)
@pytest.mark.slow
def test_a_run_whose_steps_were_timed_has_the_weights_of_its_replay(tmp_path: Path, changes: list[str], known):
    """A replay times nothing: what timing did to weights, dropout and the first step must not count."""
    stages = "train.stages=[{image_px=16, share=1}, {image_px=24, share=1}]"
    recipe, photos = small("data.image_px=24", "train.epochs=1", stages, *changes), held_photos(24)
    first = train(tmp_path / "timed", recipe, photos, seconds=LONG, known=known)
    again = train(tmp_path / "again", recipe, photos, replay=first.plan)
    assert sum(segment.epochs for segment in first.plan.segments) == 4
    assert again.plan == first.plan
    assert_same(kept(tmp_path / "again"), kept(tmp_path / "timed"))
    assert (again.best_epoch, again.precision.name) == (first.best_epoch, "float32")
    assert known is None or first.precision == known


@pytest.mark.integration
@pytest.mark.parametrize("changes", [[], pytest.param(FULL, marks=pytest.mark.slow)], ids=["plain", "averaged"])
def test_an_epoch_that_is_given_up_leaves_the_weights_of_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str]
):
    """The time is over in the fourth epoch, in the middle of a part of two. Nothing is validated.

    One step of that epoch was made before the clock was looked at. Neither the run nor its replay may show it.
    """
    recipe, photos, late = small("train.epochs=4", *changes), without_validation(held_photos()), Late(monkeypatch, 3)
    first = train(tmp_path / "late", recipe, photos, late.observer, seconds=LONG)
    assert "Epoch 4 would end too late: it is given up." in late.said
    assert first.plan.segments == (Segment(16, 2, (0.0, 0.125)), Segment(16, 1, (0.125, 0.1875), is_cut=True))
    assert first.best_epoch == 3
    assert pd.read_csv(tmp_path / "late" / "history.csv")["epoch"].tolist() == [1, 2, 3]
    train(tmp_path / "again", recipe, photos, replay=first.plan)
    assert_same(kept(tmp_path / "again"), kept(tmp_path / "late"))
    assert_same(first.model.get_weights(), kept(tmp_path / "late"))


@pytest.mark.slow
@pytest.mark.integration
def test_a_run_that_was_cut_short_and_then_killed_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its checkpoint still says that an epoch is left in the part; the time is over, so it is given up again."""
    recipe, photos, late = small("train.epochs=4"), held_photos(), Late(monkeypatch, 3)
    first = train(tmp_path, recipe, photos, late.observer, seconds=LONG)
    weights, history = kept(tmp_path), (tmp_path / "history.csv").read_text()
    (tmp_path / "model.keras").unlink()
    late.said.clear()
    again = train(tmp_path, recipe, photos, late.observer, seconds=-1.0)
    assert late.said == ["Going on after epoch 3.", "Epoch 4 would end too late: it is given up."]
    assert again.plan == first.plan
    assert again.best_epoch == first.best_epoch
    assert_same(kept(tmp_path), weights)
    assert (tmp_path / "history.csv").read_text() == history
    assert (tmp_path / "model.keras").is_file()


@pytest.mark.slow
@pytest.mark.integration
def test_a_run_that_was_cut_between_two_looks_keeps_what_its_replay_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every third epoch is validated, and the time is over in the sixth: of epochs 4 and 5 nothing was looked at."""
    recipe, photos, late = small("train.epochs=6", "train.validate_every=3"), held_photos(), Late(monkeypatch, 5)
    first = train(tmp_path / "late", recipe, photos, late.observer, seconds=LONG)
    assert [segment.epochs for segment in first.plan.segments] == [3, 2]
    again = train(tmp_path / "again", recipe, photos, replay=first.plan)
    assert again.best_epoch == first.best_epoch
    assert_same(kept(tmp_path / "again"), kept(tmp_path / "late"))


@pytest.mark.integration
def test_without_validation_photos_the_last_weights_are_kept_as_they_would_be_validated(tmp_path: Path):
    """Averaged, and with statistics of clean photos: from the last checkpoint, by other ways than training's."""
    recipe, photos = small("train.epochs=3", "train.patience=1", *FULL), without_validation(held_photos())
    training = train(tmp_path, recipe, photos)
    run, inputs = RunFolder(tmp_path), Inputs(recipe, photos)
    model, _ = compiled(recipe, 2, "float32", 18)
    load_checkpoint(run.last_checkpoint, model)
    last = model.get_weights()
    averages = [each for each in model.optimizer.variables if "average" in each.path]
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        variable.assign(average)
    recalibrate(model, inputs.clean())
    for ours, theirs in zip(kept(tmp_path), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert not any(np.array_equal(ours, theirs) for ours, theirs in zip(kept(tmp_path), last, strict=True))
    assert load_weights(run.best_weights)[1] == {"epoch": 3, "score": None}
    assert training.best_epoch == 3
    assert training.images_per_second == pytest.approx(3 * 48 / training.seconds)
    assert training.plan.steps == 18
    assert training.plan.segments == (Segment(16, 3, (0.0, 1.0)),)


@pytest.mark.integration
def test_epochs_of_a_part_take_fewer_steps_and_go_on_where_they_were_stopped(tmp_path: Path):
    """Two epochs of half of six batches: at once, and killed after the first."""
    recipe, photos = small("train.epochs=2"), held_photos()
    plan = TrainingPlan((Segment(16, 2, (0.0, 1.0), share=0.5),), 6)

    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    whole = train(tmp_path / "whole", recipe, photos, replay=plan)
    model, _ = compiled(recipe, 2, "float32")
    load_checkpoint(RunFolder(tmp_path / "whole").last_checkpoint, model)
    assert int(model.optimizer.iterations) == 6
    assert whole.images_per_second == pytest.approx(48 / whole.seconds)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", recipe, photos, Observer(watch=stop), replay=plan)
    parts = train(tmp_path / "parts", recipe, photos, replay=plan)
    assert parts.plan == whole.plan == plan
    assert_same(kept(tmp_path / "parts"), kept(tmp_path / "whole"))


@pytest.mark.integration
def test_a_training_that_is_over_is_not_done_again(tmp_path: Path):
    """Killed after its last epoch, before the network was written."""
    recipe, photos, rows = small("train.epochs=2", *FULL), held_photos(), []
    first = train(tmp_path, recipe, photos)
    weights = kept(tmp_path)
    (tmp_path / "model.keras").unlink()
    again = train(tmp_path, recipe, photos, Observer(watch=rows.append))
    assert not rows
    assert_same(again.model.get_weights(), weights)
    assert (again.plan, again.best_epoch, again.seconds) == (first.plan, first.best_epoch, first.seconds)
    assert (tmp_path / "model.keras").is_file()
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["epoch", "epoch", "trained", "trained"]


@pytest.mark.integration
@pytest.mark.by_hand
def test_a_run_in_a_given_time_is_reproduced_bit_for_bit(tmp_path: Path):
    """The whole job, from photos: two epochs that the recipe names become eight, since there is time for them."""
    photos = make_classes(tmp_path / "photos", {"a": 30, "b": 30})
    stages = "train.stages=[{image_px=16, share=1}, {image_px=24, share=1}]"
    changes = [*SMALL, "data.image_px=24", "train.epochs=2", "train.recalibrate_photos=20", stages]
    run = tellapart.train(photos, changes=changes, time_budget=120, out=tmp_path / "run", cache=tmp_path / "cache")
    assert pd.read_csv(run.path / "history.csv")["image_px"].tolist() == [16] * 4 + [24] * 4
    again = tellapart.reproduce(run.path, out=tmp_path / "again", cache=tmp_path / "cache")
    assert again.same_weights
    assert again.largest_difference == 0.0
    assert again.accuracies[0] == again.accuracies[1]


@pytest.mark.integration
def test_without_epochs_what_it_begins_with_is_measured_and_kept(tmp_path: Path):
    photos = held_photos()
    train(tmp_path / "first", small("train.epochs=1"), photos)
    first = RunFolder(tmp_path / "first")
    first.create(small("train.epochs=1"), RunRequest(), {})
    first.update_record(classes=photos.classes)
    again = train(tmp_path / "again", small("train.epochs=0"), photos, begin_from=first)
    assert_same(kept(tmp_path / "again"), kept(tmp_path / "first"))
    assert (again.best_epoch, again.plan.segments) == (0, ())
    before, after = (pd.read_csv(tmp_path / name / "history.csv") for name in ("first", "again"))
    assert after["epoch"].tolist() == [0]
    assert after["val_accuracy"][0] == before["val_accuracy"][0]
    assert after["val_loss"][0] == pytest.approx(before["val_loss"][0], abs=1e-6)
