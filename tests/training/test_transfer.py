"""A head on features: the fit, and a whole run that begins from weights made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import tellapart
from drawing import photo
from tellapart.evaluation import measure
from tellapart.randomness import generator
from tellapart.settings import Recipe, load_recipe
from tellapart.training import transfer
from tellapart.training.distillation import loss_of
from tellapart.training.planning import Planner, TrainingPlan
from tellapart.training.schedule import Segment
from tellapart.training.timing import Precision
from tellapart.training.transfer import PENALTIES, fit_head


def clouds(rng: np.random.Generator, num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = rng.integers(0, num_classes, num_images)
    centres = np.random.default_rng(0).normal(0, 1, (num_classes, 12))
    scale = np.geomspace(0.01, 100, 12)  # features of very different sizes
    return ((centres[numbers] + rng.normal(0, 1, (num_images, 12))) * scale).astype(np.float32), numbers


@pytest.mark.parametrize("num_classes", [2, 5])
def test_the_head_is_the_best_of_scikit_learns_logistic_regressions(num_classes: int):
    rng = np.random.default_rng(1)
    (x, y), (held_x, held_y) = clouds(rng, 400, num_classes), clouds(rng, 300, num_classes)
    kernel, bias, penalty = fit_head(x, y, held_x, held_y, num_classes)
    mean, std = x.mean(axis=0), x.std(axis=0)
    losses = {}
    for each in PENALTIES:
        reference = LogisticRegression(C=1 / (each * len(x)), max_iter=5000, tol=1e-8).fit((x - mean) / std, y)
        said = reference.predict_proba((held_x - mean) / std)
        losses[each] = -np.log(said[np.arange(300), held_y]).mean()
        if each == penalty:
            logits = held_x @ kernel + bias
            ours = np.exp(logits - logits.max(axis=1, keepdims=True))
            np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), said, atol=0.02)
    assert losses[penalty] <= min(losses.values()) + 1e-4


def test_without_validation_the_middle_penalty_is_taken():
    x, y = clouds(np.random.default_rng(1), 100, 3)
    assert fit_head(x, y, x[:0], y[:0], 3)[2] == PENALTIES[2]


def test_of_many_photos_a_part_finds_the_penalty_and_all_are_fitted(monkeypatch):
    rng = np.random.default_rng(1)
    (x, y), (held_x, held_y) = clouds(rng, 900, 4), clouds(rng, 300, 4)
    monkeypatch.setattr(transfer, "_ENOUGH_FOR_A_PENALTY", 150)
    sizes, fit = [], transfer._Fit.to
    monkeypatch.setattr(
        transfer._Fit, "to", lambda self, chosen, *rest: sizes.append(len(chosen)) or fit(self, chosen, *rest)
    )
    kernel, bias, penalty = fit_head(x, y, held_x, held_y, 4)
    assert set(sizes[:-1]) <= {150, 151, 152, 153, 154}
    assert sizes[-1] == 900
    assert len(sizes) >= 3
    mean, std = x.mean(axis=0), x.std(axis=0)
    reference = LogisticRegression(C=1 / (penalty * 900), max_iter=5000, tol=1e-8).fit((x - mean) / std, y)
    logits = held_x @ kernel + bias
    np.testing.assert_array_equal(logits.argmax(axis=1), reference.predict((held_x - mean) / std))


def test_a_head_whose_time_is_over_is_the_first_that_was_found(monkeypatch):
    rng, calls = np.random.default_rng(1), []
    (x, y), (held_x, held_y) = clouds(rng, 400, 3), clouds(rng, 300, 3)
    fit = transfer._Fit.to
    monkeypatch.setattr(transfer._Fit, "to", lambda *given: calls.append(given[-1]) or fit(*given))
    kernel, bias, penalty = fit_head(x, y, held_x, held_y, 3, until=time.time() - 1)
    assert calls == [penalty] == [PENALTIES[0]]
    assert ((held_x @ kernel + bias).argmax(axis=1) == held_y).mean() > 0.5


def test_a_class_of_one_photo_has_its_column_whatever_part_finds_the_penalty(monkeypatch: pytest.MonkeyPatch):
    """The part alone is fitted here, since the time is over: a class that is not in it would have no column."""
    (x, y), sizes, fit = clouds(np.random.default_rng(1), 300, 3), [], transfer._Fit.to
    kept = [*np.flatnonzero(y != 2), np.flatnonzero(y == 2)[0]]
    x, y = x[kept], y[kept]
    monkeypatch.setattr(transfer, "_ENOUGH_FOR_A_PENALTY", 30)
    monkeypatch.setattr(transfer._Fit, "to", lambda *given: sizes.append(len(given[1])) or fit(*given))
    for seed in range(4):
        kernel, bias, _ = fit_head(x, y, x, y, 3, seed=seed, until=time.time() - 1)
        assert (kernel.shape, bias.shape) == ((12, 3), (3,))
    assert max(sizes) <= 33 < len(y)
    assert len(sizes) == 4, "one fit for each seed"


def test_the_part_that_finds_the_penalty_follows_from_the_seed_and_is_penalised_by_its_own_number(
    monkeypatch: pytest.MonkeyPatch,
):
    """The penalty is per photo: that which suits the part must mean the same for all of them."""
    (x, y), parts, fit = clouds(np.random.default_rng(1), 90, 3), [], transfer._Fit.to
    monkeypatch.setattr(transfer, "_ENOUGH_FOR_A_PENALTY", 30)
    monkeypatch.setattr(transfer._Fit, "to", lambda *given: parts.append(given[1].tolist()) or fit(*given))
    for seed in (2, 1, 1):
        kernel, bias, penalty = fit_head(x, y, x, y, 3, seed=seed, until=time.time() - 1)
    assert parts[0] != parts[1] == parts[2]
    scaled, part = (x - x.mean(axis=0)) / x.std(axis=0), parts[-1]
    reference = LogisticRegression(C=1 / (penalty * len(part)), max_iter=5000, tol=1e-8).fit(scaled[part], y[part])
    logits = x @ kernel + bias
    ours = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), reference.predict_proba(scaled), atol=0.01)


def test_a_feature_that_never_changes_changes_nothing():
    """Its deviation is 0: ReLUs that are dead on all photos are common in a pretrained network."""
    x, y = clouds(np.random.default_rng(1), 200, 3)
    more = np.concatenate([x, np.full((200, 1), 5, np.float32), np.zeros((200, 1), np.float32)], axis=1)
    kernel, bias, penalty = fit_head(x, y, x, y, 3)
    found, found_bias, found_penalty = fit_head(more, y, more, y, 3)
    assert found_penalty == penalty
    np.testing.assert_allclose(more @ found + found_bias, x @ kernel + bias, atol=0.05)


@pytest.mark.parametrize(
    ("held_out", "tried"),
    [("the same photos", PENALTIES), ("labels of chance", PENALTIES[:2])],
)
def test_penalties_become_weaker_until_the_held_out_loss_rises(monkeypatch: pytest.MonkeyPatch, held_out, tried):
    """On the photos of the fit a weaker penalty is always better; where labels are chance the strongest one is best."""
    rng, calls, fit = np.random.default_rng(1), [], transfer._Fit.to
    x, y = clouds(rng, 300, 3)
    numbers = y if held_out == "the same photos" else rng.permutation(y)
    monkeypatch.setattr(transfer._Fit, "to", lambda *given: calls.append(given[-1]) or fit(*given))
    penalty = fit_head(x, y, x, numbers, 3)[2]
    assert tuple(calls) == tried
    assert penalty == (tried[-1] if held_out == "the same photos" else tried[0])


def test_a_fit_in_rounds_of_few_steps_goes_on_where_the_round_before_ended(monkeypatch: pytest.MonkeyPatch):
    """Rounds of three steps: each alone is far from the end, all of them are one fit."""
    x, y = clouds(np.random.default_rng(1), 300, 4)
    monkeypatch.setattr(transfer, "_ITERATIONS", 3)
    penalty = PENALTIES[2]
    kernel, bias, _ = fit_head(x, y, x[:0], y[:0], 4)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    reference = LogisticRegression(C=1 / (penalty * 300), max_iter=5000, tol=1e-8).fit(scaled, y)
    logits = x @ kernel + bias
    ours = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True), reference.predict_proba(scaled), atol=0.03)
    late, _, _ = fit_head(x, y, x[:0], y[:0], 4, until=time.time() - 1)
    monkeypatch.setattr(transfer, "_MOST_ITERATIONS", 3)
    np.testing.assert_array_equal(late, fit_head(x, y, x[:0], y[:0], 4)[0], "one round where the time is over")
    assert np.abs(late - kernel).max() > 1e-3


@pytest.mark.parametrize("has_held_out", [True, False])
def test_the_head_of_the_part_is_kept_where_that_of_all_photos_is_worse(
    monkeypatch: pytest.MonkeyPatch, has_held_out: bool
):
    """Only the part has true labels here. Without held-out photos nothing tells, and all photos are believed."""
    x, y = clouds(np.random.default_rng(1), 600, 3)
    monkeypatch.setattr(transfer, "_ENOUGH_FOR_A_PENALTY", 100)
    wrong = np.setdiff1d(np.arange(600), generator(0, "head").permutation(600)[:100])
    numbers = y.copy()
    numbers[wrong] = (numbers[wrong] + 1) % 3
    held_out = slice(0, 600 if has_held_out else 0)
    kernel, bias, _ = fit_head(x, numbers, x[held_out], y[held_out], 3)
    right = ((x @ kernel + bias).argmax(axis=1) == y).mean()
    assert right > 0.8 if has_held_out else right < 0.3


@pytest.mark.parametrize("teacher", [[], ["distill.teacher=somewhere"]], ids=["labels", "teacher"])
def test_loss_and_accuracy_of_a_head_are_those_that_keras_evaluates(teacher: list[str]):
    """With label smoothing and the penalty on its kernel: fine-tuned epochs are compared with it."""
    inputs = keras.Input((12,))
    outputs = keras.layers.Dense(
        3, "softmax", kernel_regularizer=keras.regularizers.L2(0.3), bias_initializer="ones", name="probabilities"
    )(inputs)
    model = keras.Model(inputs, outputs)
    asked = load_recipe(changes=["train.label_smoothing=0.2", *teacher])
    model.compile(loss=loss_of(asked, 3), metrics=["accuracy"], run_eagerly=True)
    x, y = clouds(np.random.default_rng(1), 50, 3)
    x /= np.abs(x).max(axis=0)
    wanted = model.evaluate(x, np.eye(3, dtype=np.float32)[y], batch_size=50, verbose=0, return_dict=True)
    assert transfer._measured(model, x, y, "") == pytest.approx(wanted, rel=1e-5)
    assert set(transfer._measured(model, x, y, "val_")) == {"val_loss", "val_accuracy"}


def test_a_run_that_had_no_time_to_fine_tune_is_replayed_without():
    inputs, precision = SimpleNamespace(recipe=Recipe()), Precision("float32", {}, "")
    assert not Planner(inputs, precision, None, TrainingPlan((), 0)).has_time()
    assert Planner(inputs, precision, None, TrainingPlan((Segment(64, 1, (0.0, 1.0)),), 10)).has_time()
    assert Planner(inputs, precision, None, None).has_time()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with weights for MobileNetV2 that were never trained: random features tell shapes apart too.

    Only BatchNormalization has seen pictures; else 52 random layers make all of them alike.
    """
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(64, 64, 3))
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    seen = np.stack([photo(seed, (64, 64)) for seed in range(32)]).astype(np.float32)
    network(keras.applications.mobilenet_v2.preprocess_input(seen), training=True)
    file = tmp_path_factory.mktemp("weights") / "mobilenet_v2.weights.h5"
    network.save_weights(file)
    return file


@pytest.mark.slow
def test_a_run_begins_from_weights_goes_on_after_a_kill_and_ships(weights: Path, tmp_path: Path):
    photos, folder, cache = tellapart.draw(tmp_path / "photos", num_images=240), tmp_path / "run", tmp_path / "cache"
    changes = [f"model.weights={weights}", "data.image_px=64", "train.epochs=2", "model.unfreeze=0.1"]
    words = ["train", str(photos), "--recipe", "transfer", "--out", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tellapart", *words, *(word for change in changes for word in ("--set", change))],
        env={**os.environ, "TELLAPART_CACHE": str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    features = folder / "checkpoints" / "features.npy"
    while not features.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (folder / "model.keras").exists()
    (store,) = cache.glob("features-*/features.f32")
    before = store.stat()
    run = tellapart.resume(folder, cache=cache)
    after = store.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size), "they were there already"
    history = pd.read_csv(run.path / "history.csv")
    assert history["epoch"].tolist() == [0, 1, 2]
    best = history.set_index("epoch")["val_loss"].idxmin()
    assert run.metrics["best_epoch"] == best
    assert run.metrics["train"]["accuracy"] > 0.3, "a head on random features"
    events = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert next(each for each in events if each["event"] == "head")["penalty"] in PENALTIES
    bundle = tellapart.export(run.path, tmp_path / "bundle", cache=tmp_path / "cache")
    assert bundle.record.artefact("onnx").proofs["onnxruntime"].passed
    assert bundle.record.explains


@pytest.mark.integration
@pytest.mark.by_hand
def test_a_head_alone_is_a_whole_run_and_no_photo_goes_through_the_network_twice(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def twice(*_: object) -> None:
        raise AssertionError("the features of all photos are known already")

    monkeypatch.setattr(measure, "features_and_probabilities", twice)
    photos = tellapart.draw(tmp_path / "photos", num_images=160)
    changes = [f"model.weights={weights}", "data.image_px=64", "model.unfreeze=0"]
    run = tellapart.train(photos, recipe="transfer", changes=changes, out=tmp_path / "run", cache=tmp_path / "cache")
    assert pd.read_csv(run.path / "history.csv")["epoch"].tolist() == [0]
    assert run.metrics["best_epoch"] == 0
    assert run.metrics["train"]["accuracy"] > 0.3, "a head on random features"
    table = pd.read_csv(run.path / "predictions.csv")
    said = tellapart.load(run.path).predict([photos / path for path in table["path"]])
    np.testing.assert_allclose([found.probability for found in said], table["probability"], atol=1e-4)
    again = tellapart.reproduce(run.path, out=tmp_path / "again", cache=tmp_path / "cache")
    assert again.accuracies[0] == pytest.approx(again.accuracies[1], abs=0.05)


@pytest.mark.slow
@pytest.mark.by_hand
def test_a_pretrained_student_learns_from_a_teacher(weights: Path, tmp_path: Path):
    """The loss of a student is a function that returns one value a picture, and not one number."""
    photos, cache = tellapart.draw(tmp_path / "photos", num_images=120), tmp_path / "cache"
    quick = ["data.image_px=32", "train.epochs=1", "train.precision=float32"]
    teacher = tellapart.train(photos, changes=quick, out=tmp_path / "teacher", cache=cache)
    changes = [
        f"model.weights={weights}", "data.image_px=64", "train.epochs=1", "model.unfreeze=0.1",
        f"distill.teacher={teacher.path}",
    ]  # fmt: skip
    run = tellapart.train(photos, recipe="transfer", changes=changes, out=tmp_path / "student", cache=cache)
    history = pd.read_csv(run.path / "history.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert np.isfinite(history[["loss", "val_loss"]]).all(axis=None)
    assert "KL(teacher ‖ student)" in json.loads((run.path / "environment.json").read_text())["loss"]
