"""Every recipe that comes with tellapart trains, in small: fewer epochs and smaller pictures, all else as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

import tellapart
from tellapart.settings import RECIPE_NAMES, load_recipe, with_settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tellapart.draw(tmp_path_factory.mktemp("drawn") / "photos", num_images=240)


TIERS = {"fast": pytest.mark.slow, "demo": pytest.mark.slow, "transfer": pytest.mark.by_hand}
"""A run of `transfer` is gone through in training/test_transfer.py."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=TIERS.get(name, [])) for name in RECIPE_NAMES])
def test_a_recipe_trains_and_measures(name: str, photos: Path, tmp_path: Path):
    recipe = load_recipe(name)
    changes: dict[str, Any] = {"data.image_px": 32, "train.epochs": 2, "train.precision": "float32"}
    if recipe.train.source_px:
        changes["train.source_px"] = 48
    if recipe.train.stages:
        changes["train.stages"] = [{"image_px": px, "share": 1} for px in (24, 32)]
    if recipe.model.weights:  # "imagenet" would be downloaded
        network = keras.applications.MobileNetV2((32, 32, 3), include_top=False, weights=None)
        network.save_weights(tmp_path / "no_top.weights.h5")
        changes["model.weights"] = str(tmp_path / "no_top.weights.h5")
    small = with_settings(recipe, changes)
    run = tellapart.train(photos, recipe=small, out=tmp_path / "run", cache=tmp_path / "cache")

    assert set(run.metrics) >= {"train", "validation", "test", "best_epoch"}
    assert load_recipe(run.path / "recipe.toml") == small
    epochs = [int(line.split(",")[0]) for line in (run.path / "history.csv").read_text().splitlines()[1:]]
    assert epochs == ([0, 1, 2] if recipe.model.weights else [1, 2])
    model = keras.saving.load_model(run.path / "model.keras", compile=False)
    assert model.output_shape == (None, 10)
