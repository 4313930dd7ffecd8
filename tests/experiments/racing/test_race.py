"""A race: who is given up, who wins, and whole races with weights made here, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import tellapart
from tellapart.errors import InputError
from tellapart.experiments.racing import begin, race
from tellapart.experiments.racing.backbone_choice import _loss, try_backbones
from tellapart.experiments.racing.begin import begin_race, is_race
from tellapart.experiments.racing.candidates import Entry, GivenUpError, Watch, best_of
from tellapart.models.backbones import backbone_network, inside_of
from tellapart.preparation import prepare
from tellapart.records import Observer
from tellapart.run import begin as begin_run
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.sections import Backbone
from tellapart.settings import Machine
from tellapart.training import planning


def row(epoch: int, progress: float, accuracy: float | None) -> dict[str, float]:
    seen = {} if accuracy is None else {"val_accuracy": accuracy, "val_loss": 1.0}
    return {"epoch": epoch, "progress": progress, **seen}


def gives_up(progress: float, accuracy: float | None, *, target: float | None, photos: int = 2000) -> bool:
    try:
        Watch(Observer(), target, photos)(row(3, progress, accuracy))
    except GivenUpError:
        return True
    return False


def test_a_candidate_is_given_up_once_its_error_cannot_fall_far_enough():
    assert gives_up(0.1, 0.64, target=0.01)  # 0.34 × 0.1 ** 0.75 = 0.06
    assert not gives_up(0.1, 0.64, target=0.10)
    assert not gives_up(0.5, 0.80, target=0.12)  # 0.18 × 0.59 = 0.11
    assert gives_up(0.9, 0.80, target=0.12)
    assert not gives_up(0.1, None, target=0.01), "an epoch that was not validated says nothing"
    assert not gives_up(0.1, 0.64, target=None), "without another candidate nothing is given up"


def test_of_few_validation_photos_a_bad_look_may_be_chance():
    assert gives_up(0.5, 0.80, target=0.09, photos=2000)
    assert not gives_up(0.5, 0.80, target=0.09, photos=20)


def test_most_photos_named_rightly_win_then_the_lower_loss():
    def entry(name: str, correct: int | None, loss: float | None) -> Entry:
        return Entry(name, "convnet", 64, 1.0, 1, correct, None if correct is None else correct / 100, loss)

    entries = [entry("a", 90, 0.3), entry("b", 91, 0.9), entry("c", 91, 0.4), entry("d", None, None)]
    assert best_of(entries).name == "c"
    assert best_of(entries[3:]) is None
    joined = [entry("head", 90, 0.3), entry("ensemble", 92, 0.2)]
    assert best_of(joined, pays=0.02).name == "ensemble"
    assert best_of([*joined, entry("student", 91, 0.3)], pays=0.02).name == "student", "it answers in half of the time"
    assert best_of([*joined, entry("student", 91, 0.3)], pays=0.01).name == "ensemble"
    rare = [replace(entries[0], f1=0.8), replace(entries[1], f1=0.6)]
    assert best_of(rare, balanced=False).name == "a", "where classes are ten to one the macro F1 decides"


def test_an_ensemble_takes_no_more_than_half_of_what_is_left():
    assert race.kept_for_ensemble(30.0, 100.0) == 30.0
    assert race.kept_for_ensemble(158.0, 240.0) == 0.0


@pytest.mark.parametrize(
    ("recipe", "changes", "request_", "expected"),
    [
        (None, [], RunRequest(), True),
        (None, ["train.seed=3", "data.split_seed = 1"], RunRequest(time_budget=60), True),
        (None, ["data.image_px=64"], RunRequest(), False),
        (None, ["train.seed=3", "train.epochs=2"], RunRequest(), False),
        ("fast", [], RunRequest(), False),
        (None, [], RunRequest(begin_from="runs/a"), False),
    ],
)
def test_who_says_what_is_to_be_done_gets_no_race(recipe, changes, request_, expected):
    assert is_race(recipe, changes, request_) is expected


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tellapart.draw(tmp_path_factory.mktemp("drawn") / "photos", num_images=360)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache whose shelf holds weights of the smallest network: random ones, which tell little."""
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for module in (begin, race):
        monkeypatch.setattr(module, "FIRST_BACKBONE", "mobilenet_v3_small")
    keras.utils.set_random_seed(0)
    network = backbone_network(Backbone(name="mobilenet_v3_small"), 2, 96)
    file = tmp_path / "cache" / "weights" / "mobilenet_v3_small.weights.h5"
    file.parent.mkdir(parents=True)
    inside_of(network).save_weights(file)
    return tmp_path / "cache"


def test_a_race_without_validation_photos_is_refused(photos, tmp_path):
    with pytest.raises(InputError, match="Without validation photos"):
        tellapart.train(photos, changes=["data.split=[0.8,0,0.2]"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.integration
@pytest.mark.by_hand  # as long as a tenth of the slow tier; `.ci/run` races on real photos, others kill and resume one
def test_a_race_tries_all_and_keeps_what_it_says(photos, cache, tmp_path, monkeypatch):
    """With random features no ensemble is worth its time: here one is made all the same, and its student kept."""

    def student_or_ensemble(entries: list[Entry], **options: float) -> Entry | None:
        preferred = [entry for name in ("student", "ensemble") for entry in entries if entry.name == name]
        return preferred[0] if preferred else best_of(entries, **options)

    def alike(of_truth: np.ndarray, units: list[int], seed: int) -> SimpleNamespace:
        return SimpleNamespace(chosen=SimpleNamespace(weights=np.full(len(of_truth), 1 / len(of_truth))))

    monkeypatch.setattr(race, "_CHEAP", 0.0)  # as if the photos were many: the head is a candidate of its own
    monkeypatch.setattr(race, "_PAYS", -1.0)
    monkeypatch.setattr(race, "best_of", student_or_ensemble)
    monkeypatch.setattr(race, "choose", alike)
    monkeypatch.setattr(planning, "_MOST_EPOCHS", 0.1)  # time is left for the student
    run = tellapart.train(photos, time_budget=300, out=tmp_path / "run", cache=cache)
    entries = {entry["name"]: entry for entry in run.metrics["race"]}
    assert list(entries) == ["head", "fine-tuned", "from scratch", "ensemble", "student"]
    assert entries["head"]["accuracy"] < entries["from scratch"]["accuracy"], "random features tell little"
    assert [name for name, entry in entries.items() if entry["outcome"] == "won"] == ["student"]
    assert entries["student"]["network"] == "convnet", "as the best single one is"
    assert run.metrics["validation"]["accuracy"] == entries["student"]["accuracy"]
    assert run.predict([next(photos.rglob("*.png"), None) or next(photos.rglob("*.jpg"))])[0].label
    folder = RunFolder(run.path)
    assert folder.recipe().distill.teacher == str(run.path / "race" / "ensemble")
    assert folder.record().request.ensemble is None
    assert len(folder.predictions()[0]) == len(folder.readable()) == 360
    assert list(cache.glob("features-*/features.f32")), "what was seen once is kept for the next run"
    assert not list((run.path / "race").rglob("*.keras")), "losers leave their figures, not their networks"


def test_a_network_that_sees_the_classes_loses_less_than_one_that_does_not():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 4, 300)
    seeing = (np.eye(4)[numbers] + rng.normal(0, 0.5, (300, 4))).astype(np.float32)
    blind = rng.normal(0, 0.5, (300, 4)).astype(np.float32)
    assert _loss(seeing, numbers, 200, 4, 0) < 1.0 < _loss(blind, numbers, 200, 4, 0)
    assert np.isinf(_loss(blind, np.zeros(300, np.int64), 200, 4, 0)), "one class among the few photos tells nothing"
    held_out = np.concatenate([numbers[:200], np.full(50, 3), numbers[250:]])
    learned = np.where(held_out[:200] == 3, 0, held_out[:200])  # no photo of class 3 to learn from
    assert np.isfinite(_loss(seeing, np.concatenate([learned, held_out[200:]]), 200, 4, 0)), "its photos are left out"


@pytest.mark.integration
@pytest.mark.by_hand
def test_networks_are_tried_on_a_few_photos_as_long_as_there_is_time(photos, cache, tmp_path):
    network = backbone_network(Backbone(name="mobilenet_v2"), 2, 96)
    inside_of(network).set_weights([np.zeros_like(weight) for weight in inside_of(network).get_weights()])
    inside_of(network).save_weights(cache / "weights" / "mobilenet_v2.weights.h5")
    folder = begin_race([], RunRequest(photos=str(photos)), tmp_path / "run")
    prepare(folder, folder.recipe(), Observer())
    names = ["mobilenet_v2", "mobilenet_v3_small"]
    tried = try_backbones(names, folder, 96, cache, Machine(), until=time.time() + 600, observer=Observer())
    assert [each.name for each in tried] == names
    assert tried[0].loss == pytest.approx(np.log(10), abs=0.2), "ten classes, and features that are the same for all"
    # A cache that nothing may be kept in, with the weights of the other beside it
    shutil.copytree(cache / "weights", tmp_path / "empty" / "weights")
    none_kept = Machine(cache_limit_gb=0)
    assert len(try_backbones(names, folder, 96, tmp_path / "empty", none_kept, until=0.0, observer=Observer())) == 1
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["weights"]


@pytest.mark.integration
@pytest.mark.slow
def test_a_killed_race_goes_on_with_what_is_left(photos, cache, tmp_path):
    run = tmp_path / "run"
    environment = {**os.environ, "KERAS_HOME": str(tmp_path / "keras")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tellapart", "train", str(photos), "--time", "30s", "--out", str(run)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # Which candidate comes first depends on how fast the machine is: any will do.
    done: list[Path] = []
    while not done:
        assert process.poll() is None
        done = sorted((run / "race").glob("*/metrics.json"))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    measured = done[0].read_bytes()
    resumed = tellapart.resume(run, cache=cache)
    names = [entry["name"] for entry in resumed.metrics["race"]]
    assert done[0].read_bytes() == measured, "what was done is not done again"
    assert names[0] == done[0].parent.name
    assert len(names) == len(set(names))
    assert resumed.metrics["race"][0]["accuracy"] == json.loads(measured)["validation"]["accuracy"]
    best = max(entry["accuracy"] for entry in resumed.metrics["race"] if entry["correct"] is not None)
    assert resumed.metrics["validation"]["accuracy"] >= best - race._PAYS, "an ensemble must gain that much"


@pytest.mark.parametrize("begun", ["head", "fine-tuned"])
def test_a_race_that_goes_on_keeps_the_network_it_had_chosen(begun, photos, cache, tmp_path):
    shelf = cache / "weights"
    shutil.copyfile(shelf / "mobilenet_v3_small.weights.h5", shelf / "mobilenet_v2.weights.h5")
    folder = begin_race([], RunRequest(photos=str(photos)), tmp_path / "run")
    chosen = begin.pretrained_recipe("mobilenet_v2", [])
    begin_run(chosen, RunRequest(photos=str(photos)), folder.path / "race" / begun)
    assert race._Race(folder, cache, Observer(), Machine())._best_backbone("mobilenet_v3_small") == "mobilenet_v2"
