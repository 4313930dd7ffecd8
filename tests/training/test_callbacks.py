"""What validation sees and what is kept, on networks small enough to compute by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import pytest

from tellapart.training.callbacks import Checkpoints, EvaluatedWeights, recalibrate
from tellapart.training.checkpoint import load_weights
from tellapart.training.schedule import Segment
from tellapart.training.state import TrainingState
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
    folder: Path, epochs: int, validated: list[int], *, validation: bool = True, patience: int = 100
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
        validation_freq=validated, callbacks=[evaluated, Checkpoints(folder, evaluated, state, patience)],
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
