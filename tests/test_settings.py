"""Recipes: what is refused and how, what is read, and that what is written is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.errors import RecipeError
from tellapart.settings import RECIPE_NAMES, Recipe, fitting_recipe, load_recipe, parse_duration, save_recipe

RECIPES = Path(__file__).parents[1] / "recipes"


def test_every_recipe_that_comes_with_tellapart_loads():
    assert sorted(path.stem for path in RECIPES.glob("*.toml")) == sorted(RECIPE_NAMES)
    for name in RECIPE_NAMES:
        assert load_recipe(name) == load_recipe(RECIPES / f"{name}.toml")


def test_the_reference_recipe_is_the_defaults():
    assert load_recipe("reference") == load_recipe() == Recipe()


def test_a_recipe_is_read_back_as_it_was_written(tmp_path):
    for recipe in (load_recipe("fast"), load_recipe("fast", ["data.split=[0.5, 0.25, 0.25]", "train.seed=7"])):
        save_recipe(recipe, tmp_path / "recipe.toml")
        assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_changes_apply_to_a_recipe_object_as_to_a_file():
    changed = load_recipe(load_recipe("fast"), ["train.epochs=3", "model.width=0.5"])
    assert (changed.train.epochs, changed.model.width, changed.train.source_px) == (3, 0.5, 96)
    with pytest.raises(RecipeError, match="Did you mean 'epochs'"):
        load_recipe(Recipe(), ["train.epoch=3"])


@pytest.mark.parametrize(
    ("changes", "in_time", "name"),
    [
        ([], False, "reference"),
        ([], True, "fast"),
        (["model.name=mobilenet_v2", "model.weights=imagenet"], True, "transfer"),
        (["model.name=mobilenet_v2", "model.weights=imagenet"], False, "transfer"),
        (["model.name=mobilenet_v2"], True, "fast"),
        (["model.weights="], True, "fast"),
    ],
)
def test_a_pretrained_network_gets_its_recipe(changes: list[str], in_time: bool, name: str):
    assert fitting_recipe(changes, in_time=in_time) == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epoch=3", r"Unknown setting 'train\.epoch'\. Did you mean 'epochs'\? Known here: .*patience"),
        ("trian.epochs=3", r"Unknown setting 'trian'\. Did you mean 'train'\?"),
        ("train.contrast=0.1", r"Unknown setting 'train\.contrast'\. Did you mean 'augment\.contrast'\?"),
        ("train.stages=[{image_px=64, shre=1}]", r"Unknown setting 'train\.stages\.0\.shre'\. Did you mean 'share'"),
        ("train.epochs=many", r"Setting 'train\.epochs' is 'many': .*valid integer"),
        ("train.epochs=0", r"Setting 'train\.epochs' is 0: .*greater than or equal to 1"),
        ("train.learning_rate=nan", r"Setting 'train\.learning_rate' is nan: .*finite"),
        ("train.optimizer=adan", r"'train\.optimizer' is 'adan': .*'adam', 'adamw' or 'sgd'"),
        ("data.split=[0.7, 0.2, 0.2]", r"must add up to 1"),
        ("data.split=[0.0, 0.5, 0.5]", r"with a train share above 0"),
        ("epochs=3", r"'epochs=3' is not a setting\. Write it as section\.key=value"),
        ("train.epochs", r"is not a setting"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_explained(change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(changes=[change])


def test_changes_are_toml_values_or_bare_words_and_later_ones_win():
    recipe = load_recipe(
        "fast",
        ["train.optimizer=sgd", "augment.flip=false", "train.learning_rate = 2e-3", "train.epochs=5",
         "train.epochs=6", "train.stages=[{image_px=32, share=1}, {image_px=64, share=3}]"],
    )  # fmt: skip
    assert (recipe.train.optimizer, recipe.augment.flip, recipe.train.learning_rate) == ("sgd", False, 2e-3)
    assert recipe.train.epochs == 6
    assert [(stage.image_px, stage.share) for stage in recipe.train.stages] == [(32, 1), (64, 3)]
    assert recipe.model == load_recipe("fast").model


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"'fats' is neither a file nor one of .*Did you mean 'fast'"):
        load_recipe("fats")
    (tmp_path / "a.toml").write_text("[train\n", "utf-8")
    with pytest.raises(RecipeError, match=r"a\.toml is not valid TOML"):
        load_recipe(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("train = 3\n", "utf-8")
    with pytest.raises(RecipeError, match=r"Setting 'train' is 3"):
        load_recipe(tmp_path / "b.toml")
    with pytest.raises(RecipeError, match=r"'train' is not a section"):
        load_recipe(tmp_path / "b.toml", ["train.epochs=3"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("600", 600), ("1.5h", 5400), ("1m30", 90), (" 2h1s ", 7201)],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5m", "ten", "5 m", "30m1h", "1d"])
def test_other_texts_are_no_durations(text):
    with pytest.raises(RecipeError, match=r"is not a time above 0\. Write it as 90s, 10m or 1h30m"):
        parse_duration(text)
