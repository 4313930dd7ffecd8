"""Further networks from one training: weights kept on the way, and the last ones before averaging.

Knows nothing about what they are kept for.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe
from tellapart.training.checkpoint import load_checkpoint, load_weights
from tellapart.training.network import compiled, plain_network
from tellapart.training.state import TrainingState


def kept_networks(run: Path, recipe: Recipe, num_classes: int) -> dict[str, keras.Model]:
    """Return the further networks of a run in plain layers, by their name; its own ``model.keras`` is not among them.

    "snapshot-1", …: what ``train.snapshots`` kept. "last": the weights of the last step, as they were before averaging
    and new statistics, where they are not those of ``model.keras``.

    Raises:
        RunError: a checkpoint is damaged or of another network.
    """
    folder = RunFolder(run).checkpoints
    networks = {
        path.stem: plain_network(recipe, num_classes, path)
        # A number may be missing: where two were due at one validated epoch, the later one alone was kept.
        for path in (folder / f"snapshot-{number}.npz" for number in range(1, recipe.train.snapshots + 1))
        if path.is_file()
    }
    if (folder / "last.npz").is_file() and (folder / "best.npz").is_file():
        state = TrainingState.from_dict(load_weights(folder / "last.npz")[1])
        # Compiled, with an optimiser: the checkpoint holds its variables too, and loading compares all shapes.
        model, _ = compiled(recipe, num_classes, state.precision.name, state.planned_steps)
        load_checkpoint(folder / "last.npz", model)
        last, best = model.get_weights(), load_weights(folder / "best.npz")[0]
        # Without averaging and new statistics they may be the kept weights: then there is no second network.
        if not all(np.array_equal(ours, theirs) for ours, theirs in zip(last, best, strict=True)):
            networks["last"] = plain_network(recipe, num_classes, last)
    return networks
