"""Networks that begin with the weights of another run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tellapart.errors import RunError
from tellapart.files import write_json
from tellapart.run_folder import RunFolder
from tellapart.settings import load_recipe
from tellapart.training.checkpoint import save_weights
from tellapart.training.network import begin_with_weights_of, compiled


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
