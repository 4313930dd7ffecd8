"""The result of an ablation as plain values, and its words. Knows nothing about how it was trained or is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tellapart.evaluation.multi_seed import Estimate
from tellapart.evaluation.wording import p_text, points
from tellapart.records import plain

_CHANCE = 0.05


@dataclass(frozen=True)
class Row:
    """A variant in a table.

    Attributes:
        name: of the variant.
        factor: the ingredient; "" in the ladder.
        in_recipe: what the ingredient is in the recipe.
        value: what it is here.
        num_seeds: runs that ended.
        stopped: runs whose loss became infinite.
        accuracy: on the test photos; None where no run ended.
        gained: more than the recipe, or in the ladder more than the step before; None where there is none.
        corrected_p_value: with all rows of the table accounted for (Holm 1979).
        train_accuracy: mean, on the training photos as they are.
        seconds: of training, mean.
        processor_seconds: of training, mean.
        parameters: numbers in the network.
    """

    name: str
    factor: str
    in_recipe: str
    value: str
    num_seeds: int
    stopped: int
    accuracy: Estimate | None
    gained: Estimate | None
    corrected_p_value: float | None
    train_accuracy: float | None
    seconds: float | None
    processor_seconds: float | None
    parameters: int

    @property
    def is_detectable(self) -> bool:
        """True where chance does not explain the difference."""
        return self.corrected_p_value is not None and self.corrected_p_value < _CHANCE


@dataclass(frozen=True)
class Insight:
    """One finding in a sentence.

    Attributes:
        about: the ingredient.
        sentence: what was found, with its interval.
        is_detectable: None where it is not a question of chance.
    """

    about: str
    sentence: str
    is_detectable: bool | None


@dataclass(frozen=True)
class Ablation:
    """The result of `tellapart.ablate`.

    Attributes:
        photos: name of the folder.
        num_test: photos that all were judged on.
        seeds: how many were asked for.
        recipe: the row of the recipe itself.
        architecture: the ladder, from the baseline to the recipe; each row's gain is over the one before.
        hyperparameters: each ingredient changed alone; gains are over the recipe.
        insights: what it comes to.
    """

    photos: str
    num_test: int
    seeds: int
    recipe: Row
    architecture: tuple[Row, ...]
    hyperparameters: tuple[Row, ...]
    insights: tuple[Insight, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``ablation.json``; intervals are [low, high]."""
        values = dict(plain(self))
        for rows, judged in (("architecture", self.architecture), ("hyperparameters", self.hyperparameters)):
            # `plain` knows fields only, and this is a property.
            for row, judged_row in zip(values[rows], judged, strict=True):
                row["is_detectable"] = judged_row.is_detectable
        return values


def tables(ablation: Ablation) -> str:
    """Return the three tables as Markdown."""
    return "\n".join([
        "### Hyperparameter impact", "",
        "| factor | baseline | changed to | test accuracy | Δ accuracy (points) | p | processor s |",
        "|---|---|---|---|---|---|---|",
        _line("**the recipe**", "", "", ablation.recipe),
        *(_line(row.factor, row.in_recipe, row.value, row) for row in ablation.hyperparameters), "",
        "### Architecture variations", "",
        "| network | parameters | test accuracy | Δ accuracy (points) | p | processor s |",
        "|---|---|---|---|---|---|",
        *(_line(row.value, f"{row.parameters:,}", None, row) for row in ablation.architecture), "",
        "### Key insights", "",
        "| about | finding | significant |",
        "|---|---|---|",
        *(f"| {insight.about} | {insight.sentence} | {_yes(insight.is_detectable)} |" for insight in ablation.insights),
        "",
    ])  # fmt: skip


def _line(first: str, second: str, third: str | None, row: Row) -> str:
    cells = [first, second] + ([] if third is None else [third])
    if row.accuracy is None:
        return f"| {' | '.join(cells)} | the loss became infinite | | | |"
    low, high = row.accuracy.interval.low, row.accuracy.interval.high
    cells.append(f"{row.accuracy.value:.3f} ({low:.3f} to {high:.3f})")
    if row.gained is None:
        cells += ["", ""]
    else:
        text = f"{points(row.gained.value)} ({points(row.gained.interval.low)} to {points(row.gained.interval.high)})"
        chance = p_text(row.corrected_p_value).removeprefix("p ").removeprefix("= ") if row.corrected_p_value else ""
        cells += [f"**{text}**" if row.is_detectable else text, chance]
    cells.append("–" if row.processor_seconds is None else f"{row.processor_seconds:.0f}")
    return f"| {' | '.join(cells)} |"


def _yes(is_detectable: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[is_detectable]
