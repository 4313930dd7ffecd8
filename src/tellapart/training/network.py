"""A recipe's network with its optimiser, loss and rate. Knows nothing about photos or plans."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tellapart.errors import RunError
from tellapart.models.backbones import freeze
from tellapart.models.build import build, build_for_training
from tellapart.randomness import derived_seed
from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe
from tellapart.training.checkpoint import Arrays, load_weights
from tellapart.training.distillation import accuracy_of, loss_of
from tellapart.training.environment import accelerators
from tellapart.training.schedule import PlannedRate


def optimizer_for(recipe: Recipe, rate: Any) -> keras.optimizers.Optimizer:
    """Return the recipe's Keras optimiser with `rate` as its learning rate."""
    settings = recipe.train
    # The momentum comes later, from `set_average`: it follows from the number of steps.
    average = {"use_ema": True} if settings.weight_average else {}
    if settings.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay, **average)
        # Before the optimiser is built: Keras refuses it afterwards. These are parts of variables' names: a scale or an
        # offset that is called otherwise would decay.
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return optimizer
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **average)
    return keras.optimizers.Adam(rate, **average)


def set_average(optimizer: keras.optimizers.Optimizer, recipe: Recipe, steps: int) -> None:
    """Let the running average of the weights be as long as the recipe wants it in about `steps` steps in all.

    Before the first step is compiled: TensorFlow keeps what it finds then.
    """
    # A share of the steps, not a fixed decay: 0.998 looks back 500 steps, which is most of a run of 1,000 and held its
    # accuracy down (docs/decisions.md).
    if recipe.train.weight_average:
        optimizer.ema_momentum = 1 - 1 / max(2.0, recipe.train.weight_average * steps)


def compiled(recipe: Recipe, num_classes: int, precision: str, steps: int = 1000) -> tuple[keras.Model, PlannedRate]:
    """Build the recipe's network with its optimiser, ready for its first step.

    Args:
        recipe: what to build.
        num_classes: length of the output.
        precision: "float32" or "mixed_bfloat16".
        steps: about how many there will be, for the length of the weight average.

    Returns:
        The compiled model, and the learning rate for `PlannedRate.enter`.
    """
    seed = derived_seed(recipe.train.seed, "network")
    model = build_for_training(recipe.model, num_classes, precision=precision, seed=seed)
    # Before the optimiser is built below, which makes moments for trainable variables only.
    if recipe.model.weights:
        freeze(model, recipe.model.unfreeze)
    rate = PlannedRate(recipe.train)
    model.compile(
        optimizer=optimizer_for(recipe, rate),
        loss=loss_of(recipe, num_classes),
        metrics=[accuracy_of(recipe, num_classes)],
        # On the processor XLA's convolutions are slower than TensorFlow's own: see models/fused.py.
        jit_compile="auto" if accelerators() or keras.backend.backend() != "tensorflow" else False,
    )
    set_average(model.optimizer, recipe, steps)
    # An optimiser or a metric that makes its variables in the first step lets TensorFlow trace that step twice.
    model.optimizer.build(model.trainable_variables)
    _build_metrics(model, num_classes)
    return model, rate


def _build_metrics(model: keras.Model, num_classes: int) -> None:
    """Build loss and metrics, before the first `fit`.

    Keras' trainer for JAX would take a batch to do it, and does not give it back where threads make batches: the first
    `fit` of a process would begin with the second batch, and a resumed run would not be the uninterrupted one. On
    TensorFlow their variables, made in the first step, would let it be traced twice.
    """
    targets = np.full((1, num_classes), 1 / num_classes, np.float32)
    model.compute_loss(None, targets, targets)
    model.compute_metrics(None, targets, targets)
    model.reset_metrics()


def begin_with_weights_of(run: RunFolder, model: keras.Model, classes: list[str]) -> None:
    """Give a network the kept weights of an earlier run, before its first step.

    The head is taken class by class, by name: a class that the run does not know keeps its first weights, and one that
    is gone is left out. All other weights are taken as they are.

    Args:
        run: finished, with its weights.
        model: the same network, for `classes`.
        classes: in the order of its outputs.

    Raises:
        RunError: the run has no weights any more, or another network.
    """
    values, known = load_weights(run.best_weights)[0], run.record().classes
    # By identity: every layer has a variable called "kernel".
    in_head = {id(variable) for variable in model.get_layer("probabilities").weights}
    # All weights are compared before any is assigned. Only the head may differ, in the number of its classes.
    expected = [
        (*variable.shape[:-1], len(known)) if id(variable) in in_head else tuple(variable.shape)
        for variable in model.weights
    ]
    if [value.shape for value in values] != expected:
        raise RunError(
            f"{run.path} has another network than the recipe asks for. Expected the same model settings: take them "
            f"from {run.recipe_path}."
        )
    ours = [number for number, name in enumerate(classes) if name in known]
    theirs = [known.index(classes[number]) for number in ours]
    for variable, value in zip(model.weights, values, strict=True):
        if id(variable) in in_head:
            first = np.array(keras.ops.convert_to_numpy(variable))  # a copy
            first[..., ours] = value[..., theirs]
            value = first  # noqa: PLW2901
        variable.assign(value)


def plain_network(recipe: Recipe, num_classes: int, weights: Path | Arrays) -> keras.Model:
    """Build the recipe's network in plain Keras layers, with weights from a file of `save_weights`, or as they are.

    Raises:
        RunError: they are another network's.
    """
    values = load_weights(weights)[0] if isinstance(weights, Path) else weights
    model = build(recipe.model, num_classes, recipe.data.image_px)
    if [value.shape for value in values] != [tuple(variable.shape) for variable in model.weights]:
        name = str(weights) if isinstance(weights, Path) else "What was given"
        raise RunError(f"{name} belongs to another network than the run's recipe.")
    model.set_weights(values)
    return model


def save_network(model: keras.Model, path: Path) -> None:
    """Write a network in Keras' own format, atomically: a killed process leaves the old file or the new one."""
    part = path.with_name(f".{path.name}")  # Keras wants a name that ends with .keras
    model.save(part)
    # The bytes before the name: after a power cut the new name could otherwise stand for an empty file.
    with open(part, "rb") as stream:
        os.fsync(stream.fileno())
    part.replace(path)


@contextmanager
def unchanged(model: keras.Model) -> Iterator[None]:
    """Give a network and its optimiser back the values that they had, after steps that were only to be timed.

    The step that was compiled meanwhile stays: for MobileNetV2 compiling takes some six seconds (docs/experiments.md).
    """
    # With the random states: a run that is replayed times nothing, and must drop out the same units.
    variables = [*model.variables, *model.optimizer.variables]
    values = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def forget_compiled_step(model: keras.Model) -> None:
    """Let the next training step be compiled anew, for the pictures and the schedule that it will meet.

    TensorFlow generalises a step that meets a second size of pictures to sides of any length, and the fused blocks
    need known ones; JAX keeps the schedule's old speed in the compiled step.
    """
    model.train_function = None


def forget_networks() -> None:
    """Give back the memory of all networks that nobody holds: Keras keeps every one of a process otherwise."""
    # Layers and their tensors form reference cycles: only the collector frees them.
    keras.backend.clear_session()
    gc.collect()
