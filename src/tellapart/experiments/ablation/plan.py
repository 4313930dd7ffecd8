"""What an ablation trains: the recipe, the ladder that leads up to it, and each ingredient changed alone.

Knows nothing about how it is trained or judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.errors import InputError, nearest
from tellapart.settings import ConvNet, Recipe, with_settings

RECIPE = "recipe"
"""Name of the variant that is the recipe as it is."""
PLAIN_RATE = 1e-3
"""Learning rate of the ladder's first steps: Keras' default for Adam, which trains with BatchNorm and without."""
_MOMENTUM = 0.9
"""Of BatchNorm's running statistics, where a variant takes the place of those of clean photos: a short run has too few
steps for 0.99."""
# A part that is missing here stays on in the ladder and in "no-augmentation".
_AUGMENT = {
    "flip": False, "rotation": 0.0, "zoom": 0.0, "translation": 0.0, "brightness": 0.0, "contrast": 0.0,
    "randaugment_ops": 0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0,
}  # fmt: skip
"""Each part of the augmentation, and its value when it is left out."""
_USUAL_MIXING = {"mixup": 0.2, "cutmix": 1.0, "randaugment_ops": 2, "erase": 0.25}
"""What their papers use, for recipes without them."""


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        name: short and good for a file name.
        factor: the ingredient that it is about, "dropout rate"; "" for the recipe and the ladder.
        value: what the ingredient is here, "0.5" or "off".
        changes: settings that differ from the recipe, by "section.key".
    """

    name: str
    factor: str
    value: str
    changes: dict[str, Any]

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        """Return the recipe of one run."""
        return with_settings(base, {**self.changes, "train.seed": seed})


def ladder(recipe: Recipe) -> list[Variant]:
    """Return the steps that lead up to a recipe of the convnet, without the recipe itself.

    The steps train plainly: Adam at a constant 1e-3, one picture size, no augmentation, smoothing, penalty or
    averaging; the number of epochs is the recipe's.
    """
    plain = {f"augment.{name}": value for name, value in _AUGMENT.items()} | {
        "model.l2": 0.0, "train.optimizer": "adam", "train.learning_rate": PLAIN_RATE,
        "train.final_learning_rate": PLAIN_RATE, "train.warmup_epochs": 0.0, "train.label_smoothing": 0.0,
        "train.weight_average": 0.0, "train.stages": [], "train.source_px": 0,
    }  # fmt: skip
    normalised = {**plain, "model.batchnorm": True, **_running_statistics(recipe)}
    # A step that adds dropout needs some: the reference's, where the recipe has none.
    dropout = recipe.model.dropout or 0.5
    return [
        Variant("baseline", "", "baseline CNN", {**plain, "model.batchnorm": False, "model.dropout": 0.0}),
        Variant("batchnorm", "", "+ BatchNorm", {**normalised, "model.dropout": 0.0}),
        Variant("dropout", "", f"+ Dropout {dropout:g}", {**normalised, "model.dropout": dropout}),
    ]


def ingredients(recipe: Recipe, precision: str) -> list[Variant]:
    """Return the recipe with each ingredient left out or changed, or added where the recipe lacks it.

    Args:
        recipe: where everything begins.
        precision: that the recipe's own runs computed in; the other one becomes a variant.
    """
    variants = [*_augmentation(recipe), *_rates(recipe), *_regularisation(recipe), *_averages(recipe)]
    other = "float32" if precision == "mixed_bfloat16" else "mixed_bfloat16"
    variants.append(Variant(other, "precision", other, {"train.precision": other}))
    for size in (16, 32, 64):
        # The rate is left as it is: this row says what a batch size does when nothing else is changed.
        if size != recipe.train.batch_size:
            variants.append(Variant(f"batch-{size}", "batch size", str(size), {"train.batch_size": size}))
    return variants


def chosen(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Return the variants whose name or factor is in `only`; all where it is empty.

    Raises:
        InputError: a name that no variant and no factor has.
    """
    known = sorted({variant.name for variant in variants} | {variant.factor for variant in variants if variant.factor})
    for name in only:
        if name not in known:
            raise InputError(
                f"There is nothing called {name!r} to ablate.{nearest(name, known)} Known here: {', '.join(known)}."
            )
    return [variant for variant in variants if not only or variant.name in only or variant.factor in only]


def _augmentation(recipe: Recipe) -> Iterator[Variant]:
    present = recipe.augment.model_dump()
    active = {name: value for name, value in _AUGMENT.items() if present[name] != value}
    if active:
        all_off = {f"augment.{name}": value for name, value in active.items()}
        yield Variant("no-augmentation", "augmentation", "off", all_off)
    for name, value in active.items():
        yield Variant(f"no-{name}", "augmentation", f"without {_word(name)}", {f"augment.{name}": value})
    for name, usual in _USUAL_MIXING.items():
        if name not in active:
            yield Variant(f"with-{name}", "augmentation", f"with {_word(name)} {usual:g}", {f"augment.{name}": usual})


def _rates(recipe: Recipe) -> Iterator[Variant]:
    train = recipe.train
    if train.final_learning_rate != train.learning_rate:
        constant = {"train.final_learning_rate": train.learning_rate}
        yield Variant("constant-rate", "cosine schedule", "off: constant rate", constant)
    if train.warmup_epochs:
        yield Variant("no-warmup", "warm-up", "off", {"train.warmup_epochs": 0.0})
    for name, factor in (("low", 1 / 3), ("high", 3.0)):
        # Both ends of the cosine by one factor: its shape stays, and the row is about the rate alone.
        rates = {
            "train.learning_rate": train.learning_rate * factor,
            "train.final_learning_rate": train.final_learning_rate * factor,
        }
        yield Variant(f"rate-{name}", "learning rate", f"{train.learning_rate * factor:.2g}", rates)


def _regularisation(recipe: Recipe) -> Iterator[Variant]:
    model, train = recipe.model, recipe.train
    if train.label_smoothing:
        yield Variant("no-smoothing", "label smoothing", "off", {"train.label_smoothing": 0.0})
    else:
        yield Variant("smoothing", "label smoothing", "0.1", {"train.label_smoothing": 0.1})
    yield (
        Variant("no-l2", "L2", "off", {"model.l2": 0.0})
        if model.l2
        else Variant("l2", "L2", "1e-4", {"model.l2": 1e-4})
    )
    if train.optimizer == "adamw" and train.weight_decay:
        yield Variant("no-weight-decay", "weight decay", "off", {"train.weight_decay": 0.0})
    for rate in (0.0, 0.2, 0.5):
        if rate != model.dropout:
            text = f"{rate:g}" if rate else "off"
            yield Variant(f"dropout-{text}", "dropout rate", text, {"model.dropout": rate})
    if isinstance(model, ConvNet):
        without = {"model.batchnorm": not model.batchnorm}
        yield Variant("other-batchnorm", "BatchNorm", "off" if model.batchnorm else "on", without)


def _averages(recipe: Recipe) -> Iterator[Variant]:
    train = recipe.train
    if train.weight_average:
        yield Variant("no-averaging", "averaged weights", "off", {"train.weight_average": 0.0})
    if train.recalibrate_photos:
        yield Variant("no-recalibration", "statistics from clean photos", "off", _running_statistics(recipe))
    if train.stages:
        yield Variant("one-size", "growing pictures", "off", {"train.stages": []})


def _running_statistics(recipe: Recipe) -> dict[str, Any]:
    """Return what lets BatchNorm keep the statistics that it gathers in training."""
    if not recipe.train.recalibrate_photos:
        return {}
    # Both in one change: the momentum acts only where nothing is estimated anew (`tellapart.conditions`).
    of_convnet = {"model.batchnorm_momentum": _MOMENTUM} if isinstance(recipe.model, ConvNet) else {}
    return {"train.recalibrate_photos": 0, **of_convnet}


def _word(name: str) -> str:
    words = {"randaugment_ops": "RandAugment", "erase": "random erasing", "mixup": "MixUp", "cutmix": "CutMix"}
    return words.get(name, name)


def setting_of(recipe: Recipe, variant: Variant) -> str:
    """Return what a variant's ingredient is in the recipe, for the table."""
    model, train = recipe.model, recipe.train
    present = recipe.augment.model_dump()
    about = [name.removeprefix("augment.") for name in variant.changes if name.startswith("augment.")]
    parts = [
        _word(name) if isinstance(present[name], bool) else f"{_word(name)} {present[name]:g}"
        for name in about
        if present[name] != _AUGMENT[name]
    ]
    values: dict[str, str] = {
        "augmentation": ", ".join(parts) or "off",
        "cosine schedule": f"{train.learning_rate:g} to {train.final_learning_rate:g}",
        "warm-up": f"{train.warmup_epochs:g} epochs",
        "learning rate": f"{train.learning_rate:g}",
        "label smoothing": f"{train.label_smoothing:g}" if train.label_smoothing else "off",
        "L2": f"{model.l2:g}" if model.l2 else "off",
        "weight decay": f"{train.weight_decay:g}",
        "dropout rate": f"{model.dropout:g}" if model.dropout else "off",
        "BatchNorm": "on" if not isinstance(model, ConvNet) or model.batchnorm else "off",
        "averaged weights": f"{train.weight_average:g} of the steps",
        "statistics from clean photos": f"{train.recalibrate_photos} photos",
        "growing pictures": ", ".join(f"{stage.image_px} px" for stage in train.stages),
        "precision": train.precision,
        "batch size": str(train.batch_size),
    }
    return values[variant.factor]
