"""A run's network with fewer channels: which leave, the weights that stay, and the recipe to train it on.

Knows nothing about bundles or which of several sizes is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.compress.importance import importance, kept_channels, sizes_of
from tellapart.compress.reconstruction import reconstructed
from tellapart.data.cache import open_rows
from tellapart.errors import RunError
from tellapart.evaluation.measure import class_numbers
from tellapart.models.channels import channels_of
from tellapart.randomness import generator
from tellapart.records import Progress
from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe, load_recipe, saved_values, with_settings
from tellapart.training.checkpoint import save_weights
from tellapart.training.network import plain_network

_WEIGHED, _BATCH = 512, 32
"""Training photos that channels are weighed on, and how many at once."""
_SCRATCH_RATE, _SCRATCH_EPOCHS = 0.25, 0.35
"""Shares of the rate and of the epochs of a network from scratch that a narrower one is trained on with."""


def narrow_start(parent: RunFolder, share: float, folder: Path, cache: Path, progress: Progress) -> RunFolder:
    """Take channels out of a run's network, and write a folder that another run can begin from.

    Args:
        parent: finished, with its weights.
        share: of the parent's cost that is to be left, 0 to 1.
        folder: to make; what is left of an earlier try is replaced.
        cache: the folder for decoded pictures.
        progress: called often with (what, done, total).

    Returns:
        A run folder with a recipe, a record and weights, that was not trained.

    Raises:
        RunError: the parent's weights are gone.
        InputError: its network is not followed (`tellapart.models.channels`).
    """
    start = RunFolder(folder)
    if start.best_weights.is_file():
        return start
    if not parent.best_weights.is_file():
        raise RunError(f"{parent.path} has no weights to begin from. Expected a finished run with its checkpoints.")
    recipe, record = parent.recipe(), parent.record()
    # From the checkpoint, not from model.keras: a temperature in the head would be learned away, and fitted again.
    model = plain_network(recipe, len(record.classes), parent.best_weights)
    channels = channels_of(model, recipe.data.image_px)
    batches = -(-min(_WEIGHED, int((parent.readable()["split"] == "train").sum())) // _BATCH)
    scores = importance(model, channels, _labelled(parent, recipe, cache), num_batches=batches, progress=progress)
    keep = kept_channels(channels, scores, share)
    narrow = channels.narrowed(model, sizes_of(keep))
    pictures = (images for images, _ in _labelled(parent, recipe, cache))
    fitted = reconstructed(model, channels, keep, pictures, num_batches=batches, progress=progress)
    channels.copy_kept(model, narrow, keep, fitted)
    shutil.rmtree(folder, ignore_errors=True)
    sizes = recipe.model.channels | sizes_of(keep)
    start.create(with_settings(recipe, {"model.channels": sizes}), record.request, {}, parents=(record.run_id,))
    start.copy_photos_from(parent)  # who begins from here must not be tested on what the parent learned from
    # Last: where they are, the folder is whole.
    save_weights(start.best_weights, narrow.get_weights(), {})
    return start


def narrow_recipe(start: RunFolder, teacher: RunFolder, epochs: int | None) -> Recipe:
    """Return the recipe that a narrowed network is trained on with: lower rate, fewer epochs, the whole one as teacher.

    Args:
        start: as `narrow_start` makes it.
        teacher: the run that was to be compressed.
        epochs: times over the training photos; None: a third of those of a network from scratch, as many as the recipe
            has for fine-tuning; 0: it is kept as it is, and has no teacher.
    """
    # The teacher's recipe, also for a network that is narrowed again: its parent's rate was lowered already.
    recipe = teacher.recipe()
    changes: dict[str, Any] = {"model.channels": start.recipe().model.channels}
    if epochs == 0:
        changes["train.precision"] = "float32"  # or steps that nobody makes would be timed to choose one
    else:
        changes["distill.teacher"] = str(teacher.path.resolve())
    if recipe.model.weights:
        if not recipe.model.unfreeze:  # a head alone: its recipe says nothing of training
            fine_tuning = saved_values(load_recipe("transfer"))
            for section in ("augment", "train"):
                changes |= {f"{section}.{key}": value for key, value in fine_tuning[section].items()}
            changes["train.seed"] = recipe.train.seed
        # All layers learn, normalisations too: with fewer channels their statistics are others. Those of
        # keras.applications move by a thousandth a step, so that they are measured anew in the end.
        changes["model.weights"] = ""
        if recipe.model.name != "convnext_tiny":  # which has none
            changes["train.recalibrate_photos"] = _WEIGHED
        changes["train.epochs"] = changes.get("train.epochs", recipe.train.epochs) if epochs is None else epochs
    else:
        changes["train.learning_rate"] = recipe.train.learning_rate * _SCRATCH_RATE
        changes["train.epochs"] = max(1, round(recipe.train.epochs * _SCRATCH_EPOCHS)) if epochs is None else epochs
        changes["train.warmup_epochs"] = min(1.0, recipe.train.warmup_epochs)
        # Pictures that grow help a network that begins with nothing.
        changes["train.stages"] = ()
    return with_settings(recipe, changes)


def _labelled(run: RunFolder, recipe: Recipe, cache: Path) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Yield training photos with their class numbers, in batches of mixed classes."""
    frame = run.readable()
    learned = np.flatnonzero((frame["split"] == "train").to_numpy())
    chosen = generator(0, "weighing").permutation(learned)[:_WEIGHED]
    rows = frame.iloc[chosen].reset_index(drop=True)
    numbers = class_numbers(rows, run.record().classes)
    options = {"folder": cache, "max_pixels": recipe.data.max_pixels}
    with open_rows(run.root, rows, recipe.data.image_px, **options) as pictures:
        for start in range(0, len(rows), _BATCH):
            at = np.arange(start, min(start + _BATCH, len(rows)))
            yield pictures.batch(at), numbers[at]
