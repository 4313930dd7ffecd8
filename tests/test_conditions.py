"""Settings that can do nothing: each is refused, by a message that says what it needs and what to do."""

from __future__ import annotations

import pytest

from tellapart.conditions import CONDITIONS, unused
from tellapart.errors import RecipeError
from tellapart.sections import Augment, Backbone, ConvNet, Distill, Train
from tellapart.settings import Recipe, acts, load_recipe, recipe_from, saved_values, with_settings

MOBILENET = "model.name=mobilenet_v2"
HEAD_ALONE = [MOBILENET, "model.weights=imagenet"]

NEEDS = {
    "train.weight_decay=0.05": (
        [], 'acts with train.optimizer = "adamw" only; here train.optimizer is "adam". Leave it out, or choose adamw'),
    "train.weight_decay=0": (["train.optimizer=sgd"], 'here train.optimizer is "sgd"'),
    "augment.randaugment_magnitude=0.5": (
        [], "acts with augment.randaugment_ops above 0 only; here augment.randaugment_ops is 0"),
    "augment.mix_probability=0.5": ([], "here augment.mixup is 0.0 and augment.cutmix is 0.0"),
    "distill.weight=0.5": ([], "acts with a distill.teacher only"),
    "distill.temperature=4.0": ([], "acts with a distill.teacher only"),
    "model.weights=imagenet": ([], "no pretrained weights of convnet; here"),
    "model.unfreeze=0.3": ([MOBILENET], "acts with pretrained model.weights only: without them the whole network"),
    "model.width=2": ([MOBILENET], 'acts on the convnet only; here model.name is "mobilenet_v2"'),
    "model.batchnorm=true": ([MOBILENET], "acts on the convnet only"),
    "model.batchnorm_momentum=0.9": (["model.batchnorm=false"], "here model.batchnorm is false"),
    "train.recalibrate_photos=64": (["model.batchnorm=false"], "acts on BatchNormalization only"),
    "train.epochs=3": (HEAD_ALONE, "acts on a network that is trained: with model.weights and model.unfreeze = 0 only"),
    "augment.flip=false": (HEAD_ALONE, "or set model.unfreeze, as in 0.35"),
    "model.dropout=0.1": (HEAD_ALONE, "model.unfreeze is 0.0"),
}  # fmt: skip


@pytest.mark.parametrize("change", NEEDS)
def test_a_setting_that_cannot_act_is_refused_with_what_it_needs(change: str):
    beside, said = NEEDS[change]
    with pytest.raises(RecipeError) as caught:
        load_recipe(changes=[*beside, change])
    line = str(caught.value)
    assert line.startswith(change.partition("=")[0])
    assert said in line


def test_statistics_of_clean_photos_leave_the_running_ones_no_part():
    with pytest.raises(RecipeError, match=r"batchnorm_momentum acts with train\.recalibrate_photos = 0 only"):
        load_recipe("fast", ["model.batchnorm_momentum=0.9"])
    for name, weights in (("mobilenet_v2", "imagenet"), ("convnext_tiny", "")):
        changes = [f"model.name={name}", f"model.weights={weights}", "model.unfreeze=0.3"][: 3 if weights else 1]
        with pytest.raises(RecipeError, match="that of pretrained networks is frozen, convnext_tiny has none"):
            load_recipe(changes=[*changes, "train.recalibrate_photos=64"])
    assert load_recipe(changes=[MOBILENET, "train.recalibrate_photos=64"]).train.recalibrate_photos == 64


def test_several_are_told_at_once_and_in_code_too():
    with pytest.raises(RecipeError) as caught:
        recipe_from({"train": {"weight_decay": 0.1}, "distill": {"weight": 0.5, "temperature": 1.0}})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        "train.weight_decay", "distill.weight", "distill.temperature",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="choose adamw"):
        Recipe(train=Train(optimizer="sgd", weight_decay=0.1))
    assert Recipe(train=Train(optimizer="adamw", weight_decay=0.1)).train.weight_decay == 0.1


def test_what_a_change_switches_off_goes_with_it():
    """A recipe's own settings only, and not those that decide what the run is."""
    plain = load_recipe("fast", ["train.optimizer=sgd"])
    assert (plain.train.weight_decay, "weight_decay" in saved_values(plain)["train"]) == (0.0, False)
    backbone = load_recipe("reference", [MOBILENET])
    assert "batchnorm_momentum" not in saved_values(backbone)["model"]
    head = load_recipe("transfer", ["model.unfreeze=0"])
    assert set(saved_values(head)["train"]) == {"precision", "balance", "deterministic", "seed", "label_smoothing"}
    assert saved_values(head)["augment"] == {}
    assert with_settings(with_settings(plain, {"train.optimizer": "adamw"}), {"train.weight_decay": 0.1}) == (
        load_recipe("fast", ["train.weight_decay=0.1"])
    )
    with pytest.raises(RecipeError, match="no pretrained weights of convnet"):
        load_recipe("transfer", ["model.name=convnet"])


def test_a_setting_of_a_file_that_could_not_act_before_either_is_refused(tmp_path):
    file = tmp_path / "student.toml"
    file.write_text("[distill]\ntemperature = 3.0\n", "utf-8")
    with pytest.raises(RecipeError, match="temperature acts with a distill"):
        load_recipe(file, ["train.epochs=3"])
    assert load_recipe(file, ["distill.teacher=runs/a"]).distill.temperature == 3


def test_a_head_alone_has_no_use_for_anything_of_training():
    """A setting that is added to these sections must be one or the other."""
    of_training = set(CONDITIONS[-1].settings)
    sections = {"augment": Augment, "train": Train, "model": Backbone}
    known = {f"{section}.{key}" for section, each in sections.items() for key in each.model_fields}
    assert known - of_training == {
        "model.name", "model.weights", "model.unfreeze", "model.l2", "model.channels", "train.label_smoothing",
        "train.precision", "train.balance", "train.deterministic", "train.seed",
    }  # fmt: skip
    assert of_training <= known


def test_conditions_name_settings_that_there_are():
    sections = {"augment": (Augment,), "train": (Train,), "model": (ConvNet, Backbone), "distill": (Distill,)}
    known = {f"{name}.{key}" for name, models in sections.items() for each in models for key in each.model_fields}
    for each in CONDITIONS:
        assert {*each.settings, *each.beside} <= known
    assert unused({"train.weight_decay"}, {"train.optimizer": "adamw"}.get) == {}


def test_whether_a_setting_would_act_is_known_without_giving_it():
    fast = load_recipe("fast")
    assert acts(fast, "train.weight_decay")
    assert not acts(fast, "train.weight_decay", {"train.optimizer": "sgd"})
    assert acts(Recipe(), "train.weight_decay", {"train.optimizer": "adamw"})
