"""Ensembles: what is refused without a network, and from real runs to a bundle, a student and back."""

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

import numpy as np
import pandas as pd
import pytest

import tellapart
from tellapart.data.listing import image_files
from tellapart.errors import InputError, RunError
from tellapart.experiments.comparison import Comparison, Measured, Pair
from tellapart.experiments.ensembling.ensemble_run import Agreement
from tellapart.experiments.ensembling.result import Ensemble
from tellapart.records import Interval
from tellapart.run_folder import RunFolder
from tellapart.training.checkpoint import load_weights
from tellapart.unknown import load_detector
from written_run import write_run, wrong_at

QUICK = [
    "data.image_px=32", "train.epochs=8", "train.batch_size=16", "train.learning_rate=4e-3", "train.precision=float32",
    "train.warmup_epochs=1", "train.recalibrate_photos=128", "train.weight_average=0.1",
    "model.dropout=0.1", "model.l2=0.0", "augment.rotation=0.02", "train.deterministic=true",
]  # fmt: skip


def sides(*, validation: slice, count: int = 60, tested: bool = True) -> np.ndarray:
    found = np.full(count, "test" if tested else "train", object)
    found[:20] = "train"
    found[validation] = "validation"
    return found


def test_what_cannot_be_joined_says_why_and_nothing_is_written(tmp_path: Path):
    out = tmp_path / "out"
    runs = [
        write_run(tmp_path / name, wrong_at(*places, count=60), sides=sides(validation=slice(20, 40)))
        for name, places in (("a", (21, 41)), ("b", (22, 42)))
    ]
    with pytest.raises(RunError, match=r"a has no model\.keras"):
        tellapart.ensemble(runs, out=out, cache=tmp_path)
    for run in runs:
        (run / "model.keras").touch()
    with pytest.raises(InputError, match=r"two or more networks to join; got 1\. Name more runs, or add --snapshots"):
        tellapart.ensemble(runs[:1], out=out, cache=tmp_path)
    with pytest.raises(InputError, match=r"a kept no further networks: train with --set train\.snapshots=4"):
        tellapart.ensemble(runs[:1], out=out, snapshots=True, cache=tmp_path)
    with pytest.raises(InputError, match="got 0"):
        tellapart.ensemble([], out=out, cache=tmp_path)
    with pytest.raises(InputError, match=r"a is named 2 times"):
        tellapart.ensemble([runs[0], runs[1], runs[0]], out=out, cache=tmp_path)
    with pytest.raises(InputError, match=r"no student is wanted"):
        tellapart.ensemble(runs, out=out, changes=["train.epochs=3"], cache=tmp_path)
    other = write_run(tmp_path / "other", wrong_at(count=60), classes=["NA", "cat", "fox"])
    (other / "model.keras").touch()
    with pytest.raises(InputError, match=r"a and other do not tell the same classes apart: only a has the class 'dog'"):
        tellapart.ensemble([runs[0], other], out=out, cache=tmp_path)
    trained = write_run(tmp_path / "trained", wrong_at(count=60), sides=sides(validation=slice(0, 0), tested=False))
    (trained / "model.keras").touch()
    with pytest.raises(InputError, match=r"no photo in common that one was validated on and none trained on.*a has 20"):
        tellapart.ensemble([runs[0], trained], out=out, cache=tmp_path)
    (tmp_path / "begun").mkdir()
    with pytest.raises(RunError, match=r"begun is not a finished run"):
        tellapart.ensemble([runs[0], tmp_path / "begun"], out=out, cache=tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match=r"full already exists and is not empty"):
        tellapart.ensemble(runs, out=full, cache=tmp_path)
    assert (full / "mine.txt").read_text() == "keep"
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and three runs of them; the third sees smaller pictures and kept three snapshots."""
    here = tmp_path_factory.mktemp("ensemble")
    photos = tellapart.draw(here / "photos", num_images=400)
    for name, changes in (
        ("a", ["train.seed=1"]),
        ("b", ["train.seed=2"]),
        ("c", ["train.seed=3", "data.image_px=24", "train.snapshots=3"]),
    ):
        tellapart.train(photos, changes=[*QUICK, *changes], out=here / name, cache=here / "cache")
    return here


@pytest.fixture(scope="module")
def pair(place: Path):
    return tellapart.ensemble([place / "a", place / "b"], out=place / "ab", cache=place / "cache")


def rows_of(run: Path, side: str = "test") -> tuple[pd.DataFrame, np.ndarray]:
    table = pd.read_csv(run / "predictions.csv")
    table = table[table["split"] == side]
    return table, table[[name for name in table if name.startswith("p:")]].to_numpy(np.float64)


@pytest.mark.integration
@pytest.mark.slow
def test_runs_of_one_size_become_their_weighted_mean(place: Path, pair):
    weights = [each.weight for each in pair.standings]
    assert sum(weights) == pytest.approx(1)
    for side in ("train", "validation", "test"):
        expected = sum(weight * rows_of(place / name, side)[1] for weight, name in zip(weights, "ab", strict=True))
        assert rows_of(place / "ab", side)[1] == pytest.approx(expected, abs=1e-5)
    table, rows = rows_of(place / "ab", "validation")
    classes = [name[2:] for name in table if name.startswith("p:")]
    of_truth = rows[np.arange(len(rows)), [classes.index(label) for label in table["true_label"]]]
    assert pair.loss == pytest.approx(-np.log(of_truth).mean(), abs=1e-5)
    assert pair.loss <= min(each.loss for each in pair.standings) + 1e-5
    assert not pair.agreement.resized
    assert pair.agreement.largest_difference < 1e-5
    assert pair.decoding == ""
    compared = tellapart.compare([place / pair.best, place / "ab"])
    assert pair.test.pairs[0].differences == compared.pairs[0].differences
    assert pair.verdicts == (compared.pairs[0].verdict,)
    values = json.loads((place / "ab" / "ensemble.json").read_text())
    assert values == json.loads(json.dumps(pair.to_dict()))
    assert [each["name"] for each in values["standings"]] == ["a", "b"]


@pytest.mark.integration
@pytest.mark.slow
def test_an_ensemble_predicts_and_its_bundle_says_the_same(place: Path, pair):
    photos = image_files([place / "photos"])[:20]
    table = pd.read_csv(place / "ab" / "predictions.csv").set_index("path")
    classifier = tellapart.load(place / "ab")
    count = len(classifier.classes)
    for found in classifier.predict(photos, top_k=count):
        row = table.loc[Path(found.path).relative_to(place / "photos").as_posix()]
        assert {label: row[f"p:{label}"] for label, _ in found.top} == pytest.approx(dict(found.top), abs=1e-5)
    said: list[str] = []
    bundle = tellapart.export(place / "ab", place / "bundle", cache=place / "cache", announce=said.append)
    assert bundle.record.explains, "by its heaviest member"
    assert bundle.detector is not None
    embedding = classifier.predict(photos[:1])[0].embedding
    assert embedding is not None
    assert bundle.detector.num_features == len(embedding) >= 256, "members' embeddings, not logarithms for ten classes"
    proofs = bundle.record.artefact("onnx").proofs
    assert proofs["onnxruntime"].passed
    assert proofs["onnxruntime"].largest_difference < 1e-4
    assert bundle.record.metrics["test"]["accuracy"] == pytest.approx(pair.test.runs[1].measures["accuracy"].value)
    for run, found in zip(
        classifier.predict(photos, top_k=count),
        tellapart.load(place / "bundle").predict(photos, top_k=count),
        strict=True,
    ):
        assert dict(found.top) == pytest.approx(dict(run.top), abs=2e-3)
    # Ensembles of older versions have a detector that looks at probabilities of the classes.
    older = place / "older"
    shutil.copytree(place / "ab", older)
    detector = load_detector(RunFolder(older).unknown_path)
    assert detector is not None
    replace(detector, references=detector.references[:, :count]).save(RunFolder(older).unknown_path)
    assert not any(found.unknown for found in tellapart.load(older).predict(photos))


@pytest.mark.integration
@pytest.mark.slow
def test_an_ensemble_cannot_be_trained_further_and_another_one_takes_no_place(place: Path, pair):
    for act in (
        lambda: tellapart.resume(place / "ab", cache=place / "cache"),
        lambda: tellapart.reproduce(place / "ab", out=place / "again", cache=place / "cache"),
    ):
        with pytest.raises(RunError, match=r"ab is an ensemble of .*combine them again with tellapart ensemble"):
            act()
    before = (place / "ab" / "model.keras").read_bytes()
    with pytest.raises(RunError, match=r"ab holds another ensemble, of a, b\. Name a new folder"):
        tellapart.ensemble([place / "a", place / "c"], out=place / "ab", cache=place / "cache")
    again = tellapart.ensemble([place / "a", place / "b"], out=place / "ab", cache=place / "cache")
    assert again == pair
    assert (place / "ab" / "model.keras").read_bytes() == before


@pytest.mark.integration
@pytest.mark.slow
def test_members_of_two_sizes_and_snapshots_are_joined(place: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    from tellapart.cli.main import main

    kept = sorted(path.name for path in (place / "c" / "checkpoints").glob("snapshot-*"))
    assert kept == ["snapshot-1.npz", "snapshot-2.npz", "snapshot-3.npz"]
    assert [load_weights(place / "c" / "checkpoints" / name)[1]["epoch"] for name in kept] == [5, 6, 7]
    monkeypatch.setenv("TELLAPART_CACHE", str(place / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    words = ["ensemble", "a", "c", "--snapshots", "--out", "ac"]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["tellapart", *words])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert not end.value.code, err
    assert all(name in out for name in ("a/last", "c/last", "c/snapshot-1", "c/snapshot-3", "(kept)"))
    assert max(map(len, out.split("network")[1].split("No ")[0].splitlines())) <= 80
    values = json.loads((place / "ac" / "ensemble.json").read_text())
    assert len(values["standings"]) == 7
    chosen = {each["name"].split("/")[0] for each in values["standings"] if each["weight"] > 0}
    best = min(each["loss"] for each in values["standings"])
    held = {way["method"]: way["loss"] for way in values["ways"]}
    assert held[values["method"]] <= best + 1e-9
    if chosen == {"a", "c"}:
        assert values["agreement"]["resized"]
        assert "Smaller members get their pictures" in out
        assert 0 < values["agreement"]["largest_difference"] < 0.5
    assert tellapart.load(place / "ac").predict(image_files([place / "photos"])[:1])[0].label


@pytest.mark.by_hand
def test_a_student_learns_survives_a_kill_and_can_be_done_again(place: Path, pair):
    words = [
        "ensemble",
        "a",
        "b",
        "--out",
        "ab",
        "--distill",
        "--set",
        "distill.temperature=3",
        "--set",
        "train.seed=9",
    ]
    begin = {
        "args": [sys.executable, "-m", "tellapart", *words], "cwd": place, "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "TELLAPART_CACHE": str(place / "cache")},
    }  # fmt: skip
    student, log = place / "ab-student", place / "ab-student" / "log.jsonl"
    with subprocess.Popen(**begin) as process:
        while not (log.exists() and log.read_text().count('"event": "epoch"') >= 3):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (student / "metrics.json").exists()
    with subprocess.Popen(**begin) as process:
        out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "Learning from" in errors
    assert "3² · KL(teacher ‖ student)" in out
    assert "ab-student" in out
    history = pd.read_csv(student / "history.csv")
    assert history["epoch"].tolist() == list(range(1, 9))
    environment = json.loads((student / "environment.json").read_text())
    assert environment["loss"].startswith("loss = 0.7 · 3²")
    values = json.loads((place / "ab" / "ensemble.json").read_text())
    assert [(pair["first"], pair["second"]) for pair in values["test"]["pairs"]] == [
        (values["best"], "ab"), (values["best"], "ab-student"), ("ab", "ab-student"),
    ]  # fmt: skip
    assert (student / "manifest.csv").read_bytes() == (place / "ab" / "manifest.csv").read_bytes()
    again = tellapart.reproduce(student, out=place / "student-again", cache=place / "cache")
    assert again.same_weights
    with pytest.raises(RunError, match=r"ab-student holds a run of another recipe.*--resume"):
        tellapart.ensemble(
            [place / "a", place / "b"], out=place / "ab", distill=True, changes=["train.seed=4"], cache=place / "cache"
        )
    with pytest.raises(InputError, match=r"distill\.teacher cannot act here: the student learns from the ensemble"):
        tellapart.ensemble(
            [place / "a", place / "b"], out=place / "ab", distill=True, changes=["distill.teacher=a"],
            cache=place / "cache",
        )  # fmt: skip


def test_a_teacher_that_does_not_know_the_photos_is_refused(tmp_path: Path):
    from tellapart.evaluation.predictions import teacher_for

    digests = [f"photo {n}" for n in range(60)]
    run = write_run(tmp_path / "run", wrong_at(1, count=60), digests=digests)
    photos = pd.DataFrame({"sha256": [*digests[::-1], "new"], "split": "train"})
    with pytest.raises(InputError, match=r"said nothing of 1 of the training photos"):
        teacher_for(run, photos, ["NA", "cat", "dog"])
    photos.loc[60, "split"] = "test"
    said = teacher_for(run, photos, ["NA", "cat", "dog"])
    assert said[:60].argmax(axis=1).tolist() == wrong_at(1, count=60)[::-1].tolist()
    assert said[60].tolist() == [1 / 3] * 3
    with pytest.raises(InputError, match=r"Expected the student's classes, NA, cat, fox"):
        teacher_for(run, photos, ["NA", "cat", "fox"])
    with pytest.raises(InputError, match="not a finished run folder"):
        teacher_for(tmp_path, photos, ["NA", "cat", "dog"])


@pytest.mark.parametrize(
    ("theirs", "ours", "leaks"),
    [
        ("train", "test", True),
        ("train", "validation", True),
        ("validation", "test", True),  # it chose the teacher's weights
        ("validation", "validation", False),
        ("test", "test", False),
        ("test", "train", False),
        ("validation", "train", False),
    ],
)
def test_a_teacher_that_has_learned_from_the_students_test_photos_is_refused(
    tmp_path: Path, theirs: str, ours: str, leaks: bool
):
    from tellapart.evaluation.predictions import teacher_for

    digests = [f"photo {n}" for n in range(60)]
    sides = np.repeat(["train", theirs], 30).astype(object)
    run = write_run(tmp_path / "run", wrong_at(1, count=60), digests=digests, sides=sides)
    photos = pd.DataFrame({"sha256": digests, "split": np.repeat(["train", ours], 30)})
    if leaks:
        with pytest.raises(InputError, match=r"trained or validated on 30 of the photos .*--split-from"):
            teacher_for(run, photos, ["NA", "cat", "dog"])
    else:
        assert teacher_for(run, photos, ["NA", "cat", "dog"]).shape == (60, 3)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.0232, -0.0026, ("ab has a lower log loss than a: by 0.0129 (0.0026 to 0.0232) nats.",)),
        (0.0026, 0.0232, ("a has a lower log loss than ab: by 0.0129 (0.0026 to 0.0232) nats.",)),
        (-0.02, 0.01, ()),
        (-2e-8, -1e-8, ()),  # an ensemble of one member: rounding
    ],
)
def test_only_losses_that_differ_are_spoken_of(low: float, high: float, said: tuple[str, ...]):
    loss = Measured((low + high) / 2, Interval(low, high))
    pair = Pair("a", "ab", {"loss": loss}, (), (), 1.0, 1.0, ())
    found = Ensemble(
        Path("ab"), "ab", (), (), "fitted", "a", 1, 0, 0.1, 0.9, Agreement(1, 0.0, 0.0, 0.0, False),
        Comparison((), (pair,), 1, 1, 0),
    )  # fmt: skip
    assert found.losses == said
