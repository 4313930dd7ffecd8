"""Ablations: what is trained, how it is judged by hand-made outcomes, and a small real one that is interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tellapart
from tellapart.errors import InputError
from tellapart.evaluation.multi_seed import compare_over_seeds
from tellapart.experiments.ablation.plan import Variant, chosen, ingredients, ladder, setting_of
from tellapart.experiments.ablation.result import tables
from tellapart.experiments.ablation.summary import Outcome, summarise
from tellapart.settings import RECIPE_NAMES, load_recipe

PHOTOS = 500


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_variant_of_every_recipe_is_a_recipe_that_differs(name: str):
    base = load_recipe(name)
    steps = ladder(base) if base.model.name == "convnet" else []
    variants = [*steps, *ingredients(base, "float32")]
    recipes = [variant.recipe(base, base.train.seed) for variant in variants]
    assert base not in recipes
    assert len({recipe.model_dump_json() for recipe in recipes}) == len({variant.name for variant in variants})
    assert len({variant.name for variant in variants}) == len(variants)


def test_what_is_on_is_left_out_and_what_is_off_is_added():
    found = {each.name: each.changes for each in ingredients(load_recipe("reference"), "mixed_bfloat16")}
    assert found["no-rotation"] == {"augment.rotation": 0.0}
    assert set(found["no-augmentation"]) == {"augment.flip", "augment.rotation", "augment.zoom", "augment.contrast"}
    assert "no-brightness" not in found, "the reference recipe has none to leave out"
    assert found["constant-rate"] == {"train.final_learning_rate": 1e-3}
    assert (found["no-l2"], found["no-smoothing"]) == ({"model.l2": 0.0}, {"train.label_smoothing": 0.0})
    assert found["float32"] == {"train.precision": "float32"}
    assert {"batch-16", "batch-64", "dropout-off", "dropout-0.2"} <= set(found)
    assert not {"batch-32", "dropout-0.5", "no-weight-decay"} & set(found), "these are the recipe, or no part of it"
    assert {each.name for each in ingredients(load_recipe("fast"), "float32")} >= {"l2", "no-weight-decay", "one-size"}


def test_the_table_says_what_an_ingredient_is_in_the_recipe():
    base = load_recipe("fast")
    found = {each.name: setting_of(base, each) for each in ingredients(base, "float32")}
    assert found["no-augmentation"] == "flip, rotation 0.04, zoom 0.2, translation 0.06, brightness 0.1, contrast 0.2"
    assert (found["no-flip"], found["no-zoom"], found["with-mixup"]) == ("flip", "zoom 0.2", "off")
    assert (found["l2"], found["dropout-0.5"], found["constant-rate"]) == ("off", "0.2", "0.008 to 8e-05")


def test_what_an_ablation_sets_itself_cannot_be_given(tmp_path: Path):
    for change in ("train.seed=3", "train.validate_every = 2"):
        with pytest.raises(InputError, match=r"cannot act here: an ablation .*Leave it out"):
            tellapart.ablate(tmp_path, changes=[change], out=tmp_path / "out")


def test_running_statistics_take_the_place_of_those_of_clean_photos():
    base = load_recipe("fast")
    found = {each.name: each.recipe(base, 0) for each in (*ladder(base), *ingredients(base, "float32"))}
    for name in ("no-recalibration", "batchnorm", "dropout"):
        assert (found[name].train.recalibrate_photos, found[name].model.batchnorm_momentum) == (0, 0.9), name
    assert found["baseline"].train.recalibrate_photos == found["other-batchnorm"].train.recalibrate_photos == 0
    assert [each.recipe(load_recipe(), 0).model.batchnorm_momentum for each in ladder(load_recipe())] == [0.99] * 3


def test_the_ladder_climbs_from_a_plain_network():
    base = load_recipe("fast")
    steps = [step.recipe(base, 0) for step in ladder(base)]
    assert [(step.model.batchnorm, step.model.dropout) for step in steps] == [(False, 0.0), (True, 0.0), (True, 0.2)]
    assert {step.train.epochs for step in steps} == {base.train.epochs}
    assert {(step.augment.flip, step.train.label_smoothing, step.train.learning_rate) for step in steps} == {
        (False, 0.0, 1e-3)
    }


def test_only_chooses_by_name_and_by_ingredient():
    variants = ingredients(load_recipe("fast"), "float32")
    assert [each.name for each in chosen(variants, ["dropout rate", "no-flip"])] == [
        "no-flip",
        "dropout-off",
        "dropout-0.5",
    ]
    with pytest.raises(InputError, match=r"nothing called 'no-flop' to ablate\. Did you mean 'no-flip'\?"):
        chosen(variants, ["no-flop"])


def outcome(name: str, wrong: int, *, factor: str = "", seeds: int = 3, seconds: float = 10.0) -> Outcome:
    """Return runs that name the first `wrong` photos wrongly, each seed one more."""
    right = np.ones((seeds, PHOTOS), bool)
    for seed in range(seeds):
        right[seed, : wrong + seed] = False
    curves = tuple(np.array([0.5, 0.7, 0.8, 0.9]) if name != "constant-rate" else np.array([0.5, 0.6, 0.7, 0.7])
                   for _ in range(seeds))  # fmt: skip
    return Outcome(
        variant=Variant(name, factor, "off", {}), seeds=tuple(range(seeds)), right=right,
        train_accuracy=(1.0,) * seeds, curves=curves, seconds=(seconds,) * seeds,
        processor_seconds=(2 * seconds,) * seeds, parameters=1000, stopped=0,
    )  # fmt: skip


def test_rows_insights_and_tables_say_what_the_runs_say():
    base = outcome("recipe", 20)
    steps = [outcome("baseline", 120), outcome("batchnorm", 60), outcome("dropout", 59)]
    infinite = Outcome(
        Variant("rate-high", "learning rate", "0.3", {}), (), np.zeros((0, 0), bool), (), (), (), (), 0, 3
    )
    others = [
        (outcome("no-augmentation", 60, factor="augmentation"), "flip"),
        (outcome("constant-rate", 21, factor="cosine schedule"), "0.1 to 0"),
        (outcome("float32", 20, factor="precision", seconds=20.0), "mixed_bfloat16"),
        (outcome("no-smoothing", 20, factor="label smoothing"), "0.1"),
        (infinite, "0.1"),
    ]
    found = summarise("drawn", 3, steps, base, others)

    augmentation = found.hyperparameters[0]
    assert augmentation.gained == compare_over_seeds(base.right, others[0][0].right)
    assert augmentation.gained.value == pytest.approx(-40 / PHOTOS)
    assert augmentation.is_detectable
    assert not found.hyperparameters[3].is_detectable
    assert [row.gained and round(row.gained.value * PHOTOS) for row in found.architecture] == [None, 60, 1, 39]
    sentences = {each.about: each.sentence for each in found.insights}
    assert sentences["augmentation"].startswith("Augmentation gives +8.0 points (")
    assert sentences["augmentation"].endswith("better than test photos by 12.2 points without it, by 4.2 with it.")
    # The constant rate is at its best, 0.7, after three epochs; the cosine is there after two.
    assert "best validation accuracy 1.50 times as fast (1.50 to 1.50), in epochs" in sentences["cosine schedule"]
    assert sentences["mixed precision"].startswith("bfloat16 takes 0.50 of the seconds (0.50 to 0.50)")
    assert "label smoothing off" in sentences["the rest"]
    assert sentences["stability"] == "The loss became infinite: Learning rate 0.3 (recipe: 0.1)."
    text = tables(found)
    assert "| augmentation | flip | off | 0.878 (" in text
    assert "| learning rate | 0.1 | 0.3 | the loss became infinite |" in text
    json.dumps(found.to_dict(), allow_nan=False)
    steps = [each.sentence for each in found.insights if each.about == "architecture"]
    assert steps[0].startswith("BatchNorm gives +12.0 points (")
    only = summarise("drawn", 3, [outcome("baseline", 120)], base, [])
    assert only.insights[0].sentence.startswith("From “off” to “off” it is +20.0 points (")


@pytest.mark.slow
@pytest.mark.by_hand
def test_an_ablation_goes_on_where_it_stopped_and_grows(tmp_path: Path):
    photos = tellapart.draw(tmp_path / "photos", num_images=120)
    changes = [
        "data.image_px=24", "train.source_px=0", "train.stages=[]", "train.epochs=2", "train.recalibrate_photos=32",
        "train.precision=float32", "train.warmup_epochs=0",
    ]  # fmt: skip
    options = {
        "changes": changes,
        "only": ["baseline", "no-flip"],
        "out": tmp_path / "out",
        "cache": tmp_path / "cache",
    }
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if "baseline, seed 0" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tellapart.ablate(photos, seeds=1, announce=stop, **options)
    finished = (tmp_path / "out" / "runs").glob("*/metrics.json")
    before = {path: path.stat().st_mtime_ns for path in finished}
    found = tellapart.ablate(photos, seeds=2, announce=said.append, **options)
    runs = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert runs == [f"{name}-seed{seed}" for name in ("baseline", "no-flip", "recipe") for seed in (0, 1)]
    assert len(before) == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what was finished was not trained again"
    assert [row.name for row in found.architecture] == ["baseline", "recipe"]
    (row,) = found.hyperparameters
    assert (row.name, row.num_seeds) == ("no-flip", 2)

    # Each figure is the mean over the runs' own metrics.
    folders = [tmp_path / "out" / "runs" / f"no-flip-seed{seed}" for seed in (0, 1)]
    accuracies = [json.loads((folder / "metrics.json").read_text())["test"]["accuracy"] for folder in folders]
    assert row.accuracy is not None
    assert row.accuracy.value == pytest.approx(np.mean(accuracies))
    assert not (folders[0] / "checkpoints" / "last.npz").exists()
    page = (tmp_path / "out" / "ablation.html").read_text()
    assert "without flip" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (tmp_path / "out" / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "ablation.md").read_text() == tables(found)

    with pytest.raises(InputError, match="holds the ablation of another recipe"):
        tellapart.ablate(photos, seeds=1, **{**options, "changes": [*changes, "train.epochs=3"]})
