"""Recipes: what is refused and how, what is read, and that what is written is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.errors import RecipeError
from tellapart.settings import (
    RECIPE_NAMES,
    Backbone,
    ConvNet,
    Machine,
    Recipe,
    fitting_recipe,
    load_recipe,
    load_saved_recipe,
    machine_from,
    parse_duration,
    save_recipe,
    saved_values,
    upgraded,
)

RECIPES = Path(__file__).parents[1] / "recipes"


def test_every_recipe_that_comes_with_tellapart_loads():
    assert sorted(path.stem for path in RECIPES.glob("*.toml")) == sorted(RECIPE_NAMES)
    for name in RECIPE_NAMES:
        assert load_recipe(name) == load_recipe(RECIPES / f"{name}.toml")


def test_the_reference_recipe_is_the_defaults():
    assert load_recipe("reference") == load_recipe() == Recipe()


def test_a_recipe_is_read_back_as_it_was_written(tmp_path):
    changed = load_recipe("fast", ["data.split=[0.5, 0.25, 0.25]", "train.seed=7"])
    head = load_recipe("transfer", ["model.unfreeze=0"])
    for recipe in (*map(load_recipe, RECIPE_NAMES), changed, head):
        save_recipe(recipe, tmp_path / "recipe.toml")
        assert load_recipe(tmp_path / "recipe.toml") == recipe
        assert load_saved_recipe(tmp_path / "recipe.toml") == recipe
        assert upgraded(saved_values(recipe)) == saved_values(recipe)


OLD = """
[data]
image_px = 64
split = [0.7, 0.2, 0.1]
cache_limit_gb = 20.0

[augment]
randaugment_ops = 0
randaugment_magnitude = 0.3
mix_probability = 1.0

[model]
name = "{name}"
weights = "{weights}"
unfreeze = 0.0
width = 1.0
dropout = 0.2
l2 = 0.0
batchnorm = true
batchnorm_momentum = 0.9

[train]
epochs = 12
optimizer = "adam"
weight_decay = 0.05
recalibrate_photos = 512
workers = 4

[distill]
teacher = ""
weight = 0.7
temperature = 4.0
"""
"""As earlier versions saved a recipe: with all settings."""


def test_the_recipe_of_a_run_of_an_earlier_version_opens(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(OLD.format(name="convnet", weights=""), "utf-8")
    recipe = load_saved_recipe(file)
    assert recipe.model == ConvNet(dropout=0.2, l2=0.0)
    assert (recipe.data.image_px, recipe.train.epochs, recipe.train.recalibrate_photos) == (64, 12, 512)
    assert recipe.train.weight_decay == 0, "it was not decayed, whatever the file says"
    file.write_text(OLD.format(name="mobilenet_v2", weights=""), "utf-8")
    assert load_saved_recipe(file).model == Backbone(name="mobilenet_v2", dropout=0.2, l2=0.0)
    assert load_saved_recipe(file).train.recalibrate_photos == 512
    file.write_text(OLD.format(name="mobilenet_v2", weights="imagenet"), "utf-8")
    assert load_saved_recipe(file).train.epochs == Recipe().train.epochs, "only a head was fitted"


def test_a_recipe_of_ones_own_is_told_where_a_setting_went_and_a_runs_is_not(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(OLD.format(name="convnet", weights=""), "utf-8")
    with pytest.raises(
        RecipeError, match=r"train\.workers is about the machine.*--workers, machine=tellapart\.Machine"
    ):
        load_recipe(file)
    with pytest.raises(RecipeError, match=r"data\.cache_limit_gb is about .*variable TELLAPART_CACHE_LIMIT_GB"):
        load_recipe(changes=["data.cache_limit_gb=5"])
    (tmp_path / "environment.json").write_text("{}")
    assert load_recipe(file, ["train.epochs=3"]).train.epochs == 3


def test_the_machine_is_what_is_given_else_what_the_environment_says():
    environment = {"TELLAPART_WORKERS": "3", "TELLAPART_CACHE_LIMIT_GB": ""}
    assert machine_from(environment={}) == Machine(workers=0, cache_limit_gb=20)
    assert machine_from(environment=environment) == Machine(workers=3, cache_limit_gb=20)
    assert machine_from(workers=0, cache_limit_gb=0.5, environment=environment) == Machine(cache_limit_gb=0.5)
    with pytest.raises(RecipeError, match=r"workers \(--workers, TELLAPART_WORKERS\) is 'many': .*valid integer"):
        machine_from(environment={"TELLAPART_WORKERS": "many"})


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
        ("train.epochs=-1", r"Setting 'train\.epochs' is -1: .*greater than or equal to 0"),
        ("train.learning_rate=nan", r"Setting 'train\.learning_rate' is nan: .*finite"),
        ("train.optimizer=adan", r"'train\.optimizer' is 'adan': .*'adam', 'adamw' or 'sgd'"),
        ("model.name=mobilenet", r"'model\.name' is 'mobilenet'\. Did you mean 'mobilenet_v2'\? Expected one of"),
        ("model.name=3", r"'model\.name' is '3'\. Expected one of convnet"),
        ("model.widht=2", r"Unknown setting 'model\.widht'\. Did you mean 'width'\? Known here: .*unfreeze"),
        ("model.dropout=2", r"Setting 'model\.dropout' is 2: .*less than 1"),
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
