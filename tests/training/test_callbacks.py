"""What validation sees, what is kept and what is noted, on networks small enough to compute by hand."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from tellapart.errors import TrainingStoppedError
from tellapart.records import Observer
from tellapart.run_folder import RunFolder
from tellapart.training.callbacks import Checkpoints, EvaluatedWeights, Journal, OutOfTimeError, recalibrate
from tellapart.training.checkpoint import load_weights
from tellapart.training.schedule import Segment
from tellapart.training.state import Best, TrainingState
from tellapart.training.timing import Precision


class Clean:
    """Batches of pictures that lie in memory, as `CleanBatches` gives those of photos."""

    def __init__(self, images: np.ndarray, size: int) -> None:
        self.parts = [images[start : start + size] for start in range(0, len(images), size)]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        return (self.parts[index],)


def run_state() -> TrainingState:
    return TrainingState(Precision("float32", {}, ""), planned_steps=9, segment=Segment(8, 9, (0.0, 1.0)))


def fit(
    folder: Path,
    epochs: int,
    validated: list[int],
    *,
    validation: bool = True,
    patience: int = 100,
    more: tuple[keras.callbacks.Callback, ...] = (),
    **options: float,
) -> TrainingState:
    """Train one weight with an average of it; the training loss falls to 0, that of validation to 1, at 0.35."""
    inputs = keras.Input((1,))
    outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), loss="mse", jit_compile=False)
    evaluated, state, one = EvaluatedWeights(None), run_state(), np.ones((1, 1), np.float32)
    held_out = np.ones((2, 1), np.float32), np.array([[1.35], [-0.65]], np.float32)
    model.fit(
        one, one, epochs=epochs, shuffle=False, verbose=0, validation_data=held_out if validation else None,
        validation_freq=validated,
        callbacks=[evaluated, Checkpoints(folder, evaluated, state, patience, **options), *more],
    )  # fmt: skip
    return state


def average_after(epochs: int) -> float:
    """Return the optimiser's average of the weight after so many steps, as Keras' formula gives it."""
    weight, average = 0.0, None  # the average begins with the first step's weight
    for _ in range(epochs):
        weight += 0.1 * 2 * (1 - weight)
        average = weight if average is None else 0.5 * average + 0.5 * weight
    return average


def test_epochs_without_validation_never_win_and_the_average_is_kept(tmp_path):
    state = fit(tmp_path, 9, [3, 6, 9])
    assert state.best.epoch == 3  # the average passes 0.35 between epochs 3 and 4, the training loss falls on
    weights, about = load_weights(tmp_path / "best.npz")
    assert about == asdict(state.best)
    assert weights[0].item() == pytest.approx(average_after(3), abs=1e-6)
    assert state.best.score == pytest.approx(1 + (average_after(3) - 0.35) ** 2, abs=1e-6)


def test_without_validation_nothing_is_chosen_and_nothing_stops(tmp_path):
    state = fit(tmp_path, 5, [1, 2, 3, 4, 5], validation=False, patience=1)
    assert state.epoch == 5
    assert state.best is None
    assert not (tmp_path / "best.npz").exists()


def test_training_stops_when_validation_no_longer_improves(tmp_path):
    state = fit(tmp_path, 9, list(range(1, 10)), patience=2)
    losses = [row["val_loss"] for row in state.history]
    best = int(np.argmin(losses)) + 1
    assert state.best.epoch == best
    assert state.stopped
    assert len(losses) == best + 2 < 9
    assert load_weights(tmp_path / "best.npz")[0][0].item() == pytest.approx(average_after(best), abs=1e-6)


def normalising_network(nested: bool) -> keras.Model:
    inputs = keras.Input((2, 2, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    layer = keras.layers.BatchNormalization(momentum=0.9, name="norm")
    if nested:
        inner = keras.Input((2, 2, 3))
        layer = keras.Model(inner, layer(inner), name="backbone")
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(layer(x)))


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "in a backbone"])
def test_statistics_are_those_of_all_photos_not_the_mean_of_batches(nested: bool):
    """Batches of 8, 8 and 4 pictures of different brightness: the variance between them counts, and so do sizes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 80, (20, 2, 2, 3), np.uint8) + np.repeat([0, 80, 170], [8, 8, 4])[:, None, None, None]
    images = images.astype(np.uint8)
    model = normalising_network(nested)
    layer = model.get_layer("backbone").get_layer("norm") if nested else model.get_layer("norm")
    recalibrate(model, Clean(images, 8))
    values = (images / 255).reshape(-1, 3)
    np.testing.assert_allclose(layer.moving_mean, values.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, values.var(axis=0), atol=1e-5)
    assert layer.momentum == 0.9


def test_frozen_statistics_stay():
    model = normalising_network(nested=False)
    model.get_layer("norm").trainable = False
    recalibrate(model, Clean(np.full((4, 2, 2, 3), 200, np.uint8), 2))
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, np.zeros(3))


class Saved(keras.callbacks.Callback):
    """Reads after each epoch which epoch the last checkpoint is of."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path, self.epochs = folder / "last.npz", []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epochs.append(load_weights(self.path)[1]["epoch"] if self.path.exists() else 0)


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"pause": 0.0}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"pause": 1e9}, [0, 2, 3, 3, 3, 3, 3, 3, 9]),  # new best weights in epochs 2 and 3, and the segment's end
        ({"pause": 1e9, "snapshots": 1}, [0, 2, 3, 3, 3, 3, 7, 7, 9]),  # due after three quarters: epoch 7 of 9
        ({"pause": 1e9, "patience": 3}, [0, 2, 3, 3, 3, 6]),  # and where it stops
    ],
    ids=["no pause", "pause", "snapshot", "stops"],
)
def test_a_pause_between_checkpoints_skips_none_that_belongs_to_something_kept(tmp_path: Path, options: dict, saved):
    """The average of the weights passes the validation photos' best value between epochs 3 and 4."""
    last = Saved(tmp_path)
    state = fit(tmp_path, 9, [2, 3, 7, 9], more=(last,), **options)
    assert last.epochs == saved
    assert state.snapshots == options.get("snapshots", 0)


def test_a_snapshot_that_is_due_waits_for_the_next_look_and_holds_what_was_seen(tmp_path: Path):
    """Two of them in 9 epochs: due after 2/3 and 5/6 of the schedule, which are epochs 6 and 8."""
    state = fit(tmp_path, 9, [2, 9], snapshots=2)
    assert sorted(path.name for path in tmp_path.glob("snapshot-*")) == ["snapshot-2.npz"]
    weights, about = load_weights(tmp_path / "snapshot-2.npz")
    assert about == {"epoch": 9}
    assert weights[0].item() == pytest.approx(average_after(9), abs=1e-6)
    assert state.snapshots == 2


def test_a_row_of_the_history_says_when_where_and_at_which_rate(tmp_path: Path):
    state = fit(tmp_path, 3, [2])
    assert [row["epoch"] for row in state.history] == [1, 2, 3]
    assert [row["image_px"] for row in state.history] == [8, 8, 8]
    assert [row["learning_rate"] for row in state.history] == pytest.approx([0.1] * 3)
    assert ["val_loss" in row for row in state.history] == [False, True, False]
    assert state.history[0]["loss"] == pytest.approx(1.0), "of the weight 0, before its step"
    assert sum(row["seconds"] for row in state.history) == pytest.approx(state.seconds_training)
    assert state.processor_seconds_training > 0


def noisy_network() -> keras.Model:
    """Of four pixels two classes, with all that draws or remembers: dropout, statistics, an average."""
    inputs = keras.Input((2, 2, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Dropout(0.5, seed=3)(keras.layers.Flatten()(x))
    x = keras.layers.Dense(2, activation="softmax", kernel_initializer=keras.initializers.GlorotUniform(seed=1))(x)
    model = keras.Model(inputs, x)
    optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)
    model.compile(optimizer, loss="categorical_crossentropy", run_eagerly=True)
    return model


def test_how_often_the_network_is_validated_does_not_change_how_it_learns():
    """Clean photos go through dropout too, in training mode: its random state must be put back."""
    rng = np.random.default_rng(0)
    images, targets = rng.integers(0, 256, (16, 2, 2, 3), np.uint8), np.eye(2, dtype=np.float32)[np.arange(16) % 2]
    found = []
    for validated in ([3], [1, 2, 3]):
        model = noisy_network()
        evaluated = EvaluatedWeights(Clean(images[::-1], 5))
        model.fit(
            images, targets, epochs=3, batch_size=8, shuffle=False, verbose=0, validation_data=(images, targets),
            validation_freq=validated, callbacks=[evaluated],
        )  # fmt: skip
        found.append((model, evaluated))
    (seldom, first), (often, second) = found
    for ours, theirs in zip(seldom.variables, often.variables, strict=True):
        if "metric" not in ours.path and "loss" not in ours.path:
            np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    for ours, theirs in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    moved = [np.abs(ours - theirs).max() for ours, theirs in zip(first.weights, seldom.get_weights(), strict=True)]
    assert min(moved) > 0, "what is validated is averaged and has statistics of clean photos; what learns on has not"


class Said:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.progress, self.rows = [], []
        self.observer = Observer(progress=lambda *said: self.progress.append(said), watch=self.rows.append)


def journal(run: Path, steps: int = 40, *, state: TrainingState | None = None, **options: Any) -> tuple[Journal, Said]:
    said = Said()
    return Journal(RunFolder(run), state or run_state(), steps, said.observer, **options), said


@pytest.mark.parametrize(
    ("every", "steps", "looks"),
    [(16, 40, [0, 16, 32, 39]), (16, 33, [0, 16, 32]), (1, 3, [0, 1, 2]), (16, 1, [0])],
)
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_at_the_next_look(tmp_path: Path, every, steps, looks, loss: float):
    notes, said = journal(tmp_path, steps, every=every)
    for step in range(steps):
        notes.on_train_batch_end(step, {"loss": 1e30})
    assert [done - 1 for _, done, _ in said.progress] == looks
    notes.state.epoch = 2
    for step in range(steps):
        if step in looks:
            with pytest.raises(
                TrainingStoppedError, match=rf"became {loss} in epoch 3, step {step + 1}\. The last good"
            ):
                notes.on_train_batch_end(step, {"loss": loss})
        else:
            notes.on_train_batch_end(step, {"loss": loss})


@pytest.mark.parametrize(
    ("epoch", "step", "late_by", "ends"),
    [
        (1, 16, 1.0, True),
        (1, 16, -1.0, False),
        (1, 17, 1.0, False),  # the clock is looked at where the loss is
        (0, 16, 1.0, False),  # the first epoch: there is nothing to keep without it
        (1, 39, 1.0, False),  # the last step: the epoch is done
    ],
)
def test_an_epoch_that_is_late_is_given_up_unless_it_is_the_first_or_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, step: int, late_by: float, ends: bool
):
    monkeypatch.setattr(time, "time", lambda: 1000.0 + late_by)
    notes, _ = journal(tmp_path, ends=1000.0)
    notes.state.epoch = epoch
    if ends:
        with pytest.raises(OutOfTimeError):
            notes.on_train_batch_end(step, {"loss": 1.0})
    else:
        notes.on_train_batch_end(step, {"loss": 1.0})
    notes.ends = None
    notes.on_train_batch_end(step, {"loss": 1.0})  # without a deadline nothing is late


def test_each_epoch_is_in_the_history_the_log_and_what_watchers_see(tmp_path: Path):
    state = run_state()
    notes, said = journal(tmp_path, state=state)
    fit_rows = [{"epoch": 1, "loss": 0.5, "seconds": 0.1}, {"epoch": 2, "loss": 0.25, "val_loss": 0.75, "seconds": 0.1}]
    for row, best in zip(fit_rows, (None, Best(2, 0.75)), strict=True):
        state.history.append(row)
        state.epoch, state.best = row["epoch"], best
        notes.on_epoch_end(row["epoch"] - 1, {})
    table = pd.read_csv(tmp_path / "history.csv")
    assert table["loss"].tolist() == [0.5, 0.25]
    assert table["val_loss"].isna().tolist() == [True, False]
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(event["event"], event["epoch"], event["best_epoch"]) for event in events] == [
        ("epoch", 1, None), ("epoch", 2, 2),
    ]  # fmt: skip
    assert said.rows == [row | {"progress": row["epoch"] / 9} for row in fit_rows]


@pytest.mark.parametrize(
    ("accuracies", "shown"),
    [
        ([], ""),
        ([0.5], ", validation ▁ 0.500"),
        ([0.25, 0.25], ", validation ▁▁ 0.250"),
        ([0.25, 1.0, 0.625], ", validation ▁█▅ 0.625"),  # 3.5 of 7 steps up, to the even one
        ([0.0, *[0.5] * 15, 1.0], ", validation ▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅█ 1.000"),  # the lowest was seventeen looks ago
    ],
)
def test_the_line_shows_the_epoch_its_size_and_the_curve_of_the_validation(tmp_path: Path, accuracies, shown: str):
    state = run_state()
    state.epochs = 20
    state.history = [{"epoch": 1, "loss": 1.0}, *({"val_accuracy": accuracy} for accuracy in accuracies)]
    notes, said = journal(tmp_path, state=state)
    notes.on_epoch_begin(4)
    notes.on_train_batch_end(0, {"loss": 1.0})
    assert said.progress == [(f"epoch 5 of 20 at 8 px{shown}", 1, 40)]
