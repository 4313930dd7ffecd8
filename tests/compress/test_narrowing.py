"""What a narrow network is trained on with, whatever the whole one was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.compress.narrowing import narrow_recipe
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.settings import Recipe, load_recipe, with_settings


def run_of(folder: Path, recipe: Recipe) -> RunFolder:
    run = RunFolder(folder)
    run.create(recipe, RunRequest(), {})
    return run


@pytest.mark.parametrize("epochs", [None, 5])
def test_a_network_from_scratch_learns_slower_and_shorter_also_when_it_is_narrowed_again(tmp_path: Path, epochs):
    whole = run_of(tmp_path / "whole", load_recipe("fast"))
    for number, channels in enumerate(({"conv3": 96}, {"conv3": 64, "hidden": 128})):
        start = run_of(tmp_path / f"start-{number}", with_settings(whole.recipe(), {"model.channels": channels}))
        recipe = narrow_recipe(start, whole, epochs)
        assert recipe.model.channels == channels
        assert recipe.train.learning_rate == pytest.approx(8e-3 / 4)
        assert recipe.train.epochs == (epochs or 13)
        assert recipe.train.stages == ()
        assert recipe.train.recalibrate_photos == 512
        assert recipe.distill.teacher == str((tmp_path / "whole").resolve())


@pytest.mark.parametrize("unfreeze", [0.35, 0.0])
def test_a_pretrained_network_learns_as_a_whole_at_the_rate_of_fine_tuning(tmp_path: Path, unfreeze: float):
    """A head alone has a recipe that says nothing of training."""
    settings = ["model.weights=imagenet", f"model.unfreeze={unfreeze}", "train.seed=7"]
    whole = run_of(tmp_path / "whole", load_recipe("transfer", settings))
    start = run_of(tmp_path / "start", with_settings(whole.recipe(), {"model.channels": {"Conv_1": 640}}))
    recipe = narrow_recipe(start, whole, None)
    assert recipe.model.weights == ""
    assert recipe.model.channels == {"Conv_1": 640}
    assert (recipe.train.optimizer, recipe.train.learning_rate, recipe.train.epochs) == ("adamw", 3e-4, 4)
    assert recipe.augment.rotation == 0.04
    assert recipe.train.recalibrate_photos == 512
    assert recipe.train.seed == 7
    assert recipe.data.image_px == 224
