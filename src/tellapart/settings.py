"""The recipe: every setting that decides what a training run does. Knows nothing about Keras.

A recipe is one small TOML file. Unknown keys are errors, with the nearest known name offered, and so are settings that
cannot act beside the others (`tellapart.conditions`). What is about the machine, and changes no number, is `Machine`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from tellapart.conditions import ESSENTIAL, unused
from tellapart.errors import RecipeError, nearest
from tellapart.files import write_text
from tellapart.sections import Augment, Backbone, ConvNet, Data, Distill, Model, Section, Stage, Train

__all__ = [
    "MOVED", "RECIPE_NAMES", "Augment", "Backbone", "ConvNet", "Data", "Distill", "Machine", "Model", "Recipe", "Stage",
    "Train", "acts", "find_recipe", "fitting_recipe", "load_recipe", "load_saved_recipe", "machine_from",
    "parse_duration", "recipe_from", "save_recipe", "saved_values", "section_models", "unused_settings", "upgraded",
    "with_settings",
]  # fmt: skip


class Recipe(Section):
    """All settings of one training run. The defaults are recipes/reference.toml."""

    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Field(ConvNet(), discriminator="name")
    train: Train = Train()
    distill: Distill = Distill()

    @model_validator(mode="before")
    @classmethod
    def _the_convnet_needs_no_name(cls, values: Any) -> Any:
        # pydantic chooses between the two networks by their name, which recipes for the convnet leave out.
        model = values.get("model") if isinstance(values, dict) else None
        # The default first, so that a name that was given overrides it.
        return {**values, "model": {"name": "convnet", **model}} if isinstance(model, dict) else values

    @model_validator(mode="after")
    def _all_that_was_given_acts(self) -> Recipe:
        # Only what was set: a default that cannot act misleads nobody.
        if problems := unused_settings(self.model_dump(exclude_unset=True)):
            raise PydanticCustomError("unused_setting", "{lines}", {"lines": "\n".join(problems.values())})
        # Not a line of CONDITIONS, from which a change of the network could drop the teacher in passing
        # (docs/decisions.md).
        if self.distill.teacher and self.model.weights and not self.model.unfreeze:
            raise PydanticCustomError(
                "unused_setting",
                "The head of a pretrained network is fitted to labels alone: with distill.teacher set model.unfreeze.",
            )
        return self


class Machine(Section):
    """What a run may use of the machine that it runs on. It changes no number, and is no part of the recipe."""

    workers: int = Field(0, ge=0, le=64, description="threads that make batches, at least 2; 0: one for each processor")
    cache_limit_gb: float = Field(20.0, ge=0, description="decoded pictures kept on disk; 0 keeps none")

    @property
    def cache_limit_bytes(self) -> int:
        """How large the cache of one picture size may grow."""
        return int(self.cache_limit_gb * 1e9)


MOVED = {"train.workers": "workers", "data.cache_limit_gb": "cache_limit_gb"}
"""Settings of a recipe once, and what they are called in `Machine`."""

RECIPE_NAMES = ("reference", "fast", "demo", "transfer")


def load_recipe(source: Recipe | str | Path | None = None, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply changes to it and check it.

    What a change switches off is left out: with ``train.optimizer=sgd`` the weight decay of a recipe with adamw goes
    too. A setting that is named itself and cannot act is an error.

    Args:
        source: a recipe, a TOML file, the name of a recipe that comes with tellapart ("reference", "fast", "demo",
            "transfer"), or None for the reference recipe.
        changes: settings as ``"section.key=value"``; values are TOML, bare words are strings.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: an unknown key, a value that does not fit, a setting that cannot act, or a file that cannot be
            read.

    Example:
        >>> load_recipe(changes=["train.epochs=3"]).train.epochs
        3
    """
    values: dict[str, Any] = {}
    if isinstance(source, Recipe):
        values = saved_values(source)
    elif source is not None:
        path = find_recipe(str(source))
        values = _read(path)
        if path.with_name("environment.json").is_file():  # a run's own, which may be of an earlier version
            values = upgraded(values)
    # Of two changes of one setting the later one counts: the command line puts --set behind its own options.
    return recipe_from(_changed(values, dict(map(_parsed, changes))))


def load_saved_recipe(path: Path) -> Recipe:
    """Read a recipe that `save_recipe` wrote, in this version or an earlier one.

    Raises:
        RecipeError: the file cannot be read, or was changed to what is no recipe.
    """
    return recipe_from(upgraded(_read(path)))


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a saved recipe as this version writes them.

    Earlier versions saved all settings: those that could not act are left out, and so are those that are the machine's.
    """
    recipe_values = _without(values, MOVED)
    return _without(recipe_values, unused_settings(recipe_values))


def fitting_recipe(changes: Sequence[str], *, in_time: bool) -> str:
    """Return the name of the recipe for a run that names none.

    Args:
        changes: as for `load_recipe`; with pretrained weights it is "transfer", whose picture size and rates they need.
        in_time: whether the run has a time budget: "fast" then, else "reference".
    """
    if dict(map(_parsed, changes)).get("model.weights"):
        return "transfer"
    return "fast" if in_time else "reference"


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """Check `values`, nested by section, and return them as a `Recipe`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, unused_settings(values))) from None


def with_settings(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with some settings changed, checked anew; what they switch off is left out.

    Args:
        recipe: stays as it is.
        changes: values by "section.key".

    Raises:
        RecipeError: an unknown key, a value that does not fit, or a setting that cannot act.

    Example:
        >>> with_settings(Recipe(), {"train.epochs": 3}).train.epochs
        3
    """
    return recipe_from(_changed(saved_values(recipe), changes))


def acts(recipe: Recipe, name: str, changes: Mapping[str, Any] | None = None) -> bool:
    """Return whether the setting `name`, as "section.key", can act in `recipe` with `changes`."""
    values = _changed(saved_values(recipe), changes or {})
    section, _, key = name.partition(".")
    # Only settings that are given are looked at. Any value will do: no setting decides whether it acts itself.
    values[section].setdefault(key, None)
    return name not in unused_settings(values)


def unused_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Return why settings cannot act beside the others, by "section.key"; only those that are given are looked at.

    Args:
        values: nested by section; what is missing has its default.
    """
    values_by_name = {
        f"{section}.{key}": value
        for section, keys in values.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
    return unused(values_by_name, lambda name: values_by_name[name] if name in values_by_name else _default(name))


def saved_values(recipe: Recipe) -> dict[str, Any]:
    """Return each setting of `recipe` that acts, nested by section, as plain values for TOML and JSON."""
    # As JSON reads them back (lists, not tuples): `tune` compares these values with those that it saved.
    values = recipe.model_dump(mode="json")
    return _without(values, unused_settings(values))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write each setting of `recipe` that acts as TOML, atomically."""
    write_text(path, tomli_w.dumps(saved_values(recipe)))


def section_models(section: str) -> tuple[type[BaseModel], ...]:
    """Return the models of a section: one, or one for each kind of network."""
    annotation: Any = Recipe.model_fields[section].annotation
    return get_args(annotation) or (annotation,)


def machine_from(
    *, workers: int | None = None, cache_limit_gb: float | None = None, environment: Mapping[str, str] = os.environ
) -> Machine:
    """Return what a run may use of this machine: what is given, else what the environment says, else the defaults.

    Args:
        workers: threads that make batches; None: ``TELLAPART_WORKERS``.
        cache_limit_gb: of decoded pictures on disk; None: ``TELLAPART_CACHE_LIMIT_GB``.
        environment: of the process.

    Raises:
        RecipeError: a value that does not fit.
    """
    values: dict[str, Any] = {"workers": workers, "cache_limit_gb": cache_limit_gb}
    for name, value in values.items():
        # `is None`, not false: 0 is a value of both settings, one thread for each processor, and no cache.
        # An empty variable counts as unset.
        values[name] = environment.get(_variable(name)) or None if value is None else value
    try:
        return Machine.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise RecipeError(
            f"{name} ({_flag(name)}, {_variable(name)}) is {problem.get('input')!r}: {problem['msg']}."
        ) from None


def find_recipe(name: str) -> Path:
    """Return the file of the recipe called `name`, or `name` itself when it is a file."""
    # Our names come first: a file called "fast" in the current folder must not change what --recipe fast means.
    if name in RECIPE_NAMES:
        package = Path(__file__).parent
        # In an installed package, then in a checkout.
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
        RecipeError: `text` is not a duration, or not above 0.
    """
    # Every part is optional, so "" matches too. It gives 0 seconds, which are refused below.
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    seconds = (
        sum(
            float(part or 0) * seconds_per_unit
            for part, seconds_per_unit in zip(match.groups(), (3600, 60, 1), strict=True)
        )
        if match
        else 0.0
    )
    if seconds <= 0:
        raise RecipeError(f"{text!r} is not a time above 0. Write it as 90s, 10m or 1h30m.")
    return seconds


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"Recipe {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"Recipe {path} is not valid TOML: {error}.") from error


def _parsed(change: str) -> tuple[str, Any]:
    """Read ``"section.key=value"``."""
    name, equals, text = change.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise RecipeError(f"{change!r} is not a setting. Write it as section.key=value, as in train.epochs=3.")
    try:
        # TOML, so that numbers, lists and tables come out as they would from a recipe; anything else is a bare word.
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return f"{section}.{key}", value


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with changes, less what acted before and is switched off by them without being named."""
    # A copy, two levels deep: the caller's values are not changed.
    changed = _without(values, ())
    for name, value in changes.items():
        section, _, key = name.partition(".")
        keys = changed.setdefault(section, {})
        if not isinstance(keys, dict):
            raise RecipeError(f"{section!r} is not a section. Sections are {', '.join(Recipe.model_fields)}.")
        keys[key] = value
    # Left out is only what these changes switched off. What could not act before, what is named, and what is essential
    # stays, and becomes an error that says so.
    switched_off = unused_settings(changed).keys() - unused_settings(values).keys() - changes.keys() - ESSENTIAL
    return _without(changed, switched_off)


def _without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {
        section: {key: value for key, value in keys.items() if f"{section}.{key}" not in names}
        if isinstance(keys, dict)
        else keys
        for section, keys in values.items()
    }


def _default(name: str) -> Any:
    section, _, key = name.partition(".")
    # Of the first network that has the setting: what both networks have must have one default.
    return next(model.model_fields[key].default for model in section_models(section) if key in model.model_fields)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return f"TELLAPART_{name.upper()}"


def _explain(error: ValidationError, unused_ones: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        if location[:1] == ["model"] and len(location) > 1:
            location = ["model", *location[2:]]  # pydantic names the network in between
        name = ".".join(location)
        if problem["type"] == "unused_setting":
            lines.append(problem["msg"])
        elif problem["type"] == "extra_forbidden":
            # A setting of the other kind of network is an unknown key to pydantic. The reason why it cannot act says
            # more.
            lines.append(unused_ones.get(name) or _unknown(location))
        elif problem["type"] == "union_tag_invalid":
            tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "")
            hint = nearest(tag, known.split(", "))
            lines.append(f"Setting 'model.name' is {tag!r}.{hint} Expected one of {known}.")
        else:
            lines.append(f"Setting {name!r} is {problem.get('input')!r}: {problem['msg']}.")
    return "\n".join(lines)


def _unknown(where: Sequence[str]) -> str:
    """Say of a key that no section has what was meant, or where it went."""
    name = ".".join(where)
    if name in MOVED:
        new = MOVED[name]
        return (
            f"{name} is about the machine, and no longer a setting of a recipe: give {_flag(new)}, "
            f"machine=tellapart.Machine({new}=…) to tellapart.train, or the environment variable {_variable(new)}."
        )
    known = _known_keys(where[:-1])
    hint = nearest(where[-1], known)
    if not hint:
        # No similar key in this section: the same key may belong to another one.
        everywhere = {f"{s}.{k}" for s in Recipe.model_fields for k in _known_keys([s])}
        owners = sorted(key for key in everywhere if key.split(".")[1] == where[-1])
        hint = f" Did you mean '{owners[0]}'?" if owners else ""
    return f"Unknown setting {name!r}.{hint} Known here: {', '.join(known)}."


def _known_keys(where: Sequence[str]) -> list[str]:
    """Return the keys of the recipe, of a section or of a stage."""
    if not where:
        return list(Recipe.model_fields)
    models = section_models(where[0]) if len(where) == 1 else (Stage,)
    return list(dict.fromkeys(key for model in models for key in model.model_fields))
