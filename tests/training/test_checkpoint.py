"""Going on from a checkpoint equals never having stopped; damaged ones are named."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from tellapart.errors import RunError
from tellapart.models.build import build_for_training
from tellapart.settings import ConvNet
from tellapart.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights, seconds_spent


def network(num_classes: int = 3, seed: int = 0) -> keras.Model:
    model = build_for_training(ConvNet(dropout=0.5, batchnorm_momentum=0.9), num_classes, seed=seed)
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.01, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def train(model: keras.Model, steps: range) -> None:
    for step in steps:
        rng = np.random.default_rng(step)
        images = rng.integers(0, 256, (8, 16, 16, 3), np.uint8)
        model.train_on_batch(images, np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)])


@pytest.mark.integration
def test_ten_steps_and_ten_more_after_a_restart_are_twenty_steps(tmp_path):
    path = tmp_path / "last.npz"
    whole = network()
    train(whole, range(10))
    save_checkpoint(path, whole, {"epoch": 1, "done": 0.5})
    train(whole, range(10, 20))
    resumed = network(seed=99)
    assert load_checkpoint(path, resumed) == {"epoch": 1, "done": 0.5}
    assert int(resumed.optimizer.iterations) == 10
    train(resumed, range(10, 20))
    for mine, theirs in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=theirs.path)
    for mine, theirs in zip(resumed.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=theirs.path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    model = network(3)
    model.optimizer.build(model.trainable_variables)
    save_checkpoint(tmp_path / "last.npz", model, {})
    with pytest.raises(RunError, match="belongs to another network or optimiser"):
        load_checkpoint(tmp_path / "last.npz", network(4))


def test_weights_come_back_as_they_were_in_their_order(tmp_path):
    weights = [np.full((2, number + 1), number, np.float32) for number in range(12)]
    save_weights(tmp_path / "best.npz", weights, {"epoch": 3, "score": None})
    found, state = load_weights(tmp_path / "best.npz")
    assert state == {"epoch": 3, "score": None}
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found, weights, strict=True))


def test_more_than_a_thousand_arrays_come_back_in_their_order(tmp_path):
    values = [np.full(1, number, np.float32) for number in range(1203)]
    save_weights(tmp_path / "best.npz", values, {})
    assert [int(value[0]) for value in load_weights(tmp_path / "best.npz")[0]] == list(range(1203))


@pytest.mark.parametrize("way", ["truncated", "overwritten"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, way: str):
    path = tmp_path / "last.npz"
    save_weights(path, [np.arange(40.0), np.arange(6.0)], {"epoch": 3})
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        torn = whole[:place] if way == "truncated" else whole[:place] + b"\xff" * 9 + whole[place + 9 :]
        path.write_bytes(torn)
        try:
            weights, state = load_weights(path)
        except RunError as error:
            assert "last.npz is not a whole checkpoint" in str(error)  # noqa: PT017  # may also be unharmed
        else:
            assert way == "overwritten", place
            assert state == {"epoch": 3}, place
            np.testing.assert_array_equal(np.concatenate(weights), [*range(40), *range(6)])


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(RunError, match="the run ended before its first checkpoint"):
        load_weights(tmp_path / "last.npz")


def dense(optimizer: str = "adam") -> keras.Model:
    """One kernel, with the slots of its optimiser."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    model.compile(optimizer, loss="mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path: Path):
    """Adam's moments are no momentum of SGD, though the network is the same."""
    save_checkpoint(tmp_path / "last.npz", dense("adam"), {})
    with pytest.raises(RunError, match="belongs to another network or optimiser"):
        load_checkpoint(tmp_path / "last.npz", dense("sgd"))
    assert load_checkpoint(tmp_path / "last.npz", dense("adam")) == {}


def test_weights_alone_are_not_a_checkpoint_and_a_checkpoint_is_not_weights_alone(tmp_path: Path):
    model = dense()
    save_weights(tmp_path / "best.npz", model.get_weights(), {"epoch": 2})
    with pytest.raises(RunError, match=r"best\.npz belongs to another network or optimiser"):
        load_checkpoint(tmp_path / "best.npz", model)
    save_checkpoint(tmp_path / "last.npz", model, {"epoch": 3})
    assert load_weights(tmp_path / "last.npz") == ([], {"epoch": 3})


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path: Path):
    """Its second array cannot be written: the first is on its way to the disk by then."""
    path = tmp_path / "best.npz"
    save_weights(path, [np.arange(3.0)], {"epoch": 1})
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        save_weights(path, [np.arange(5.0), np.array([object()])], {"epoch": 2})
    weights, state = load_weights(path)
    assert (weights[0].tolist(), state) == ([0.0, 1.0, 2.0], {"epoch": 1})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("state", "seconds"), [({"seconds_training": 2.5}, 2.5), ({}, 0.0), (None, 0.0)])
def test_an_interrupted_run_has_spent_what_its_checkpoint_says(tmp_path: Path, state: dict | None, seconds: float):
    if state is not None:
        save_weights(tmp_path / "last.npz", [], state)
    assert seconds_spent(tmp_path / "last.npz") == seconds
