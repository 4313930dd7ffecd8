"""Judges the runs of an ablation: its three tables, and what they come to in words. Knows nothing about files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import mean_interval
from tellapart.evaluation.multi_seed import Estimate, Right, accuracy_over_seeds, compare_over_seeds
from tellapart.evaluation.paired import holm
from tellapart.evaluation.wording import p_text, points
from tellapart.experiments.ablation.plan import RECIPE, Variant
from tellapart.experiments.ablation.result import Ablation, Insight, Row
from tellapart.records import Interval


@dataclass(frozen=True)
class Outcome:
    """What the runs of one variant gave.

    Attributes:
        variant: what was trained.
        seeds: of the runs that ended, in their order.
        right: (num_seeds, num_test) bool, the test photos that each run got right.
        train_accuracy: of each run, on the training photos as they are.
        curves: of each run, its validation accuracy after each epoch.
        seconds: of each run's training.
        processor_seconds: of all processors in that time.
        parameters: numbers in the network.
        stopped: runs whose loss became infinite.
        groups: (num_test,) of the test photos; None: each stands for itself.
    """

    variant: Variant
    seeds: tuple[int, ...]
    right: Right
    train_accuracy: tuple[float, ...]
    curves: tuple[NDArray[np.float64], ...]
    seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...]
    parameters: int
    stopped: int
    groups: NDArray[np.int64] | None = None


def summarise(
    photos: str, num_seeds: int, steps: Sequence[Outcome], base: Outcome, others: Sequence[tuple[Outcome, str]]
) -> Ablation:
    """Make the three tables.

    Args:
        photos: name of the folder.
        num_seeds: how many were asked for.
        steps: of the ladder, in order, without the recipe.
        base: the recipe.
        others: each ingredient changed alone, with what it is in the recipe.
    """
    # The recipe is the ladder's last step. Each step is compared with the one before it, not with the recipe.
    ladder_outcomes = [*steps, base] if steps else []
    ladder = (
        _rows(ladder_outcomes, [None, *ladder_outcomes[:-1]], [""] * len(ladder_outcomes)) if ladder_outcomes else []
    )
    changed = _rows([outcome for outcome, _ in others], [base] * len(others), [text for _, text in others])
    outcomes = {outcome.variant.name: outcome for outcome in (base, *(outcome for outcome, _ in others))}
    return Ablation(
        photos=photos,
        num_test=base.right.shape[1],
        seeds=num_seeds,
        recipe=_rows([base], [None], [""])[0],
        architecture=tuple(ladder),
        hyperparameters=tuple(changed),
        insights=tuple(_insights(ladder, changed, outcomes)),
    )


def _rows(outcomes: Sequence[Outcome], against: Sequence[Outcome | None], texts: Sequence[str]) -> list[Row]:
    gains = [_gain(other, outcome) for other, outcome in zip(against, outcomes, strict=True)]
    compared = [index for index, gain in enumerate(gains) if gain is not None]
    corrected: dict[int, float] = {}
    if compared:
        # Only rows that are compared with something are tests; the others must not cost the correction.
        p_values = holm(np.array([gain.p_value for gain in gains if gain is not None]))
        corrected = {index: float(p) for index, p in zip(compared, p_values, strict=True)}
    return [
        Row(
            name=outcome.variant.name,
            factor=outcome.variant.factor,
            in_recipe=text,
            value=outcome.variant.value,
            num_seeds=len(outcome.seeds),
            stopped=outcome.stopped,
            accuracy=accuracy_over_seeds(outcome.right, outcome.groups) if outcome.seeds else None,
            gained=gain,
            corrected_p_value=corrected.get(index),
            train_accuracy=_mean(outcome.train_accuracy),
            seconds=_mean(outcome.seconds),
            processor_seconds=_mean(outcome.processor_seconds),
            parameters=outcome.parameters,
        )
        for index, (outcome, gain, text) in enumerate(zip(outcomes, gains, texts, strict=True))
    ]


def _gain(first: Outcome | None, second: Outcome) -> Estimate | None:
    """Compare on the seeds that both have."""
    if first is None:
        return None
    first_rows, second_rows = _common(first, second)
    return compare_over_seeds(first.right[first_rows], second.right[second_rows], second.groups) if first_rows else None


def _common(first: Outcome, second: Outcome) -> tuple[list[int], list[int]]:
    shared_seeds = [seed for seed in first.seeds if seed in second.seeds]
    return [first.seeds.index(seed) for seed in shared_seeds], [second.seeds.index(seed) for seed in shared_seeds]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _insights(ladder: list[Row], changed: list[Row], outcomes: dict[str, Outcome]) -> list[Insight]:
    base, rows = outcomes[RECIPE], {row.name: row for row in changed}
    insights = []
    if "no-augmentation" in rows:
        insights.append(_augmentation(rows["no-augmentation"], base))
    if "constant-rate" in rows:
        insights.append(_schedule(rows["constant-rate"], outcomes["constant-rate"], base))
    for name in ("float32", "mixed_bfloat16"):
        if name in rows:
            insights.append(_precision(rows[name], outcomes[name], base))
    for before, row in pairwise(ladder):
        insights.append(_step(before, row))
    covered = {"no-augmentation", "constant-rate", "float32", "mixed_bfloat16"}
    insights += _others([row for row in changed if row.name not in covered])
    return [insight for insight in insights if insight is not None]


def _augmentation(row: Row, base: Outcome) -> Insight | None:
    if row.gained is None or row.accuracy is None or row.train_accuracy is None:
        return None
    gap_on = float(np.mean(base.train_accuracy)) - float(base.right.mean())
    gap_off = row.train_accuracy - row.accuracy.value
    return Insight(
        "augmentation",
        f"Augmentation gives {_turned(row)}. Training photos are named better than test photos by {100 * gap_off:.1f} "
        f"points without it, by {100 * gap_on:.1f} with it.",
        row.is_detectable,
    )


def _schedule(row: Row, constant: Outcome, base: Outcome) -> Insight | None:
    if row.gained is None:
        return None
    base_rows, constant_rows = _common(base, constant)
    speeds = []
    for base_row, constant_row in zip(base_rows, constant_rows, strict=True):
        target, curve = float(constant.curves[constant_row].max()), base.curves[base_row]
        if (curve >= target).any():
            # argmax of truth values is the first True: the first epoch that reaches the target.
            needed = int(np.argmax(curve >= target)) + 1
            speeds.append((int(np.argmax(constant.curves[constant_row])) + 1) / needed)
    # A mean over those seeds alone that got there would make the schedule look faster than it is.
    if len(speeds) == len(base_rows) and speeds:
        ratio, ends = _ratio(speeds)
        speed = f"It reaches the constant rate's best validation accuracy {ratio:.2f} times as fast{ends}, in epochs"
    else:
        speed = f"It reaches the constant rate's best validation accuracy with {len(speeds)} of {len(base_rows)} seeds"
    return Insight("cosine schedule", f"The cosine schedule gives {_turned(row)}. {speed}.", row.is_detectable)


def _precision(row: Row, other: Outcome, base: Outcome) -> Insight | None:
    if row.gained is None:
        return None
    base_rows, other_rows = _common(base, other)
    bfloat16, float32 = ((base, base_rows), (other, other_rows))
    turned = row.name == "mixed_bfloat16"
    if turned:
        bfloat16, float32 = float32, bfloat16
    parts = []
    for quantity, attribute in (("seconds", "seconds"), ("processor time", "processor_seconds")):
        shares = [
            getattr(bfloat16[0], attribute)[a] / getattr(float32[0], attribute)[b]
            for a, b in zip(bfloat16[1], float32[1], strict=True)
        ]
        ratio, ends = _ratio(shares)
        parts.append(f"{ratio:.2f} of the {quantity}{ends}")
    difference = _signed(row) if turned else _turned(row)
    return Insight(
        "mixed precision",
        f"bfloat16 takes {' and '.join(parts)} that float32 takes, and changes accuracy by {difference}.",
        row.is_detectable,
    )


def _step(before: Row, row: Row) -> Insight | None:
    if row.gained is None:
        return None
    openings = {
        ("baseline", "batchnorm"): "BatchNorm gives",
        ("batchnorm", "dropout"): "Dropout after that gives",
        ("dropout", RECIPE): "The rest of the recipe after that gives",
    }
    opening = openings.get(
        (before.name, row.name), f"From “{before.value}” to “{row.value}” it is"
    )  # steps were left out
    return Insight("architecture", f"{opening} {_signed(row)}.", row.is_detectable)


def _others(rows: list[Row]) -> list[Insight]:
    """Name the ingredients that make a difference, the largest first, and those that make none."""
    judged = [row for row in rows if row.gained is not None]
    strong = sorted((row for row in judged if row.is_detectable), key=lambda row: -abs(row.gained.value))  # type: ignore[union-attr]
    insights = [Insight(row.factor, f"{_sentence_of(row)} changes accuracy by {_signed(row)}.", True) for row in strong]
    weak = [_name_of(row) for row in judged if not row.is_detectable]
    if weak:
        insights.append(Insight("the rest", f"No detectable difference: {', '.join(weak)}.", False))
    stopped = [_sentence_of(row) for row in rows if row.stopped]
    if stopped:
        insights.append(Insight("stability", f"The loss became infinite: {'; '.join(stopped)}.", None))
    return insights


def _name_of(row: Row) -> str:
    return row.value if row.factor == "augmentation" else f"{row.factor} {row.value}"


def _sentence_of(row: Row) -> str:
    words = _name_of(row)
    return f"{words[0].upper()}{words[1:]}" + (f" (recipe: {row.in_recipe})" if row.in_recipe else "")


def _signed(row: Row) -> str:
    assert row.gained is not None
    low, high = row.gained.interval.low, row.gained.interval.high
    chance = "" if row.corrected_p_value is None else f", {p_text(row.corrected_p_value)}"
    return f"{points(row.gained.value)} points ({points(low)} to {points(high)}{chance})"


def _turned(row: Row) -> str:
    """Say what the recipe has over a row that leaves something out."""
    assert row.gained is not None
    low, high = -row.gained.interval.high, -row.gained.interval.low
    chance = "" if row.corrected_p_value is None else f", {p_text(row.corrected_p_value)}"
    return f"{points(-row.gained.value)} points ({points(low)} to {points(high)}{chance})"


def _ratio(values: Sequence[float]) -> tuple[float, str]:
    """Return the geometric mean and its interval over seeds as text, where there is more than one."""
    # Ratios are averaged as logarithms: half and double then cancel.
    logs = np.log(values)
    if len(values) < 2:
        return float(values[0]), ""
    interval: Interval = mean_interval(logs)
    return math.exp(float(logs.mean())), f" ({math.exp(interval.low):.2f} to {math.exp(interval.high):.2f})"
