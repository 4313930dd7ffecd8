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
from tellapart.training import callbacks
from tellapart.training.callbacks import (
    Checkpoints,
    EvaluatedWeights,
    Journal,
    OutOfTimeError,
    recalibrate,
    tensorboard,
)
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


def test_without_clean_photos_statistics_stay_as_they_are():
    model = normalising_network(nested=False)
    layer = model.get_layer("norm")
    layer.moving_mean.assign([1.0, 2.0, 3.0])
    recalibrate(model, Clean(np.zeros((0, 2, 2, 3), np.uint8), 8))
    assert np.asarray(layer.moving_mean).tolist() == [1.0, 2.0, 3.0]
    assert layer.momentum == 0.9


def test_channels_that_hardly_vary_have_their_variance_and_none_below_zero():
    """The mean square less the squared mean: in float32 nothing is left, and some constants come out below 0."""
    inputs = keras.Input((1, 1, 101))
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm", momentum=0.5)(inputs))
    levels = np.tile(np.linspace(0.1, 90.0, 101, dtype=np.float32), (1000, 1, 1, 1))
    levels[500:, ..., -1] += 0.01
    recalibrate(model, Clean(levels, 250))
    variances = np.asarray(model.get_layer("norm").moving_variance)
    assert variances.min() >= 0
    assert variances[-1] == pytest.approx(levels[..., -1].astype(np.float64).var(), rel=0.05)
    assert model.get_layer("norm").momentum == 0.5


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("cleaned", [False, True])
def test_what_is_validated_is_averaged_and_has_clean_statistics_each_where_it_is_asked_for(averaged, cleaned):
    """Whichever it is, training goes on with its own weights afterwards."""
    model = normalising_network(nested=False)
    model.compile(keras.optimizers.SGD(0.1, use_ema=averaged, ema_momentum=0.5), loss="mse", run_eagerly=True)
    images = np.full((4, 2, 2, 3), 51, np.uint8)  # a fifth of white
    for gamma in (2.0, 4.0):  # its average: 2, then half of 2 and half of 4; a gradient of 0 moves nothing
        model.get_layer("norm").gamma.assign([gamma] * 3)
        model.optimizer.apply([np.zeros(3, np.float32)] * 2, model.trainable_variables)
    before, evaluated = model.get_weights(), EvaluatedWeights(Clean(images, 4) if cleaned else None)
    evaluated.set_model(model)
    evaluated.on_test_begin()
    for found in (evaluated.weights, model.get_weights()):
        gamma, _, mean, _ = (weight[0] for weight in found)
        assert (gamma, mean) == pytest.approx((3.0 if averaged else 4.0, 0.2 if cleaned else 0.0))
    evaluated.on_test_end()
    for ours, first in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, first)


def test_a_segment_without_an_epoch_left_keeps_its_weights():
    """As after a kill between two segments: `fit` begins and ends, and nothing is between."""
    model = normalising_network(nested=False)
    before, evaluated = model.get_weights(), EvaluatedWeights(None)
    evaluated.set_model(model)
    evaluated.on_train_begin()
    model.set_weights([weight + 1 for weight in before])  # as the average that Keras puts in place at its end
    evaluated.on_train_end()
    for ours, first in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, first)


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


class Clocks:
    """Clocks that a test sets: of the wall, and of all processors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.processors = 100.0, 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.processors)


def checkpoints(folder: Path, state: TrainingState, **options: Any) -> Checkpoints:
    """The callback of a network that is not trained: a test calls it, and says what validation saw."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(0.25), loss="mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    found = Checkpoints(folder, EvaluatedWeights(None), state, 100, **options)
    found.set_model(model)
    return found


def test_seconds_add_up_over_epochs_and_over_what_an_interrupted_run_had_spent(tmp_path: Path, monkeypatch):
    """An epoch of 3 s on two processors and one of 2 s on one; the pause between them is nobody's."""
    clocks, state = Clocks(monkeypatch), run_state()
    state.seconds_training, state.processor_seconds_training = 10.0, 20.0
    kept = checkpoints(tmp_path, state)
    for epoch, (wall, processors) in enumerate([(3.0, 6.0), (2.0, 2.0)]):
        kept.on_epoch_begin(epoch)
        clocks.wall, clocks.processors = clocks.wall + wall, clocks.processors + processors
        kept.on_epoch_end(epoch, {})
        clocks.wall, clocks.processors = clocks.wall + 50, clocks.processors + 50
    assert [row["seconds"] for row in state.history] == [3.0, 2.0]
    assert (state.seconds_training, state.processor_seconds_training) == (15.0, 28.0)
    assert load_weights(tmp_path / "last.npz")[1]["seconds_training"] == 15.0


def test_a_pause_is_counted_from_the_last_checkpoint_that_was_written(tmp_path: Path, monkeypatch):
    """Epochs of 2 s with 5 s between two checkpoints: after 6 and 12 s; that of a new best one, in between, counts."""
    clocks, found = Clocks(monkeypatch), {}
    for name, best in (("plain", None), ("a best one", 3)):
        kept = checkpoints(tmp_path / name, run_state(), pause=5.0)
        found[name] = []
        for epoch in range(7):
            clocks.wall += 2.0
            kept.on_epoch_end(epoch, {"val_loss": 0.5} if epoch == best else {})
            path = tmp_path / name / "last.npz"
            found[name].append(load_weights(path)[1]["epoch"] if path.exists() else 0)
    assert found == {"plain": [0, 0, 3, 3, 3, 6, 6], "a best one": [0, 0, 3, 4, 4, 4, 7]}


def test_a_checkpoint_never_names_a_best_or_a_snapshot_that_is_not_on_disk(tmp_path: Path, monkeypatch):
    """Whenever the process is killed: when the last checkpoint is written, the others are there."""
    seen, save = [], callbacks.save_checkpoint

    def watched(path: Path, model: keras.Model, state: dict[str, Any]) -> None:
        best = load_weights(tmp_path / "best.npz")[1]
        seen.append((best == state["best"], (tmp_path / f"snapshot-{state['snapshots']}.npz").exists()))
        save(path, model, state)

    monkeypatch.setattr(callbacks, "save_checkpoint", watched)
    kept = checkpoints(tmp_path, run_state(), snapshots=3)
    for epoch, loss in enumerate([0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.1, 0.05, 0.2]):
        kept.on_epoch_end(epoch, {"loss": 1.0, "val_loss": loss})
    assert [best for best, _ in seen] == [True] * 9
    assert [snapshot for _, snapshot in seen] == [False] * 5 + [True] * 4, "due from five eighths of nine epochs on"


def test_snapshots_count_what_a_resumed_run_has_kept_and_begin_with_its_segment(tmp_path: Path):
    """Of two, the first one is there; the segment under way began after four epochs, with half of the schedule."""
    state = TrainingState(
        Precision("float32", {}, ""), 9, epoch=4, segment=Segment(8, 6, (0.5, 1.0)), first_epoch=4, snapshots=1
    )
    kept, names = checkpoints(tmp_path, state, snapshots=2), []
    for epoch in range(4, 10):
        kept.on_epoch_end(epoch, {"val_loss": 1.0})
        names.append(sorted(path.stem for path in tmp_path.glob("snapshot-*")))
    assert names == [[], [], [], ["snapshot-2"], ["snapshot-2"], ["snapshot-2"]]
    assert load_weights(tmp_path / "snapshot-2.npz")[1] == {"epoch": 8}


def test_what_a_backend_logs_becomes_plain_numbers_and_may_be_missing(tmp_path: Path):
    """A checkpoint holds the history as JSON, which knows no numbers of NumPy or of a backend."""
    state = run_state()
    kept = checkpoints(tmp_path, state)
    kept.on_epoch_end(0, {"loss": np.float32(0.5), "accuracy": keras.ops.array(0.25)})
    kept.on_epoch_end(1, None)
    history = load_weights(tmp_path / "last.npz")[1]["history"]
    assert history == state.history
    assert [(row["epoch"], row.get("loss"), row.get("accuracy")) for row in history] == [
        (1, 0.5, 0.25),
        (2, None, None),
    ]
    assert [row["learning_rate"] for row in history] == [0.25, 0.25]


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


def test_what_a_watcher_is_told_is_on_disk_by_then(tmp_path: Path):
    """It may end the run, which is then gone on from."""
    found = []

    def watch(row: dict[str, Any]) -> None:
        event = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
        found.append((row["epoch"], event["epoch"], pd.read_csv(tmp_path / "history.csv")["epoch"].tolist()))

    state = run_state()
    notes = Journal(RunFolder(tmp_path), state, 4, Observer(watch=watch))
    for epoch in (1, 2):
        state.history.append({"epoch": epoch, "loss": 0.5})
        notes.on_epoch_end(epoch - 1)
    assert found == [(1, 1, [1]), (2, 2, [1, 2])]


def test_tensorboard_writes_into_the_folder_of_the_run(tmp_path: Path):
    (writer,) = tensorboard(RunFolder(tmp_path))
    assert Path(writer.log_dir) == RunFolder(tmp_path).tensorboard


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
