"""Which settings are tried, within which ranges, and what they make of a recipe. Knows nothing about Optuna."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tellapart.conditions import decides
from tellapart.settings import Recipe, acts, with_settings

Value = float | int | str | bool

MIXING: dict[str, dict[str, float]] = {
    "none": {"mixup": 0.0, "cutmix": 0.0},
    "mixup": {"mixup": 0.2, "cutmix": 0.0},
    "cutmix": {"mixup": 0.0, "cutmix": 1.0},
}
"""What each choice of ``augment.mixing`` sets: the papers' values (arXiv 1710.09412, 1905.04899)."""

# No further than `sections.Augment` allows: a strength of 2 must not make a recipe that is refused.
STRENGTH_OF = {"rotation": 0.5, "zoom": 0.95, "translation": 0.5, "contrast": 0.95, "brightness": 1.0}
"""What ``augment.strength`` multiplies, and how far each of them can go."""
MADE_UP = {
    "augment.strength": tuple(f"augment.{part}" for part in STRENGTH_OF),
    "augment.mixing": ("augment.mixup", "augment.cutmix"),
}
"""Names in a space that are not settings themselves: each stands for several."""


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


def deciders(name: str, names: Iterable[str]) -> list[str]:
    """Return those of the names whose values decide whether `name` acts."""
    pairs = {other: itertools.product(_stands_for(other), _stands_for(name)) for other in names if other != name}
    return [other for other, combinations in pairs.items() if any(itertools.starmap(decides, combinations))]


def values_of(recipe: Recipe, space: Space) -> dict[str, Value] | None:
    """Return the values in a space that are the recipe itself; None where it lies outside."""
    values: dict[str, Value] = {}
    for name, part in space.items():
        if not can_act(recipe, name, {}):
            continue
        if name == "augment.strength":
            value: Value = 1.0
        elif name == "augment.mixing":
            current = {key: getattr(recipe.augment, key) for key in ("mixup", "cutmix")}
            value = next((choice for choice, sets in MIXING.items() if sets == current), "")
        else:
            section, _, key = name.partition(".")
            value = getattr(getattr(recipe, section), key)
        is_inside = value in part.values if isinstance(part, Choice) else part.low <= float(value) <= part.high
        if not is_inside:
            return None
        values[name] = value
    return values


def space_texts(space: Space) -> dict[str, str]:
    """Return each range or choice as a user writes it."""
    return {name: _text(part) for name, part in space.items()}


def _text(part: Range | Choice) -> str:
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
                for part, most in STRENGTH_OF.items()
            }
        elif name == "augment.mixing":
            changes |= {f"augment.{part}": alpha for part, alpha in MIXING[str(value)].items()}
        else:
            changes[name] = value
    return changes


def _stands_for(name: str) -> tuple[str, ...]:
    return MADE_UP.get(name, (name,))
