"""The main job end to end on drawn pictures, with real kills of real processes."""

from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

import tellapart
from tellapart import Machine, Observer
from tellapart.errors import InputError, RecipeError, RunError, TrainingStoppedError
from tellapart.run import begin, run_stages
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.training.checkpoint import load_weights
from tellapart.unknown import REFUSED

pytestmark = pytest.mark.integration

QUICK = [
    "data.image_px=32", "train.source_px=40", "train.epochs=6", "train.batch_size=16", "train.optimizer=adamw",
    "train.learning_rate=2e-3", "train.warmup_epochs=1", "train.weight_average=0.1",
    "train.recalibrate_photos=64", "train.deterministic=true", "train.precision=float32", "model.dropout=0.1",
    "train.stages=[{image_px=24, share=1}, {image_px=32, share=1}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tellapart.draw(tmp_path_factory.mktemp("drawn") / "photos", num_images=400)


def start_training(photos: Path | None, run: Path, cache: Path, *options: str) -> subprocess.Popen:
    where = ["--resume", str(run)] if photos is None else [str(photos), "--out", str(run)]
    changes = [] if photos is None else [word for change in QUICK for word in ("--set", change)]
    return subprocess.Popen(
        [sys.executable, "-m", "tellapart", "train", *where, *changes, *options],
        env={**os.environ, "TELLAPART_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background of a shell ignore Ctrl-C, and what they start would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def kill_when(process: subprocess.Popen, ready) -> None:
    """SIGKILL the process as soon as `ready()` holds; fail if it ends first."""
    while not ready():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return tellapart.train(photos, changes=QUICK, out=folder / "run", cache=folder / "cache").path


def same_weights(one: Path, other: Path) -> bool:
    left, right = (load_weights(run / "checkpoints" / "best.npz")[0] for run in (one, other))
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_run_folder_is_whole_and_its_numbers_are_scikit_learns(uninterrupted: Path, photos: Path):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {
        "recipe.toml", "environment.json", "manifest.csv", "health.json", "history.csv", "checkpoints", "model.keras",
        "predictions.csv", "features.npz", "unknown.npz", "metrics.json", "curves.png", "log.jsonl", "tensorboard",
    }  # fmt: skip
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    table = pd.read_csv(uninterrupted / "predictions.csv")
    for side in ("train", "validation", "test"):
        rows, found = table[table["split"] == side], metrics[side]
        assert found["num_images"] == len(rows)
        assert found["accuracy"] == pytest.approx(accuracy_score(rows["true_label"], rows["predicted_label"]), abs=1e-9)
        for average in ("macro", "weighted"):
            expected = precision_recall_fscore_support(
                rows["true_label"], rows["predicted_label"], average=average, zero_division=0
            )
            for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
                assert found[f"{name}_{average}"] == pytest.approx(value, abs=1e-9)
        assert ("intervals" in found) == (side != "train"), "what was memorised is no sample"
        for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_weighted", "loss"):
            low, high = found["intervals"][name] if side != "train" else (found[name], found[name])
            assert low <= found[name] <= high
    refused = metrics["unknown"]["refused_test"]
    low, high = refused["interval"]
    assert low <= refused["share"] <= high
    assert low <= metrics["unknown"]["promised"] == REFUSED, "no more than promised, as far as these photos can say"
    assert {"seconds_training", "seconds_total", "images_per_second", "peak_memory_mb"} <= set(metrics)
    environment = json.loads((uninterrupted / "environment.json").read_text())
    assert environment["num_photos"] == 400
    assert len(environment["data_sha256"]) == 64
    history = pd.read_csv(uninterrupted / "history.csv")
    assert history["image_px"].tolist() == [24] * 3 + [32] * 3
    predicted = tellapart.load(uninterrupted).predict([photos / table["path"][0]])[0]
    assert predicted.label == table["predicted_label"][0]
    assert predicted.probability == pytest.approx(table["probability"][0], abs=1e-5)


def test_tensorboard_reads_the_run(uninterrupted: Path):
    event_accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    reader = event_accumulator.EventAccumulator(str(uninterrupted / "tensorboard" / "validation"))
    reader.Reload()
    assert len(reader.Tags()["tensors"]) >= 2


@pytest.mark.slow
def test_killed_in_mid_epoch_and_moved_resumes_to_the_same_weights(uninterrupted: Path, photos: Path, tmp_path: Path):
    run = tmp_path / "run"
    process = start_training(photos, run, tmp_path / "cache")
    log = run / "log.jsonl"
    kill_when(process, lambda: log.exists() and log.read_text().count('"event": "epoch"') >= 2)
    assert not (run / "metrics.json").exists()
    run = run.rename(tmp_path / "renamed")
    finish(start_training(None, run, tmp_path / "cache"))
    assert same_weights(run, uninterrupted)
    assert pd.read_csv(run / "history.csv")["epoch"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_ctrl_c_ends_with_a_hint(photos: Path, tmp_path: Path):
    process = start_training(photos, tmp_path / "run", tmp_path / "cache", "--set", "train.epochs=500")
    while not (tmp_path / "run" / "history.csv").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors


@pytest.mark.by_hand
def test_killed_while_a_checkpoint_is_written_resumes_to_the_same_weights(
    uninterrupted: Path, photos: Path, tmp_path: Path
):
    run = tmp_path / "run"
    process = start_training(photos, run, tmp_path / "cache")
    checkpoints = run / "checkpoints"
    kill_when(process, lambda: (checkpoints / "last.npz").exists() and any(checkpoints.glob(".last*")))
    finish(start_training(None, run, tmp_path / "cache"))
    assert same_weights(run, uninterrupted)


@pytest.mark.by_hand
def test_killed_while_caching_resumes_to_the_same_weights(uninterrupted: Path, photos: Path, tmp_path: Path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    process = start_training(photos, run, cache)
    kill_when(process, lambda: any(cache.glob("*/pictures.u8")))
    finish(start_training(None, run, cache))
    assert same_weights(run, uninterrupted)


@pytest.mark.slow
def test_reproduce_gives_the_same_weights(uninterrupted: Path, tmp_path: Path):
    command = [sys.executable, "-m", "tellapart", "reproduce", str(uninterrupted), "--out", str(tmp_path / "again")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "The weights are the same, bit for bit." in result.stdout


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_the_last_good_checkpoint_goes_on(
    uninterrupted: Path, photos: Path, tmp_path: Path
):
    """Two good epochs, then a rate that no network survives; with the old rate back the run ends as if nothing was."""
    run, cache = tmp_path / "run", tmp_path / "cache"

    class EnoughError(Exception):
        pass

    def until_the_second(row: dict) -> None:
        if row["epoch"] == 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        tellapart.train(photos, changes=QUICK, out=run, cache=cache, observer=Observer(watch=until_the_second))
    good, recipe = (run / "checkpoints" / "last.npz").read_bytes(), (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace("\nlearning_rate = 0.002\n", "\nlearning_rate = 1e30\n"))
    with pytest.raises(TrainingStoppedError, match=r"in epoch 3.*last good checkpoint is kept.*train a new one"):
        tellapart.resume(run, cache=cache)
    assert (run / "checkpoints" / "last.npz").read_bytes() == good
    assert pd.read_csv(run / "history.csv")["epoch"].tolist() == [1, 2]
    assert not (run / "model.keras").exists()
    (run / "recipe.toml").write_text(recipe)
    tellapart.resume(run, cache=cache)
    assert same_weights(run, uninterrupted)


@pytest.mark.by_hand
def test_a_time_budget_is_kept_and_the_run_can_be_done_again(photos: Path, tmp_path: Path):
    lines: list[str] = []
    run = tellapart.train(
        photos, changes=[*QUICK, "train.deterministic=false"], recipe="reference", time_budget=25, out=tmp_path / "run",
        cache=tmp_path / "cache", observer=Observer(announce=lines.append),
    )  # fmt: skip
    assert any(line.startswith("Plan: ") and "about" in line for line in lines)
    assert json.loads((run.path / "environment.json").read_text())["time_plan"]["share"] == 1
    again = tellapart.reproduce(run.path, out=tmp_path / "again", cache=tmp_path / "cache").run.path
    done, repeated = (pd.read_csv(path / "history.csv") for path in (run.path, again))
    pd.testing.assert_frame_equal(done[["image_px", "learning_rate"]], repeated[["image_px", "learning_rate"]])
    records = [json.loads((path / "environment.json").read_text()) for path in (run.path, again)]
    assert records[0]["planned_steps"] == records[1]["planned_steps"]
    assert records[0]["data_sha256"] == records[1]["data_sha256"]


@pytest.mark.slow
def test_a_table_with_splits_trains_and_measures_those_splits(photos: Path, tmp_path: Path):
    rows = [(path, path.parent.name) for path in sorted(photos.glob("*/*.*"))]
    sides = ["train", "train", "train", "val", "test"]
    with open(tmp_path / "photos.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        writer.writerows([os.path.relpath(path, tmp_path), label, sides[i % 5]] for i, (path, label) in enumerate(rows))
    run = tellapart.train(
        tmp_path / "photos.csv", changes=[*QUICK, "train.epochs=2", "train.deterministic=false"], out=tmp_path / "run",
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert [run.metrics[side]["num_images"] for side in ("train", "validation", "test")] == [240, 80, 80]


@pytest.mark.by_hand
def test_a_watched_run_stops_when_told_and_goes_on_from_there(uninterrupted: Path, photos: Path, tmp_path: Path):
    """What is prepared once is not scanned again; the weights are those of a run that was left alone."""
    seen: list[dict] = []

    class EnoughError(Exception):
        pass

    def until_the_third(row: dict) -> None:
        seen.append(row)
        if row["epoch"] == 3:
            raise EnoughError

    again, cache = tmp_path / "again", tmp_path / "cache"
    recipe = tellapart.load_recipe(uninterrupted / "recipe.toml")
    folder = begin(recipe, RunRequest(photos=str(photos)), again, prepared=uninterrupted)
    with pytest.raises(EnoughError):
        run_stages(folder, cache, Observer(watch=until_the_third))
    assert [row["epoch"] for row in seen] == [1, 2, 3]
    assert (again / "manifest.csv").read_bytes() == (uninterrupted / "manifest.csv").read_bytes()
    run = tellapart.resume(again, cache=cache, machine=Machine(workers=1, cache_limit_gb=0.5))
    assert json.loads((again / "environment.json").read_text())["machine"] == {"workers": 1, "cache_limit_gb": 0.5}
    assert (again / "recipe.toml").read_bytes() == (uninterrupted / "recipe.toml").read_bytes()
    assert run.metrics["processor_seconds_training"] > 0
    assert same_weights(again, uninterrupted)


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another_and_keeps_its_split(
    uninterrupted: Path, photos: Path, tmp_path: Path
):
    """At a rate of nearly nothing the first epoch ends where the other run did."""
    changes = [*QUICK, "train.epochs=1", "train.stages=[]", "train.learning_rate=1e-9", "train.final_learning_rate=0"]
    cache = tmp_path / "cache"
    run = tellapart.train(
        photos, changes=[*changes, "data.split_seed=5"], begin_from=uninterrupted, out=tmp_path / "run", cache=cache
    )
    origin, folder = RunFolder(uninterrupted), RunFolder(run.path)
    assert folder.splits() == origin.splits()
    assert origin.record().run_id in folder.record().parents
    other = tellapart.train(photos, changes=[*changes, "data.split_seed=5"], out=tmp_path / "other", cache=cache)
    paths = uninterrupted, run.path, other.path
    first, kept, fresh = (load_weights(path / "checkpoints" / "best.npz")[0] for path in paths)
    kernels = [place for place, weight in enumerate(first) if weight.ndim == 4]
    for place in kernels:
        np.testing.assert_allclose(kept[place], first[place], atol=1e-5)
        assert np.abs(fresh[place] - first[place]).max() > 1e-2
    with pytest.raises(InputError, match=r"The run to begin from .* was trained or validated on .* --split-from"):
        tellapart.train(
            photos, changes=changes, begin_from=uninterrupted, split_from=other.path, out=tmp_path / "leak", cache=cache
        )
    with pytest.raises(RunError, match="another network than the recipe asks for"):
        tellapart.train(
            photos, changes=[*changes, "model.width=2"], begin_from=uninterrupted, out=tmp_path / "wide", cache=cache
        )
    with pytest.raises(RunError, match="no weights to begin from"):
        tellapart.train(photos, changes=changes, begin_from=tmp_path, out=tmp_path / "none", cache=cache)


def test_a_variable_that_cannot_be_used_leaves_no_folder(photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TELLAPART_WORKERS", "many")
    with pytest.raises(RecipeError, match="TELLAPART_WORKERS"):
        tellapart.train(photos, recipe="demo", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_epochs_and_no_weights_leave_no_folder(photos: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"train\.epochs is 0, and there are no weights to keep"):
        tellapart.train(photos, changes=["train.epochs=0"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_has_the_verbs_of_the_package(uninterrupted: Path, photos: Path):
    run = tellapart.Run(uninterrupted, json.loads((uninterrupted / "metrics.json").read_text()))
    images = sorted(photos.glob("*/*.*"))[:3]
    assert run.predict(images, top_k=1) == tellapart.predict(uninterrupted, images, top_k=1)
    assert run.load().classes == tellapart.load(uninterrupted).classes
