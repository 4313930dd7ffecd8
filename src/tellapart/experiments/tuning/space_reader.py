"""Reads a search space as it is written, and checks it against the recipe. Knows nothing about Optuna or training."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from tellapart.errors import InputError, RecipeError, nearest
from tellapart.experiments.tuning.search_space import (
    MADE_UP,
    MIXING,
    STRENGTH_OF,
    Choice,
    Range,
    Space,
    Value,
    can_act,
    deciders,
    recipe_with,
)
from tellapart.settings import Recipe, section_models

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

_HELD = {
    "data.split": "the photos are split once, before the search",
    "data.split_seed": "the photos are split once, before the search",
    "train.epochs": "trials are compared at the same epochs; --set train.epochs=N gives all of them as many",
    "train.seed": "a seed is luck, not a setting",
}


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
    # Sorted: what a search draws must not depend on the order in which the user named the settings.
    for name, text in sorted(texts.items()):
        _check_name(name)
        parts[name] = _parse(name, text)
    # A trial chooses its values in this order, and whether a setting acts must be known when its turn comes.
    order = TopologicalSorter({name: deciders(name, parts) for name in parts}).static_order()
    space = {name: parts[name] for name in order}
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
    # With AdamW the weight decay is searched, which takes the penalty's place.
    unused = {"model.l2"} if recipe.train.optimizer == "adamw" else set()
    if not any(getattr(recipe.augment, name) for name in STRENGTH_OF):
        unused.add("augment.strength")
    return {name: text for name, text in DEFAULT_SPACE.items() if name not in unused and can_act(recipe, name, {})}


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
               for model in section_models(section) for key in model.model_fields), *MADE_UP]  # fmt: skip
    if name in known:
        return
    same_key = [setting for setting in known if setting.partition(".")[2] == name.rpartition(".")[2]]
    hint = f" Did you mean '{same_key[0]}'?" if same_key else nearest(name, known)
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
    is_whole = _is_whole(name)
    if is_whole and (low != round(low) or high != round(high)):
        raise RecipeError(f"The range of {name}, {text!r}, has an end that is not a whole number, which it must be.")
    if low == high:
        return Choice((int(low) if is_whole else low,))
    return Range(low, high, is_log, is_whole)


def _choices(name: str, text: str) -> tuple[Value, ...]:
    values: list[Value] = []
    for word in (part.strip() for part in text.split(",")):
        if not word:
            raise RecipeError(f"The values of {name}, {text!r}, are empty somewhere. Write them as 16,32,64.")
        try:
            # As TOML has them: 16, 0.5, true; what is not TOML is a word.
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
    if name in MADE_UP:
        return False
    fields = [model.model_fields[key] for model in section_models(section) if key in model.model_fields]
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
    # Both ends are enough: what a setting allows is an interval.
    beside = _acting_values(name, recipe, space)
    for value in _ends(part):
        try:
            recipe_with(recipe, beside | {name: value})
        except RecipeError as error:
            raise RecipeError(
                f"The search space {name}={text} holds {value!r}, which a recipe refuses. {error} Narrow the range."
            ) from None


def _acting_values(name: str, recipe: Recipe, space: Space) -> dict[str, Value]:
    """Return values of the settings that decide about `name`; none where it acts anyway, or never."""
    decided_by = deciders(name, space)
    for values in itertools.product(*(_ends(space[decider]) for decider in decided_by)):
        beside: dict[str, Value] = {}
        for decider, value in zip(decided_by, values, strict=True):
            if can_act(recipe, decider, beside):
                beside[decider] = value
        if can_act(recipe, name, beside):
            return beside
    return {}


def _ends(part: Range | Choice) -> tuple[Value, ...]:
    """Return each value of a choice, or both ends of a range."""
    if isinstance(part, Choice):
        return part.values
    return (int(part.low), int(part.high)) if part.whole else (part.low, part.high)
