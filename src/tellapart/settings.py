"""The recipe: every setting that decides what a training run does. Knows nothing about Keras.

A recipe is one small TOML file. Unknown keys are errors, with the nearest known name offered.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tellapart.errors import RecipeError, nearest
from tellapart.files import write_text

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Section):
    """How photos become splits and arrays."""

    image_px: int = Field(224, ge=16, le=1024, description="side of the square picture the network sees")
    split: tuple[Fraction, Fraction, Fraction] = Field(
        (0.7, 0.2, 0.1), description="shares of train, validation and test"
    )
    split_seed: int = Field(0, description="another number gives another split")
    max_pixels: int = Field(100_000_000, ge=1, description="larger images are refused before they are decoded")
    cache_limit_gb: float = Field(20.0, ge=0, description="decoded pictures kept on disk; 0 keeps none")

    @model_validator(mode="after")
    def _shares_add_up(self) -> Data:
        if abs(sum(self.split) - 1) > 1e-6 or self.split[0] <= 0:
            raise ValueError(f"split {list(self.split)} must add up to 1 with a train share above 0")
        return self


class Augment(_Section):
    """The random changes made to each training picture, in Keras' meaning of the ranges."""

    flip: bool = Field(True, description="mirror left and right, one time in two")
    rotation: float = Field(0.2, ge=0, le=0.5, description="largest turn either way, as a share of a full circle")
    zoom: float = Field(0.2, ge=0, lt=1, description="largest zoom out or in, as a share of the side")
    translation: float = Field(0.0, ge=0, le=0.5, description="largest shift, as a share of the side")
    brightness: float = Field(0.0, ge=0, le=1, description="largest change of brightness, as a share of white")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest change of contrast about each channel's mean")
    randaugment_ops: int = Field(0, ge=0, le=14, description="operations of RandAugment on each picture; 0: none")
    randaugment_magnitude: float = Field(0.3, ge=0, le=1, description="strength of RandAugment's operations")
    erase: Fraction = Field(0.0, description="share of the pictures that lose a random rectangle to noise")
    mixup: float = Field(0.0, ge=0, le=10, description="alpha of MixUp's Beta distribution; 0: no MixUp")
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="alpha of CutMix's Beta distribution; 0: no CutMix; with mixup each batch takes one",
    )
    mix_probability: Fraction = Field(1.0, description="share of the batches that mixup or cutmix mixes")


class Model(_Section):
    """The network."""

    name: Literal[
        "convnet", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet50", "densenet121",
        "efficientnet_b0", "efficientnet_v2_b0", "convnext_tiny",
    ] = Field("convnet", description="which network; all but convnet are those of keras.applications")  # fmt: skip
    weights: str = Field(
        "", description='to begin from: "imagenet" (Keras downloads it), or a file; "": from scratch. Not for convnet'
    )
    unfreeze: Fraction = Field(
        0.0, description="share of a pretrained network's layers, from the top, that learn after its head"
    )
    width: float = Field(
        1.0, gt=0, le=4, description="times the channels of the convnet, in eights: 2 is twice as many in each layer"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the features that are dropped in training")
    l2: float = Field(1e-4, ge=0, description="L2 penalty on the kernels of the convnet, or of the head")
    batchnorm: bool = Field(True, description="BatchNormalization after each convolution of the convnet")
    batchnorm_momentum: float = Field(0.99, gt=0, lt=1, description="of the convnet's running mean and variance")

    @model_validator(mode="after")
    def _settings_fit_the_network(self) -> Model:
        if self.weights and self.name == "convnet":
            raise ValueError("there are no pretrained weights of convnet: name another network, as in mobilenet_v2")
        if self.width != 1 and self.name != "convnet":
            raise ValueError(f"only the convnet has a width: leave it at 1 for {self.name}")
        return self


class Stage(_Section):
    """One stage of progressive resizing."""

    image_px: int = Field(ge=16, le=1024, description="side of the training pictures in this stage")
    share: float = Field(gt=0, description="of the epochs, relative to the other stages")


class Train(_Section):
    """The optimisation."""

    epochs: int = Field(45, ge=1, description="times over the training photos")
    batch_size: int = Field(32, ge=1, description="pictures per step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="which optimiser")
    learning_rate: float = Field(1e-3, gt=0, description="highest rate")
    final_learning_rate: float = Field(1e-4, ge=0, description="rate at the end of the cosine")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the rate rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (adamw)")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    weight_average: float = Field(
        0.0, ge=0, lt=1, description="length of the running average of the weights, as a share of all steps; 0: none"
    )
    snapshots: int = Field(
        0,
        ge=0,
        le=20,
        description="weights kept on the way, in the second half of the schedule, for `tellapart ensemble`",
    )
    patience: int = Field(10, ge=1, description="epochs without a better validation score before stopping")
    stages: tuple[Stage, ...] = Field((), description="progressive resizing; none: image_px throughout")
    source_px: int = Field(
        0, ge=0, le=1024, description="side of the stored pictures that training crops from; 0: image_px"
    )
    recalibrate_photos: int = Field(
        0, ge=0, description="clean photos that BatchNorm's statistics are estimated on again; 0 for none"
    )
    validate_every: int = Field(1, ge=1, description="epochs between two looks at the validation photos")
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto", description="auto measures both and keeps the faster"
    )
    deterministic: bool = Field(False, description="the same weights, bit for bit, on the same machine")
    seed: int = Field(0, description="of initial weights, order, augmentation and dropout")
    workers: int = Field(0, ge=0, le=64, description="threads that make batches; 0: one for each processor")


class Distill(_Section):
    """What is learned from another run, such as an ensemble, beside the labels."""

    teacher: str = Field("", description='a finished run folder whose probabilities are learned; "": labels alone')
    weight: Fraction = Field(0.7, description="share of the loss that the teacher decides; the labels decide the rest")
    temperature: float = Field(4.0, gt=0, le=20, description="softens teacher and student alike; 1: as they are")


class Recipe(_Section):
    """All settings of one training run. The defaults are recipes/reference.toml."""

    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    train: Train = Train()
    distill: Distill = Distill()

    @model_validator(mode="after")
    def _a_student_is_trained(self) -> Recipe:
        if self.distill.teacher and self.model.weights and not self.model.unfreeze:
            raise ValueError("the head of a pretrained network is fitted to labels alone: set model.unfreeze as well")
        return self


RECIPE_NAMES = ("reference", "fast", "demo", "transfer")


def load_recipe(source: Recipe | str | Path | None = None, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply changes to it and check it.

    Args:
        source: a recipe, a TOML file, the name of a recipe that comes with tellapart ("reference", "fast", "demo",
            "transfer"), or None for the reference recipe.
        changes: settings as ``"section.key=value"``; values are TOML, bare words are strings.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: an unknown key, a value that does not fit, or a file that cannot be read.

    Example:
        >>> load_recipe(changes=["train.epochs=3"]).train.epochs
        3
    """
    values: dict[str, Any] = {}
    if isinstance(source, Recipe):
        values = source.model_dump(mode="json")
    elif source is not None:
        path = find_recipe(str(source))
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise RecipeError(f"Recipe {path} cannot be read: {error.strerror}.") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"Recipe {path} is not valid TOML: {error}.") from error
    for change in changes:
        _apply(values, change)
    return recipe_from(values)


def fitting_recipe(changes: Sequence[str], *, in_time: bool) -> str:
    """Return the name of the recipe for a run that names none.

    Args:
        changes: as for `load_recipe`; with pretrained weights it is "transfer", whose picture size and rates they need.
        in_time: whether the run has a time budget: "fast" then, else "reference".
    """
    values: dict[str, Any] = {}
    for change in changes:
        _apply(values, change)
    if values.get("model", {}).get("weights"):
        return "transfer"
    return "fast" if in_time else "reference"


def recipe_from(values: dict[str, Any]) -> Recipe:
    """Check `values`, nested by section, and return them as a `Recipe`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error)) from None


def with_settings(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with some settings changed, checked anew.

    Args:
        recipe: stays as it is.
        changes: values by "section.key".

    Raises:
        RecipeError: an unknown key, or a value that does not fit.

    Example:
        >>> with_settings(Recipe(), {"train.epochs": 3}).train.epochs
        3
    """
    values = recipe.model_dump(mode="json")
    for name, value in changes.items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = value
    return recipe_from(values)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write every setting of `recipe` as TOML, atomically."""
    write_text(path, tomli_w.dumps(recipe.model_dump(mode="json")))


def find_recipe(name: str) -> Path:
    """Return the file of the recipe called `name`, or `name` itself when it is a file."""
    if name in RECIPE_NAMES:
        package = Path(__file__).parent
        for folder in (package / "recipes", package.parents[1] / "recipes"):
            if (folder / f"{name}.toml").is_file():
                return folder / f"{name}.toml"
    path = Path(name)
    if not path.is_file():
        hint = nearest(name, RECIPE_NAMES)
        raise RecipeError(f"Recipe {name!r} is neither a file nor one of {', '.join(RECIPE_NAMES)}.{hint}")
    return path


def parse_duration(text: str) -> float:
    """Return the seconds in a text such as ``"90s"``, ``"10m"``, ``"1h30m"`` or ``"600"``.

    Raises:
        RecipeError: `text` is no duration, or not above 0.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0.0
    )
    if seconds <= 0:
        raise RecipeError(f"{text!r} is not a time above 0. Write it as 90s, 10m or 1h30m.")
    return seconds


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise RecipeError(f"{change!r} is not a setting. Write it as section.key=value, as in train.epochs=3.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    values.setdefault(section, {})
    if not isinstance(values[section], dict):
        raise RecipeError(f"{section!r} is not a section. Sections are {', '.join(Recipe.model_fields)}.")
    values[section][key] = value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = [str(part) for part in problem["loc"]]
        name = ".".join(where)
        if problem["type"] == "extra_forbidden":
            known = _known_keys(where[:-1])
            hint = nearest(where[-1], known)
            if not hint:
                everywhere = {f"{s}.{k}" for s in Recipe.model_fields for k in _known_keys([s])}
                owners = [key for key in everywhere if key.split(".")[1] == where[-1]]
                hint = f" Did you mean '{owners[0]}'?" if owners else ""
            lines.append(f"Unknown setting {name!r}.{hint} Known here: {', '.join(known)}.")
        else:
            lines.append(f"Setting {name!r} is {problem.get('input')!r}: {problem['msg']}.")
    return "\n".join(lines)


def _known_keys(where: Sequence[str]) -> list[str]:
    section: Any = Recipe
    for part in where:
        if part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = annotation if isinstance(annotation, type) else Stage
    return list(section.model_fields)
