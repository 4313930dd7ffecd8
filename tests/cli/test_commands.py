"""The commands as a user types them: what they print, and how they end when something is wrong."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import tellapart
from corpus import make_corpus
from drawing import make_classes
from tellapart.cli.main import main
from tellapart.training.checkpoint import load_weights

pytestmark = pytest.mark.integration
QUICK = ["data.image_px=32", "train.epochs=2", "train.precision=float32", "train.learning_rate=2e-3"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Ended]:
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tellapart", *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Ended(code, out, err)

    return call


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tellapart.draw(tmp_path_factory.mktemp("photos") / "drawn", num_images=200)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return tellapart.train(photos, changes=QUICK, out=folder / "run", cache=folder / "cache").path


def test_train_shows_the_metrics_and_leaves_a_run(command, photos: Path, tmp_path: Path):
    changes = [word for change in QUICK for word in ("--set", change)]
    ended = command("train", photos, *changes, "--out", tmp_path / "run", "--cache-limit-gb", 0, "--workers", 1)
    assert ended.code == 0
    assert "accuracy" in ended.out
    assert "Plan: " in ended.err
    assert not (tmp_path / "cache").exists()
    assert (tmp_path / "run" / "metrics.json").exists()
    again = command("train", "--resume", tmp_path / "run")
    assert again.code == 0
    assert "already finished" in again.err


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(command, photos: Path, tmp_path: Path):
    small = ["--image-px", 32, "--epochs", 3, "--set", "train.precision=float32"]
    ended = command("train", photos, *small, "--out", tmp_path / "run", "--dry-run")
    assert ended.code == 0
    text = " ".join(ended.err.split())
    assert "Photos: 200 in 10 classes" in text
    assert "convnet, 32 px; 3 epochs at 32 px" in text
    assert re.search(r"A photo takes [\d.e-]+ ms to scan, [\d.e-]+ ms to decode, [\d.e-]+ ms to train on", text)
    assert re.search(r"about \d+ s. Nothing was written", text)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_within_a_time_says_so(command, photos: Path):
    words = ["--time", "5m", "--image-px", 32, "--set", "train.precision=float32"]
    timed = command("train", photos, *words, "--dry-run")
    assert "as many epochs as fit" in " ".join(timed.err.split())


@pytest.mark.by_hand
def test_split_from_keeps_the_sides_of_an_earlier_run(command, run: Path, photos: Path, tmp_path: Path):
    more = tmp_path / "more"
    shutil.copytree(photos, more)
    for path in sorted(photos.glob("*/*.*"))[::3]:  # copies that may bring nothing new but a smaller digest
        (more / path.parent.name / f"copy-{path.name}").write_bytes(path.read_bytes() + b"\0")
    changes = [word for change in QUICK for word in ("--set", change)]
    words = [
        "train",
        more,
        *changes,
        "--set",
        "data.split_seed=7",
        "--set",
        "train.epochs=1",
        "--out",
        tmp_path / "new",
    ]
    assert command(*words, "--split-from", run).code == 0
    with open(run / "manifest.csv") as old, open(tmp_path / "new" / "manifest.csv") as new:
        sides = {row["sha256"]: row["split"] for row in csv.DictReader(old)}
        found = [(row["path"], row["sha256"], row["split"]) for row in csv.DictReader(new)]
    assert [path for path, digest, side in found if digest in sides and sides[digest] != side] == []
    by_path = {path: side for path, _, side in found}
    copies = [path for path in by_path if "copy-" in path]
    assert len(copies) == 67
    assert [path for path in copies if by_path[path] != by_path[path.replace("copy-", "")]] == []


def test_predict_in_all_forms_agrees(command, run: Path, photos: Path):
    lines = command("predict", run, photos / "star", "--format", "jsonl", "--top", 10)
    rows = [json.loads(line) for line in lines.out.splitlines()]
    assert lines.code == 0
    assert len(rows) == 20
    assert all(math.isclose(sum(c["probability"] for c in row["top"]), 1, abs_tol=1e-4) for row in rows)
    table = list(csv.DictReader(io.StringIO(command("predict", run, photos / "star", "--format", "csv").out)))
    assert [row["label"] for row in table] == [row["label"] for row in rows]
    assert [row["path"] for row in table] == [row["path"] for row in rows]
    shown = command("predict", run, photos / "star")
    assert all(Path(row["path"]).name in shown.out.replace("\n", "") for row in rows[:3])


@pytest.mark.slow
def test_predict_names_a_file_whose_name_is_not_utf_8_by_its_bytes(run: Path, photos: Path, tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(next((photos / "star").iterdir()), odd)
    words = [sys.executable, "-m", "tellapart", "predict", run, odd, "--format", "csv"]
    done = subprocess.run(
        words, check=False, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    )
    assert (done.returncode, done.stdout.splitlines()[1].split(b",")[0]) == (0, os.fsencode(odd)), done.stderr


def test_predict_on_damaged_files_answers_for_each_and_says_so(command, run: Path, tmp_path: Path):
    make_corpus(tmp_path / "corpus")
    ended = command("predict", run, tmp_path / "corpus", "--format", "jsonl", "--out", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ended.code == 1
    assert "could not be read" in ended.err
    assert {row["label"] is None for row in rows} == {True, False}
    assert all((row["label"] is None) == bool(row["error"]) for row in rows)


def test_check_and_train_survive_damaged_files(command, photos: Path, tmp_path: Path):
    mixed = tmp_path / "mixed"
    shutil.copytree(photos, mixed)
    make_corpus(mixed / "star" / "odd")
    checked = command("check", mixed, "--out", tmp_path / "health.json")
    kinds = {finding["kind"] for finding in json.loads((tmp_path / "health.json").read_text())["findings"]}
    assert {"unreadable", "wrong_extension", "exif_rotated", "cmyk", "alpha", "sixteen_bit", "animated"} <= kinds
    assert "unreadable" in checked.out
    changes = [word for change in QUICK for word in ("--set", change)]
    assert command("train", mixed, *changes, "--set", "train.epochs=1", "--out", tmp_path / "run").code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    measured = sum(metrics[side]["num_images"] for side in ("train", "validation", "test"))
    assert measured == health["num_readable"] < health["num_photos"]


def test_check_ends_with_1_when_the_result_would_be_false(command, tmp_path: Path):
    make_classes(tmp_path / "photos", {"a": 12, "b": 12})
    shutil.copy(next((tmp_path / "photos" / "a").iterdir()), tmp_path / "photos" / "b" / "copy.jpg")
    ended = command("check", tmp_path / "photos")
    assert ended.code == 1
    assert "conflicting_labels" in ended.out
    assert (tmp_path / "health.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nowhere"], "nowhere does not exist"),
        (["train"], "No photos were given"),
        (["train", "one"], "only the class 'a'"),
        (["train", "empty"], "holds no photos"),
        (["train", "good", "--set", "train.epoch=3"], "Did you mean 'epochs'?"),
        (["train", "good", "--set", "epochs=3"], "section.key=value"),
        (["train", "good", "--set", "train.epochs=none"], "train.epochs"),
        (["train", "good", "--recipe", "fastt"], "Did you mean 'fast'?"),
        (["train", "good", "--time", "soon"], "Write it as 90s, 10m or 1h30m"),
        (["train", "good", "--out", "full"], "already exists and is not empty"),
        (["train", "--resume", "good"], "is not a run folder"),
        (["train", "columns.csv"], "no column 'label'"),
        (["train", "good/a/0.md"], "neither a folder nor a table"),
        (["check", "nowhere"], "does not exist"),
        (["predict", "good", "good"], "has no model yet"),
        (["predict", "nowhere", "good"], "does not exist"),
        (["reproduce", "good"], "is not a finished run"),
        (["draw", "good"], "was not drawn by tellapart"),
    ],
)
def test_a_mistake_is_one_clear_message(command, tmp_path: Path, words: list[str], said: str):
    make_classes(tmp_path / "good", {"a": 4, "b": 4})
    (tmp_path / "good" / "a" / "0.md").write_text("no photo")
    make_classes(tmp_path / "one", {"a": 4})
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("mine")
    (tmp_path / "columns.csv").write_text("path,lable\ngood/a/1.jpg,a\n")
    ended = command(*words)
    assert ended.code not in (0, 1)
    assert said in " ".join(ended.err.split())
    assert (tmp_path / "full" / "thing").read_text() == "mine"


@pytest.mark.by_hand
def test_a_full_disk_is_a_message_and_the_run_goes_on_to_the_same_weights(photos: Path, tmp_path: Path):
    """A real limit on the size of files: the kernel refuses to write model and checkpoints beyond it."""
    import os
    import subprocess

    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
        "from tellapart.cli.main import main; main()"
    )
    changes = [word for change in (*QUICK, "train.deterministic=true") for word in ("--set", change)]
    words = ["train", str(photos), *changes, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "TELLAPART_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 4, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "File too large" in ended.stderr
    assert not list((tmp_path / "run").rglob("*.part"))
    tellapart.resume(tmp_path / "run", cache=tmp_path / "cache")
    whole = tellapart.train(photos, changes=changes[1::2], out=tmp_path / "whole", cache=tmp_path / "cache")
    ours, theirs = (load_weights(at / "checkpoints" / "best.npz")[0] for at in (tmp_path / "run", whole.path))
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--set", "train.epochs=3"], "--set"),
        (["--time", "60", "--recipe", "fast"], "--recipe, --time"),
        (["--out", "elsewhere"], "--out"),
        (["--split-from", "other"], "--split-from"),
        (["--begin-from", "other"], "--begin-from"),
    ],
)
def test_a_resumed_run_refuses_what_it_would_have_to_drop(command, given: list[str], named: str, run: Path):
    before = (run / "recipe.toml").read_bytes()
    ended = command("train", "--resume", str(run), *given)
    assert ended.code == 2
    assert f"got {named} as well. Leave that out to go on" in ended.err
    assert (run / "recipe.toml").read_bytes() == before


def test_a_database_that_fails_after_it_was_opened_is_a_message(command, tmp_path: Path):
    import sqlalchemy as sa

    from tellapart.request_store import RequestStore

    store = RequestStore(f"sqlite:///{tmp_path / 'requests.db'}")
    with store.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE retrainings"))
    store.close()
    ended = command("retrain", "history", "--store", tmp_path / "requests.db")
    assert ended.code == 4
    assert "error: the database failed: no such table: retrainings" in ended.err
    assert "Traceback" not in ended.err


def test_doctor_names_what_is_used(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from tellapart.training.environment import environment

    said, found = command("doctor"), environment()
    assert said.code == 0
    rows = {cells[1].strip(): cells[2].strip() for line in said.out.splitlines() if len(cells := line.split("│")) == 4}
    assert rows["processor"] == f"{found['processor']}, {found['cpu_count']} cores"
    assert rows["backend"] == f"Keras on {found['backend']}"
    assert rows["memory"] == f"{found['memory_mb']:,} MB"
    assert f"keras {found['packages']['keras']}" in said.out
    assert str(tmp_path) in said.out
    monkeypatch.setenv("TELLAPART_CACHE", "not/there/yet")
    assert re.search(r"not/there/yet: 0\.00 GB used, \d+ GB free", command("doctor").out)


@pytest.mark.slow
def test_a_run_goes_through_the_commands_that_follow_it(command, run: Path, photos: Path, tmp_path: Path):
    some = tmp_path / "some"
    for path in sorted(photos.glob("*/*.*"))[::8]:
        (some / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / path.parent.name)
    said = command("evaluate", run, some, "--out", tmp_path / "report")
    assert said.code == 0, said.err
    assert said.out.startswith(f"{tmp_path / 'report'}")
    assert json.loads(next((tmp_path / "report").glob("*.json")).read_text())["metrics"]
    said = command("explain", run, some, "--out", tmp_path / "heat", "--method", "grad-cam")
    assert said.code == 0, said.err
    assert f"{len(list(some.rglob('*.*')))} pictures in" in said.out
    said = command("export", run, "--to", tmp_path / "bundle", "--name", "drawn", "--coverage", "0.9")
    assert said.code == 0, said.err
    assert f"{tmp_path / 'bundle'}: drawn" in said.out
    said = command("predict", tmp_path / "bundle", some, "--out", tmp_path / "table.csv", "--top", 2)
    assert said.code == 0, said.err
    with open(tmp_path / "table.csv", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(list(some.rglob("*.*")))
    said = command("export", run, "--to", tmp_path / "bundle", "--format", "onix")
    assert said.code == 2
    assert "There is no format 'onix'" in said.err


def test_draw_makes_photos_that_check_finds_sound(command, tmp_path: Path):
    said = command("draw", tmp_path / "drawn", "--images", 60, "--seed", 3)
    assert said.code == 0, said.err
    assert len(list((tmp_path / "drawn").glob("*/*.*"))) == 60
    checked = command("check", tmp_path / "drawn", "--out", tmp_path / "health.json")
    health = json.loads((tmp_path / "health.json").read_text())
    assert checked.code == 0, checked.out
    assert health["num_photos"] == health["num_readable"] == 60


def test_a_parquet_table_is_read_as_its_csv_is(command, photos: Path, tmp_path: Path):
    import pandas as pd

    files = sorted(photos.glob("*/*.*"))[::4]
    frame = pd.DataFrame({"path": [str(path) for path in files], "label": [path.parent.name for path in files]})
    frame.to_parquet(tmp_path / "photos.parquet")
    frame.to_csv(tmp_path / "photos.csv", index=False)
    found = []
    for kind in ("parquet", "csv"):
        assert command("check", tmp_path / f"photos.{kind}", "--out", tmp_path / f"{kind}.json").code in (0, 1)
        found.append(json.loads((tmp_path / f"{kind}.json").read_text()))
    assert found[0]["classes"] == found[1]["classes"]
    assert found[0]["num_readable"] == len(files)
