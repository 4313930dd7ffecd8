"""What happens between steps and epochs. Callbacks observe and record; `train` decides."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tellapart.data.batches import CleanBatches
from tellapart.errors import TrainingStoppedError
from tellapart.records import Observer
from tellapart.run_folder import RunFolder
from tellapart.training.checkpoint import Arrays, save_checkpoint, save_weights
from tellapart.training.schedule import snapshots_due
from tellapart.training.selection import decide
from tellapart.training.state import Best, TrainingState


class OutOfTimeError(Exception):
    """An epoch would end after the run must be over: it is given up."""


_CURVE_LENGTH = 16
"""Looks at the validation photos that the progress line shows."""


class EvaluatedWeights(keras.callbacks.Callback):
    """Validates the weights that would be kept: averaged, with statistics from clean photos.

    During validation the model holds the optimiser's running average of the weights (Polyak & Juditsky
    1992), where the recipe asks for one, and BatchNormalization's statistics estimated anew on photos as
    they are, not as augmentation shows them. Training goes on afterwards with its own weights.

    Attributes:
        weights: what was validated last, as `keras.Model.get_weights` returns them.
    """

    def __init__(self, clean: CleanBatches | None) -> None:
        super().__init__()
        self.clean = clean
        self.weights: Arrays = []
        self._training: Arrays = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Remember the training weights: a run that was killed between two segments has no epoch left in its own."""
        del logs
        self._training = self.model.get_weights()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Put the weights to be validated in place."""
        del logs
        self._training = self.model.get_weights()
        # Recalibration draws dropout masks. Without putting the random states back, validating more or less often would
        # change the training itself.
        seeds = [np.asarray(v) for v in self._random_states()]
        # The average first: the statistics must be those of the weights that are kept.
        if self.model.optimizer.use_ema:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.clean is not None:
            recalibrate(self.model, self.clean)
        for variable, value in zip(self._random_states(), seeds, strict=True):
            variable.assign(value)
        self.weights = self.model.get_weights()
        self.model.set_weights(self.weights)  # on JAX the average may share, and lose, the model's memory

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the training weights back."""
        del logs
        self.model.set_weights(self._training)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remember the training weights: `fit` ends with the average in their place."""
        del epoch, logs
        self._training = self.model.get_weights()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the training weights back, for the next segment."""
        del logs
        self.model.set_weights(self._training)

    def _random_states(self) -> list[Any]:
        return [v for v in self.model.variables if "seed_generator" in v.path]


def recalibrate(model: keras.Model, clean: CleanBatches) -> None:
    """Estimate BatchNormalization's statistics anew on clean photos, as those of the whole population.

    The variance of the population is the mean square less the squared mean over all batches: a mean of the batches'
    variances, as a running average gives it, lacks the variance between batches (Wu & Johnson 2021, "Rethinking 'Batch'
    in BatchNorm", section 3.1). The weights stay as they are; frozen layers too.

    Args:
        model: any, built.
        clean: batches in random order, not sorted by class.
    """
    layers = [layer for layer in normalisations(model) if layer.trainable]
    # Frozen layers normalise with their old statistics in training too, so those stay.
    if not layers or not len(clean):
        return
    usual = [layer.momentum for layer in layers]
    means: list[Any] = [0.0] * len(layers)
    squares: list[Any] = [0.0] * len(layers)
    count = 0
    # Momentum 0 makes the moving statistics those of the last batch, which is how they are read below.
    for layer in layers:
        layer.momentum = 0.0
    for index in range(len(clean)):
        images = clean[index][0]
        # Not compiled: a compiled call keeps the momentum that it was traced with, and the statistics read below would
        # not be those of this batch.
        model(images, training=True)
        count += len(images)
        for number, layer in enumerate(layers):
            mean = np.asarray(keras.ops.convert_to_numpy(layer.moving_mean), np.float64)
            means[number] += len(images) * mean
            squares[number] += len(images) * (keras.ops.convert_to_numpy(layer.moving_variance) + mean**2)
    # E[x²] - E[x]² cancels for channels that hardly vary: hence float64 above, and no variance below 0.
    for layer, total, square, momentum in zip(layers, means, squares, usual, strict=True):
        layer.momentum = momentum
        layer.moving_mean.assign(total / count)
        layer.moving_variance.assign(np.maximum(square / count - (total / count) ** 2, 0.0))


def normalisations(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    """Yield the BatchNormalization layers of a network, those inside fused blocks and backbones too."""
    for layer in model.layers:
        # A fused block holds its BatchNormalization as an attribute, where `model.layers` does not list it.
        inside = getattr(layer, "batchnorm", layer)
        if isinstance(inside, keras.Model):
            yield from normalisations(inside)
        elif isinstance(inside, keras.layers.BatchNormalization):
            yield inside


class Checkpoints(keras.callbacks.Callback):
    """Keeps the last state and the best weights, and stops when validation no longer improves.

    Args:
        folder: where ``last.npz`` and ``best.npz`` go.
        evaluated: holds the weights that validation saw.
        state: of the run; each epoch is written into it.
        patience: epochs without a lower validation loss before the run stops.
        snapshots: how many weights to keep on the way, as ``snapshot-1.npz`` and so on.
        pause: seconds without a new ``last.npz``, where nothing else asks for one: epochs may take milliseconds.
    """

    def __init__(
        self,
        folder: Path,
        evaluated: EvaluatedWeights,
        state: TrainingState,
        patience: int,
        *,
        snapshots: int = 0,
        pause: float = 0.0,
    ) -> None:
        super().__init__()
        self.pause = pause
        self._saved = time.perf_counter()
        self.snapshots = snapshots
        self.folder = folder
        self.evaluated = evaluated
        self.state = state
        self.patience = patience
        self._clocks = time.perf_counter(), time.process_time()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clocks."""
        del epoch, logs
        self._clocks = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the epoch and write the checkpoints: best before last, so that last names no lost best."""
        row = {name: float(value) for name, value in (logs or {}).items()}
        wall, processor = self._clocks
        seconds, state = time.perf_counter() - wall, self.state
        state.seconds_training += seconds
        state.processor_seconds_training += time.process_time() - processor
        state.epoch = epoch + 1
        # A snapshot holds the weights that validation saw, so one that is due waits for the next validated epoch.
        snapshot_saved = self._keep_snapshot() if "val_loss" in row else False
        epoch_facts = {
            "epoch": epoch + 1,
            "image_px": state.current.image_px,
            "learning_rate": float(self.model.optimizer.learning_rate),
        }
        state.history.append({**epoch_facts, **row, "seconds": seconds})
        decision = decide(state.history, self.patience)
        state.stopped = decision.stop
        if decision.keep:
            state.best = Best(epoch + 1, row["val_loss"])
            # Before last.npz: a run killed in between repeats the epoch, and never names a best that is not there.
            save_weights(self.folder / "best.npz", self.evaluated.weights, asdict(state.best))
        # On an accelerator an epoch may take less time than writing a checkpoint. One that goes with new best weights
        # or a snapshot, or ends a segment, is never skipped.
        ends = decision.stop or state.epoch == state.last_epoch
        if snapshot_saved or decision.keep or ends or time.perf_counter() - self._saved >= self.pause:
            save_checkpoint(self.folder / "last.npz", self.model, state.to_dict())
            self._saved = time.perf_counter()
        if decision.stop:
            self.model.stop_training = True

    def _keep_snapshot(self) -> bool:
        """Keep the weights that validation saw where a snapshot is due: before last, as the best weights are."""
        state = self.state
        due = snapshots_due(state.current, state.epoch - state.first_epoch, self.snapshots)
        if due > state.snapshots:
            save_weights(self.folder / f"snapshot-{due}.npz", self.evaluated.weights, {"epoch": state.epoch})
            state.snapshots = due
            return True
        return False


class Journal(keras.callbacks.Callback):
    """Writes ``history.csv`` and ``log.jsonl`` and reports progress; stops at a loss that is not finite.

    An epoch that is not over at `ends`, by `time.time`, is given up, but never the first. The loss is looked at every
    `every` steps.
    """

    def __init__(
        self,
        run: RunFolder,
        state: TrainingState,
        steps: int,
        observer: Observer,
        *,
        ends: float | None = None,
        every: int = 16,
    ) -> None:
        super().__init__()
        self.every = every
        self.observer = observer
        self.ends = ends
        self.run = run
        self.state = state
        self.steps = steps
        self._task = "training"

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Name the epoch that is shown."""
        del logs
        self._task = f"epoch {epoch + 1} of {self.state.epochs} at {self.state.current.image_px} px"
        accuracies = [row["val_accuracy"] for row in self.state.history if "val_accuracy" in row]
        if accuracies:
            self._task += f", validation {_curve(accuracies)} {accuracies[-1]:.3f}"

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Look at the running loss now and then: each look waits for the device."""
        # The last step is always looked at: the epoch must not be recorded with a loss that is not finite.
        if batch % self.every and batch + 1 != self.steps:
            return
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise TrainingStoppedError(
                f"The loss became {loss} in epoch {self.state.epoch + 1}, step {batch + 1}. The last good "
                "checkpoint is kept. A run keeps its recipe: train a new one with a lower "
                "--set train.learning_rate=…, or with --set train.precision=float32."
            )
        # Never in the first epoch: a run that is late still needs something to keep. After the last step the epoch is
        # paid for, and counts.
        if self.ends is not None and time.time() > self.ends and self.state.epoch and batch + 1 < self.steps:
            raise OutOfTimeError
        self.observer.progress(self._task, batch + 1, self.steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the history so far."""
        del epoch, logs
        history, best = self.state.history, self.state.best
        self.run.write_history(history)
        self.run.log("epoch", **history[-1], best_epoch=best.epoch if best else None)
        # Last of all: it may raise, to end a race's candidate or a search's trial, and what it is told must be on disk.
        self.observer.watch(history[-1] | {"progress": self.state.progress})


def _curve(values: Sequence[float]) -> str:
    """Return the last values as a line of blocks, the lowest of them all at the bottom."""
    low, high = min(values), max(values)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[round(7 * (value - low) / (high - low or 1.0))] for value in values[-_CURVE_LENGTH:])


def tensorboard(run: RunFolder) -> Sequence[keras.callbacks.Callback]:
    """Return Keras' TensorBoard writer where the backend is TensorFlow; elsewhere none."""
    if keras.backend.backend() != "tensorflow":
        return ()
    return (keras.callbacks.TensorBoard(run.tensorboard, write_graph=False, profile_batch=0),)
