"""A run's network: how it begins, that timing leaves no trace in it, and how it is written."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from held import drawn, noise
from tellapart.errors import RunError
from tellapart.files import write_json
from tellapart.run_folder import RunFolder
from tellapart.settings import load_recipe
from tellapart.training.checkpoint import save_weights
from tellapart.training.network import (
    begin_with_weights_of,
    compiled,
    optimizer_for,
    plain_network,
    save_network,
    set_average,
    unchanged,
)
from tellapart.training.schedule import Segment, rate_at

TINY = ["data.image_px=16", "model.width=0.25"]


def small(num_classes: int, seed: int, width: float = 1.0):
    recipe = load_recipe("fast", ["data.image_px=32", f"train.seed={seed}", f"model.width={width}"])
    return compiled(recipe, num_classes, "float32")[0]


def test_weights_are_taken_class_by_class_and_a_new_class_keeps_its_first_ones(tmp_path: Path):
    run, model, origin = RunFolder(tmp_path), small(3, seed=1), small(3, seed=2)
    rng = np.random.default_rng(0)
    origin.get_layer("probabilities").set_weights(
        [rng.normal(size=variable.shape) for variable in origin.get_layer("probabilities").weights]
    )
    run.checkpoints.mkdir()
    save_weights(run.best_weights, origin.get_weights(), {})
    write_json(run.record_path, {"schema_version": 2, "classes": ["cat", "dog", "owl"]})
    first = model.get_layer("probabilities").get_weights()

    begin_with_weights_of(run, model, ["ape", "owl", "cat"])

    heads = (network.get_layer("probabilities").get_weights() for network in (model, origin))
    for ours, before, theirs in zip(next(heads), first, next(heads), strict=True):
        np.testing.assert_array_equal(ours, np.stack([before[..., 0], theirs[..., 2], theirs[..., 0]], axis=-1))
    for ours, theirs in zip(model.get_weights()[:-2], origin.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)

    with pytest.raises(RunError, match="another network than the recipe asks for"):
        begin_with_weights_of(run, small(3, seed=1, width=2.0), ["ape", "owl", "cat"])


def test_a_run_without_weights_and_a_refused_one_leave_the_network_as_it_was(tmp_path: Path):
    run, model = RunFolder(tmp_path), small(3, seed=1)
    write_json(run.record_path, {"schema_version": 2, "classes": ["cat", "dog"]})
    before = model.get_weights()
    with pytest.raises(RunError, match=r"best\.npz does not exist"):
        begin_with_weights_of(run, model, ["cat", "dog", "owl"])
    # Of the right network, but for one class more than the run has.
    save_weights(run.best_weights, small(3, seed=2).get_weights(), {})
    with pytest.raises(RunError, match="another network than the recipe asks for"):
        begin_with_weights_of(run, model, ["cat", "dog", "owl"])
    for ours, first in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, first)


def test_a_run_of_other_classes_gives_all_but_its_head(tmp_path: Path):
    """Five classes were known, two are wanted, and none of them is among the five."""
    run, model, origin = RunFolder(tmp_path), small(2, seed=1), small(5, seed=2)
    save_weights(run.best_weights, origin.get_weights(), {})
    write_json(run.record_path, {"schema_version": 2, "classes": list("abcde")})
    head = model.get_layer("probabilities").get_weights()
    begin_with_weights_of(run, model, ["x", "y"])
    for ours, first in zip(model.get_layer("probabilities").get_weights(), head, strict=True):
        np.testing.assert_array_equal(ours, first)
    for ours, theirs in zip(model.get_weights()[:-2], origin.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def tiny(*changes: str) -> keras.Model:
    recipe = load_recipe(changes=[*TINY, *changes])
    return compiled(recipe, 3, "float32")[0]


def learn(model: keras.Model, steps: range) -> list[float]:
    """Train on pictures that follow from the number of the step; return the losses."""
    losses = []
    for step in steps:
        model.reset_metrics()
        losses.append(float(model.train_on_batch(noise(8, 4, step), np.eye(3, dtype=np.float32)[np.arange(8) % 3])))
    return losses


def learning(changes: list[str]) -> keras.Model:
    """A network with all that changes in a step: weights, statistics, what dropout draws next, the optimiser's."""
    recipe = load_recipe(changes=changes)
    layers = keras.layers
    kernels = [{"kernel_initializer": keras.initializers.GlorotUniform(seed=seed)} for seed in (1, 2)]
    model = keras.Sequential([
        keras.Input((4, 4, 3), dtype="uint8"), layers.Rescaling(1 / 255), layers.Flatten(),
        layers.Dense(8, **kernels[0]), layers.BatchNormalization(), layers.Dropout(0.5, seed=3),
        layers.Dense(3, "softmax", **kernels[1]),
    ])  # fmt: skip
    model.compile(optimizer_for(recipe, 0.01), "categorical_crossentropy", run_eagerly=True)
    set_average(model.optimizer, recipe, 40)
    model.optimizer.build(model.trainable_variables)
    return model


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(each)) for each in (*model.variables, *model.optimizer.variables)]


AVERAGED = ["train.optimizer=adamw", "train.weight_decay=0.05", "train.weight_average=0.1"]


@pytest.mark.parametrize("changes", [AVERAGED, ["train.optimizer=sgd"]], ids=["averaged", "sgd"])
def test_timed_steps_leave_no_trace(changes: list[str]):
    """Weights, statistics, slots, the average, the number of steps and what dropout draws are back, bit for bit.

    So the steps that follow are those of a network that was never timed.
    """
    model, other = learning(changes), learning(changes)
    before = values(model)
    with unchanged(model):
        learn(model, range(50, 53))
        assert int(model.optimizer.iterations) == 3
        moved = [not np.array_equal(old, now) for old, now in zip(before, values(model), strict=True)]
    paths = [variable.path for variable in (*model.variables, *model.optimizer.variables)]
    moved_paths = [path for path, has_moved in zip(paths, moved, strict=True) if has_moved]
    wanted = ["kernel", "bias", "moving_variance", "seed_generator_state", "iteration", "momentum"]
    for name in [*wanted, "average"] if changes is AVERAGED else wanted:
        assert any(name in path for path in moved_paths), name
    for path, old, now in zip(paths, before, values(model), strict=True):
        np.testing.assert_array_equal(now, old, err_msg=path)
    assert learn(model, range(4)) == learn(other, range(4))
    for path, ours, theirs in zip(paths, values(model), values(other), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)


def test_steps_that_fail_are_taken_back_too():
    model = tiny()
    before = values(model)
    with pytest.raises(ZeroDivisionError), unchanged(model):  # noqa: PT012  # the first line must not raise
        model.set_weights([weight + 1 for weight in model.get_weights()])
        _ = 1 / 0
    for old, now in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(now, old)


def test_a_seed_decides_on_a_network_and_its_optimiser_is_there_before_the_first_step():
    model, same, other = tiny(), tiny(), tiny("train.seed=1")
    for ours, theirs in zip(values(model), values(same), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kernels = [place for place, weight in enumerate(model.get_weights()) if weight.ndim > 1]
    assert not any(np.array_equal(model.get_weights()[place], other.get_weights()[place]) for place in kernels)
    slots = [tuple(variable.shape) for variable in model.optimizer.variables if tuple(variable.shape)]
    learning = [tuple(variable.shape) for variable in model.trainable_variables]
    assert sorted(slots) == sorted(2 * learning), "Adam's two moments"


@pytest.mark.integration
def test_the_optimiser_keeps_nothing_for_layers_that_do_not_learn():
    """Moments of a whole backbone would double its memory; its weights are loaded later, so any file's name will do."""
    changes = ["model.name=mobilenet_v3_small", "model.weights=some.weights.h5", "model.unfreeze=0.1"]
    model, _ = compiled(load_recipe("transfer", changes), 2, "float32")
    learning = [tuple(variable.shape) for variable in model.trainable_variables]
    assert 2 < len(learning) < len(model.weights) / 5
    slots = [tuple(variable.shape) for variable in model.optimizer.variables if tuple(variable.shape)]
    assert sorted(slots) == sorted(2 * learning)


def test_the_rate_that_is_returned_is_the_optimisers():
    recipe = load_recipe(changes=TINY)
    model, rate = compiled(recipe, 3, "float32")
    for low, high in ((0.0, 0.2), (0.6, 1.0)):
        rate.enter(Segment(16, 1, (low, high)), 0, 10)
        middle = low + (high - low) * 0.05  # of the first of ten steps
        assert float(model.optimizer.learning_rate) == pytest.approx(rate_at(middle, recipe.train), rel=1e-5)


def stepped(recipe_changes: list[str], gradient: float, steps: int) -> dict[str, float]:
    """Return four variables that were 1, after steps with this gradient at a rate of 0.1."""
    optimizer = optimizer_for(load_recipe(changes=recipe_changes), 0.1)
    variables = [keras.Variable([1.0], name=name) for name in ("kernel", "bias", "gamma", "beta")]
    optimizer.build(variables)
    for _ in range(steps):
        optimizer.apply([keras.ops.full((1,), gradient)] * 4, variables)
    return {variable.name: np.asarray(variable).item() for variable in variables}


def test_weight_decay_draws_kernels_alone_towards_zero():
    """Without a gradient a step of AdamW takes the rate times the decay of a kernel: 0.1 · 0.5, twice."""
    found = stepped(["train.optimizer=adamw", "train.weight_decay=0.5"], 0.0, 2)
    assert found == pytest.approx({"kernel": 0.95**2, "bias": 1, "gamma": 1, "beta": 1}, abs=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "moved"),
    [
        ("adam", 0.2),  # two steps of the rate, whatever the size of a gradient that stays
        ("adamw", 0.2),
        ("sgd", 0.1 * 2 * (1.9 + 2.71)),  # Nesterov: g + 0.9 · g, then g + 0.9 · (g + 0.9 · g)
    ],
)
def test_each_optimiser_moves_as_computed_by_hand(optimizer: str, moved: float):
    found = stepped([f"train.optimizer={optimizer}"], 2.0, 2)
    assert found == pytest.approx(dict.fromkeys(found, 1 - moved), abs=1e-5)


@pytest.mark.parametrize(
    ("share", "steps", "momentum"),
    [(0.1, 200, 0.95), (0.1, 1000, 0.99), (0.5, 10, 0.8), (0.1, 5, 0.5), (0.9, 1, 0.5)],
)
def test_the_average_is_as_long_as_its_share_of_the_steps_and_two_at_least(share: float, steps: int, momentum: float):
    recipe = load_recipe(changes=[*TINY, f"train.weight_average={share}"])
    optimizer = optimizer_for(recipe, 0.1)
    set_average(optimizer, recipe, steps)
    assert optimizer.use_ema
    assert optimizer.ema_momentum == pytest.approx(momentum)
    plain = optimizer_for(load_recipe(changes=TINY), 0.1)
    assert not plain.use_ema


def test_the_plain_network_answers_as_the_trained_one_does(tmp_path: Path):
    recipe = load_recipe(changes=TINY)
    model, _ = compiled(recipe, 3, "float32")
    model.set_weights(drawn(model, 0))
    save_weights(tmp_path / "best.npz", model.get_weights(), {})
    pictures = noise(5, 16)
    expected = np.asarray(model(pictures, training=False))
    assert np.ptp(expected, axis=0).max() > 1e-4, "pictures count"
    for given in (tmp_path / "best.npz", model.get_weights()):
        np.testing.assert_allclose(plain_network(recipe, 3, given)(pictures, training=False), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("num_classes", "changes"), [(4, []), (3, ["model.width=0.5"]), (3, ["model.batchnorm=false"])]
)
def test_weights_of_another_network_are_refused_by_the_name_of_their_file(
    tmp_path: Path, num_classes: int, changes: list[str]
):
    given = tiny().get_weights()
    save_weights(tmp_path / "best.npz", given, {})
    recipe = load_recipe(changes=[*TINY, *changes])
    with pytest.raises(RunError, match=r"best\.npz belongs to another network than the run's recipe"):
        plain_network(recipe, num_classes, tmp_path / "best.npz")
    with pytest.raises(RunError, match="What was given belongs to another network"):
        plain_network(recipe, num_classes, given)


def test_a_network_is_written_whole_or_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk fails when the bytes are to be on it: the name must not stand for them yet."""
    recipe, path = load_recipe(changes=TINY), tmp_path / "model.keras"
    first, second = (plain_network(recipe, 3, tiny(f"train.seed={seed}").get_weights()) for seed in (1, 2))
    save_network(first, path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.keras"]

    def fail(_: int) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="the disk is full"):
            save_network(second, path)
    for model in (first, second):
        opened = keras.saving.load_model(path)
        for ours, theirs in zip(opened.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        save_network(second, path)
