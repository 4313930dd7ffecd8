"""What may be searched, and every way of asking for it wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.errors import InputError, RecipeError
from tellapart.experiments.tuning.search_space import Choice, Range, can_act, deciders, recipe_with, values_of
from tellapart.experiments.tuning.space_reader import DEFAULT_SPACE, default_space, search_space
from tellapart.settings import Recipe, load_recipe

FAST = load_recipe("fast")


def test_ranges_and_choices_are_read_as_they_are_written():
    wanted = [
        "train.learning_rate=1e-4..1e-2 log", "train.batch_size=16,32, 64", "train.warmup_epochs=0..3",
        "train.patience=2..9", "train.optimizer=adam,sgd", "model.batchnorm=true,false", "model.dropout=0.3..0.3",
    ]  # fmt: skip
    assert search_space(wanted, Recipe()) == {
        "model.batchnorm": Choice((True, False)),
        "model.dropout": Choice((0.3,)),
        "train.batch_size": Choice((16, 32, 64)),
        "train.learning_rate": Range(1e-4, 1e-2, log=True),
        "train.optimizer": Choice(("adam", "sgd")),
        "train.patience": Range(2, 9, whole=True),
        "train.warmup_epochs": Range(0, 3),
    }


def test_only_what_is_named_is_searched_and_default_stands_for_the_default(tmp_path: Path):
    assert list(search_space(["model.dropout=0..0.5"], FAST)) == ["model.dropout"]
    (tmp_path / "space.toml").write_text('"model.dropout" = "0..0.1"\n[train]\nbatch_size = [8, 16]\n')
    both = search_space(["default", str(tmp_path / "space.toml")], FAST)
    assert set(both) == set(default_space(FAST))
    assert (both["model.dropout"], both["train.batch_size"]) == (Range(0, 0.1), Choice((8, 16)))


def test_the_default_space_leaves_out_what_a_recipe_cannot_use():
    assert set(DEFAULT_SPACE) - set(default_space(FAST)) == {"model.l2"}, "adamw decays its weights"
    assert set(DEFAULT_SPACE) - set(default_space(Recipe())) == {"train.weight_decay"}
    assert "model.width" not in search_space([], load_recipe("transfer"))
    plain = load_recipe("fast", ["augment.rotation=0", "augment.zoom=0", "augment.translation=0", "augment.contrast=0",
                                 "augment.brightness=0"])  # fmt: skip
    assert "augment.strength" not in default_space(plain)


def test_a_setting_that_acts_beside_some_values_only_is_searched_there():
    space = search_space(["train.weight_decay=1e-3..1e-1 log", "train.optimizer=adam,adamw"], Recipe())
    assert list(space) == ["train.optimizer", "train.weight_decay"], "what decides comes first"
    assert deciders("train.weight_decay", space) == ["train.optimizer"]
    whole = search_space([], FAST)
    assert list(whole) == sorted(whole)
    assert not any(deciders(name, whole) for name in whole)
    assert [can_act(Recipe(), "train.weight_decay", {"train.optimizer": each}) for each in ("adam", "adamw")] == [
        False, True,
    ]  # fmt: skip
    assert values_of(Recipe(), space) == {"train.optimizer": "adam"}
    assert values_of(FAST, space) == {"train.optimizer": "adamw", "train.weight_decay": 0.05}
    assert recipe_with(FAST, {"train.optimizer": "adam"}).train.weight_decay == 0
    with pytest.raises(RecipeError, match=r"train\.weight_decay acts with train\.optimizer = .adamw. only"):
        search_space(["train.weight_decay=1e-3..1e-1 log", "train.optimizer=adam,sgd"], Recipe())

    deep = search_space(
        ["model.batchnorm_momentum=0.9..0.99", "model.batchnorm=true,false", "model.name=mobilenet_v2,convnet",
         "train.recalibrate_photos=0,64", "augment.mix_probability=0.2..1", "augment.mixing=none,mixup"],
        Recipe(),
    )  # fmt: skip
    order = list(deep)
    for first, then in (("model.name", "model.batchnorm"), ("model.batchnorm", "train.recalibrate_photos"),
                        ("train.recalibrate_photos", "model.batchnorm_momentum"),
                        ("augment.mixing", "augment.mix_probability")):  # fmt: skip
        assert order.index(first) < order.index(then)


def test_strength_and_mixing_stand_for_several_settings():
    recipe = recipe_with(FAST, {"augment.strength": 0.5, "augment.mixing": "cutmix", "train.batch_size": 64})
    changed = recipe.augment
    assert (changed.rotation, changed.zoom, changed.translation) == (0.02, 0.1, 0.03)
    assert (changed.contrast, changed.brightness) == (0.1, 0.05)
    assert (changed.mixup, changed.cutmix, recipe.train.batch_size) == (0, 1, 64)
    assert recipe_with(Recipe(), {"augment.strength": 100}).augment.rotation == 0.5, "as far as the setting goes"
    at_home = values_of(FAST, search_space([], FAST))
    assert at_home is not None
    assert recipe_with(FAST, at_home) == FAST
    assert values_of(FAST, search_space(["train.learning_rate=1e-5..1e-4"], FAST)) is None


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("model.dropout=0.5..0.1", "'0.5..0.1', is empty: 0.5 is above 0.1"),
        ("train.batch_size=", "are empty somewhere"),
        ("train.batch_size=16,,64", "are empty somewhere"),
        ("train.learning_rate=0..1e-2 log", "logarithmic and begins at 0"),
        ("train.learning_rate=small..large", "not of numbers"),
        ("train.learning_rate=nan..1", "not finite"),
        ("train.batch_size=1.5..8", "not a whole number"),
        ("train.learnin_rate=1e-4..1e-2", "unknown setting, 'train.learnin_rate'. Did you mean 'train.learning_rate'"),
        ("model.batch_size=16,32", "Did you mean 'train.batch_size'"),
        ("model.dropout=0.2..1.5", r"holds 1.5, which a recipe refuses. Setting 'model.dropout' is 1.5"),
        ("train.optimizer=adam,adamm", "holds 'adamm', which a recipe refuses"),
        ("augment.mixing=none,cutmx", "'cutmx'. Did you mean 'cutmix'"),
        ("augment.strength=-1..1", "begins below 0"),
        ("train.seed=1..9", "a seed is luck"),
        ("train.epochs=3,5", "--set train.epochs=N"),
        ("no-such-file.toml", "neither a range, nor 'default', nor a file"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(wanted: str, said: str):
    with pytest.raises(RecipeError) as caught:
        search_space([wanted], FAST)
    assert said in str(caught.value)


def test_a_space_of_single_values_is_nothing_to_search():
    with pytest.raises(InputError, match=r"Nothing is left to search: model\.dropout"):
        search_space(["model.dropout=0.3"], FAST)
