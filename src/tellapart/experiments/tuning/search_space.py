"""Which settings are tried, and within which ranges. Knows nothing about Optuna, and of training only the recipe."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.conditions import decides
from tellapart.errors import InputError, RecipeError, nearest
from tellapart.settings import Recipe, acts, section_models, with_settings

Value = float | int | str | bool

DEFAULT_SPACE = {
    "train.learning_rate": "1e-3..3e-2 log",
    "train.batch_size": "16, 32, 64",
    "train.weight_decay": "1e-3..3e-1 log",
    "train.label_smoothing": "0..0.2",
    "model.l2": "1e-6..1e-3 log",
    "model.dropout": "0..0.6",
    "model.width": "0.5..1.5",
    "augment.strength": "0..2",
    "augment.mixing": "none, mixup, cutmix",
}
"""What is searched where nothing else is said; `default_space` leaves out what a recipe cannot use."""

MIXING: dict[str, dict[str, float]] = {
    "none": {"mixup": 0.0, "cutmix": 0.0},
    "mixup": {"mixup": 0.2, "cutmix": 0.0},
    "cutmix": {"mixup": 0.0, "cutmix": 1.0},
}
"""What each choice of ``augment.mixing`` sets: the papers' values (arXiv 1710.09412, 1905.04899)."""

_STRENGTH_OF = {"rotation": 0.5, "zoom": 0.95, "translation": 0.5, "contrast": 0.95, "brightness": 1.0}
"""What ``augment.strength`` multiplies, and how far each of them can go."""
_MADE_UP = {
    "augment.strength": tuple(f"augment.{part}" for part in _STRENGTH_OF),
    "augment.mixing": ("augment.mixup", "augment.cutmix"),
}
"""Names in a space that are not settings themselves: each stands for several."""
_HELD = {
    "data.split": "the photos are split once, before the search",
    "data.split_seed": "the photos are split once, before the search",
    "train.epochs": "trials are compared at the same epochs; --set train.epochs=N gives all of them as many",
    "train.seed": "a seed is luck, not a setting",
}


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; with `log` each factor is as likely as any other."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choice:
    """One of some values; a single one is held."""

    values: tuple[Value, ...]


Space = dict[str, Range | Choice]


def search_space(wanted: Sequence[str], recipe: Recipe) -> Space:
    """Read what is to be searched, and check that the recipe takes both ends of each range.

    A setting may act beside some values of another one only, as ``train.weight_decay`` does beside adamw: with
    ``train.optimizer`` in the space too, the trials with adamw get one.

    Args:
        wanted: ranges as ``"train.learning_rate=1e-4..1e-2 log"``, choices as ``"train.batch_size=16,32,64"``, the word
            ``"default"`` for `DEFAULT_SPACE`, or TOML files of ranges; what comes later replaces what came before.
            Nothing: the default space. Only what is named is searched.
        recipe: what all trials have in common.

    Returns:
        A `Range` or `Choice` for each setting, in a fixed order: what decides whether another one acts comes first.

    Raises:
        RecipeError: an unknown setting, an empty range, or a value that the recipe refuses.
        InputError: nothing is left to search.

    Example:
        >>> search_space(["model.dropout=0..0.5"], Recipe())
        {'model.dropout': Range(low=0.0, high=0.5, log=False, whole=False)}
    """
    texts: dict[str, str] = {}
    for text in wanted or ("default",):
        texts |= _texts_of(text, recipe)
    parts: Space = {}
    for name, text in sorted(texts.items()):
        _check_name(name)
        parts[name] = _parse(name, text)
    space = {name: parts[name] for name in _deciders_first(list(parts))}
    for name, part in space.items():
        _try_ends(name, texts[name], part, recipe, space)
    if not any(isinstance(part, Range) or len(part.values) > 1 for part in space.values()):
        raise InputError(
            f"Nothing is left to search: {', '.join(space)} can take one value only. Expected a range such as "
            "train.learning_rate=1e-4..1e-2 log, or several values such as train.batch_size=16,32,64."
        )
    return space


def default_space(recipe: Recipe) -> dict[str, str]:
    """Return the part of `DEFAULT_SPACE` that makes a difference to a recipe."""
    unused = {"model.l2"} if recipe.train.optimizer == "adamw" else set()
    if not any(getattr(recipe.augment, name) for name in _STRENGTH_OF):
        unused.add("augment.strength")
    return {name: text for name, text in DEFAULT_SPACE.items() if name not in unused and can_act(recipe, name, {})}


def recipe_with(recipe: Recipe, values: Mapping[str, Value]) -> Recipe:
    """Return the recipe with the values of one trial.

    Args:
        recipe: what all trials have in common.
        values: by the names in a space. ``augment.strength`` multiplies the recipe's rotation, zoom, translation,
            contrast and brightness; ``augment.mixing`` sets mixup and cutmix.

    Raises:
        RecipeError: the recipe refuses a value.
    """
    return with_settings(recipe, _settings_of(recipe, values))


def can_act(recipe: Recipe, name: str, values: Mapping[str, Value]) -> bool:
    """Return whether what `name` stands for acts on the recipe with the values of a trial so far."""
    return acts(recipe, _stands_for(name)[0], _settings_of(recipe, values))


def has_conditions(space: Space) -> bool:
    """Return whether a value in a space can decide if another one is needed."""
    return any(_decides(one, other) for one, other in itertools.permutations(space, 2))


def values_of(recipe: Recipe, space: Space) -> dict[str, Value] | None:
    """Return the values in a space that are the recipe itself; None where it lies outside."""
    values: dict[str, Value] = {}
    for name, part in space.items():
        if not can_act(recipe, name, {}):
            continue
        if name == "augment.strength":
            value: Value = 1.0
        elif name == "augment.mixing":
            now = {key: getattr(recipe.augment, key) for key in ("mixup", "cutmix")}
            value = next((choice for choice, sets in MIXING.items() if sets == now), "")
        else:
            section, _, key = name.partition(".")
            value = getattr(getattr(recipe, section), key)
        inside = value in part.values if isinstance(part, Choice) else part.low <= float(value) <= part.high
        if not inside:
            return None
        values[name] = value
    return values


def space_text(part: Range | Choice) -> str:
    """Return a range or choice as a user writes it."""
    if isinstance(part, Choice):
        return ", ".join(str(value).lower() if isinstance(value, bool) else str(value) for value in part.values)
    return f"{part.low:g}..{part.high:g}{' log' if part.log else ''}"


def _settings_of(recipe: Recipe, values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the settings of a recipe that the values of a trial stand for."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name == "augment.strength":
            changes |= {
                f"augment.{part}": min(most, float(value) * getattr(recipe.augment, part))
                for part, most in _STRENGTH_OF.items()
            }
        elif name == "augment.mixing":
            changes |= {f"augment.{part}": alpha for part, alpha in MIXING[str(value)].items()}
        else:
            changes[name] = value
    return changes


def _acting(recipe: Recipe, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return those of the values, deciders first, that act beside the ones before them."""
    kept: dict[str, Value] = {}
    for name, value in values.items():
        if can_act(recipe, name, kept):
            kept[name] = value
    return kept


def _stands_for(name: str) -> tuple[str, ...]:
    return _MADE_UP.get(name, (name,))


def _decides(one: str, other: str) -> bool:
    return any(decides(*pair) for pair in itertools.product(_stands_for(one), _stands_for(other)))


def _deciders_first(names: Sequence[str]) -> list[str]:
    """Return the names in their order, but each after those that decide whether it acts."""
    ordered: list[str] = []

    def add(name: str) -> None:
        for other in names:
            if other != name and _decides(other, name):
                add(other)
        if name not in ordered:
            ordered.append(name)

    for name in names:
        add(name)
    return ordered


def _texts_of(text: str, recipe: Recipe) -> dict[str, str]:
    """Return what one word of the user names: a setting, the default space, or a file."""
    if text.strip() == "default":
        return default_space(recipe)
    name, equals, rest = text.partition("=")
    if equals:
        return {name.strip(): rest.strip()}
    path = Path(text)
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{text!r} is neither a range, nor 'default', nor a file that can be read ({error.strerror}). Write a "
            "range as train.learning_rate=1e-4..1e-2 log."
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"Search space {path} is not valid TOML: {error}.") from error
    return _flat(values)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Return ``section.key`` names with their texts, whether written as one name or in sections."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[before + key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def _check_name(name: str) -> None:
    if name in _HELD:
        raise RecipeError(f"{name} cannot be searched: {_HELD[name]}.")
    known = [*(f"{section}.{key}" for section in Recipe.model_fields
               for each in section_models(section) for key in each.model_fields), *_MADE_UP]  # fmt: skip
    if name in known:
        return
    same = [each for each in known if each.partition(".")[2] == name.rpartition(".")[2]]
    hint = f" Did you mean '{same[0]}'?" if same else nearest(name, known)
    raise RecipeError(f"The search space names an unknown setting, {name!r}.{hint} docs/settings.md lists all.")


def _parse(name: str, text: str) -> Range | Choice:
    """Read ``LOW..HIGH``, ``LOW..HIGH log`` or ``VALUE, VALUE``.

    Raises:
        RecipeError: there is nothing in it.
    """
    ends = re.fullmatch(r"(.+?)\.\.(.+?)(\s+log)?", text)
    if not ends:
        return Choice(_choices(name, text))
    try:
        low, high = float(ends[1]), float(ends[2])
    except ValueError:
        raise RecipeError(f"The range of {name}, {text!r}, is not of numbers. Write it as 1e-4..1e-2 log.") from None
    is_log = bool(ends[3])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RecipeError(f"The range of {name}, {text!r}, has an end that is not finite. Expected two numbers.")
    if low > high:
        raise RecipeError(
            f"The range of {name}, {text!r}, is empty: {low:g} is above {high:g}. Write it the other way."
        )
    if is_log and low <= 0:
        raise RecipeError(
            f"The range of {name}, {text!r}, is logarithmic and begins at {low:g}. Expected a low end above 0, as in "
            f"1e-6..{high:g} log."
        )
    whole = _is_whole(name)
    if whole and (low != round(low) or high != round(high)):
        raise RecipeError(f"The range of {name}, {text!r}, has an end that is no whole number, which it must be.")
    if low == high:
        return Choice((int(low) if whole else low,))
    return Range(low, high, is_log, whole)


def _choices(name: str, text: str) -> tuple[Value, ...]:
    values: list[Value] = []
    for word in (part.strip() for part in text.split(",")):
        if not word:
            raise RecipeError(f"The values of {name}, {text!r}, are empty somewhere. Write them as 16,32,64.")
        try:
            value = tomllib.loads(f"value = {word}")["value"]
        except tomllib.TOMLDecodeError:
            value = word
        if not isinstance(value, (bool, int, float, str)):
            raise RecipeError(f"{name} is searched over {word!r}. Expected numbers, words, true or false.")
        if value not in values:
            values.append(value)
    if name == "augment.mixing" and (unknown := [value for value in values if value not in MIXING]):
        hint = nearest(str(unknown[0]), MIXING)
        raise RecipeError(f"augment.mixing is {unknown[0]!r}.{hint} Expected some of {', '.join(MIXING)}.")
    return tuple(values)


def _is_whole(name: str) -> bool:
    section, _, key = name.partition(".")
    if name in _MADE_UP:
        return False
    fields = [each.model_fields[key] for each in section_models(section) if key in each.model_fields]
    return fields[0].annotation is int


def _try_ends(name: str, text: str, part: Range | Choice, recipe: Recipe, space: Space) -> None:
    """Build a recipe with each value of a choice, or with both ends of a range, beside values with which it acts.

    Raises:
        RecipeError: it is refused.
    """
    if name == "augment.strength":
        lowest = part.low if isinstance(part, Range) else min(float(value) for value in part.values)
        if lowest < 0:
            raise RecipeError(f"augment.strength={text!r} begins below 0. Expected numbers from 0 (none) up.")
    deciders = [other for other in space if other != name and _decides(other, name)]
    tries = (
        _acting(recipe, dict(zip(deciders, values, strict=True)))
        for values in itertools.product(*(_ends(space[each]) for each in deciders))
    )
    beside = next((values for values in tries if can_act(recipe, name, values)), {})
    for value in _ends(part):
        try:
            recipe_with(recipe, beside | {name: value})
        except RecipeError as error:
            raise RecipeError(
                f"The search space {name}={text} holds {value!r}, which a recipe refuses. {error} Narrow the range."
            ) from None


def _ends(part: Range | Choice) -> tuple[Value, ...]:
    """Return each value of a choice, or both ends of a range."""
    if isinstance(part, Choice):
        return part.values
    return (int(part.low), int(part.high)) if part.whole else (part.low, part.high)
