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
    climbed = [*steps, base] if steps else []
    ladder = _rows(climbed, [None, *climbed[:-1]], [""] * len(climbed)) if climbed else []
    changed = _rows([each for each, _ in others], [base] * len(others), [text for _, text in others])
    outcomes = {each.variant.name: each for each in (base, *(each for each, _ in others))}
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
    gains = [_gain(other, each) for other, each in zip(against, outcomes, strict=True)]
    compared = [place for place, gain in enumerate(gains) if gain is not None]
    corrected: dict[int, float] = {}
    if compared:
        p_values = holm(np.array([gain.p_value for gain in gains if gain is not None]))
        corrected = {place: float(p) for place, p in zip(compared, p_values, strict=True)}
    return [
        Row(
            name=each.variant.name,
            factor=each.variant.factor,
            in_recipe=text,
            value=each.variant.value,
            num_seeds=len(each.seeds),
            stopped=each.stopped,
            accuracy=accuracy_over_seeds(each.right, each.groups) if each.seeds else None,
            gained=gain,
            corrected_p_value=corrected.get(place),
            train_accuracy=_mean(each.train_accuracy),
            seconds=_mean(each.seconds),
            processor_seconds=_mean(each.processor_seconds),
            parameters=each.parameters,
        )
        for place, (each, gain, text) in enumerate(zip(outcomes, gains, texts, strict=True))
    ]


def _gain(first: Outcome | None, second: Outcome) -> Estimate | None:
    """Compare on the seeds that both have."""
    if first is None:
        return None
    ours, theirs = _common(first, second)
    return compare_over_seeds(first.right[ours], second.right[theirs], second.groups) if ours else None


def _common(first: Outcome, second: Outcome) -> tuple[list[int], list[int]]:
    both = [seed for seed in first.seeds if seed in second.seeds]
    return [first.seeds.index(seed) for seed in both], [second.seeds.index(seed) for seed in both]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _insights(ladder: list[Row], changed: list[Row], outcomes: dict[str, Outcome]) -> list[Insight]:
    base, rows = outcomes[RECIPE], {row.name: row for row in changed}
    found = []
    if "no-augmentation" in rows:
        found.append(_augmentation(rows["no-augmentation"], base))
    if "constant-rate" in rows:
        found.append(_schedule(rows["constant-rate"], outcomes["constant-rate"], base))
    for name in ("float32", "mixed_bfloat16"):
        if name in rows:
            found.append(_precision(rows[name], outcomes[name], base))
    for before, row in pairwise(ladder):
        found.append(_step(before, row))
    told = {"no-augmentation", "constant-rate", "float32", "mixed_bfloat16"}
    found += _others([row for row in changed if row.name not in told])
    return [each for each in found if each is not None]


def _augmentation(row: Row, base: Outcome) -> Insight | None:
    if row.gained is None or row.accuracy is None or row.train_accuracy is None:
        return None
    ours = float(np.mean(base.train_accuracy)) - float(base.right.mean())
    theirs = row.train_accuracy - row.accuracy.value
    return Insight(
        "augmentation",
        f"Augmentation gives {_turned(row)}. Training photos are named better than test photos by {100 * theirs:.1f} "
        f"points without it, by {100 * ours:.1f} with it.",
        row.is_detectable,
    )


def _schedule(row: Row, constant: Outcome, base: Outcome) -> Insight | None:
    if row.gained is None:
        return None
    ours, theirs = _common(base, constant)
    speeds = []
    for mine, other in zip(ours, theirs, strict=True):
        target, curve = float(constant.curves[other].max()), base.curves[mine]
        if (curve >= target).any():
            needed = int(np.argmax(curve >= target)) + 1
            speeds.append((int(np.argmax(constant.curves[other])) + 1) / needed)
    if len(speeds) == len(ours) and speeds:
        ratio, ends = _ratio(speeds)
        speed = f"It reaches the constant rate's best validation accuracy {ratio:.2f} times as fast{ends}, in epochs"
    else:
        speed = f"It reaches the constant rate's best validation accuracy with {len(speeds)} of {len(ours)} seeds"
    return Insight("cosine schedule", f"The cosine schedule gives {_turned(row)}. {speed}.", row.is_detectable)


def _precision(row: Row, other: Outcome, base: Outcome) -> Insight | None:
    if row.gained is None:
        return None
    ours, theirs = _common(base, other)
    half, full = ((base, ours), (other, theirs))
    turned = row.name == "mixed_bfloat16"
    if turned:
        half, full = full, half
    parts = []
    for what, of in (("seconds", "seconds"), ("processor time", "processor_seconds")):
        shares = [getattr(half[0], of)[a] / getattr(full[0], of)[b] for a, b in zip(half[1], full[1], strict=True)]
        ratio, ends = _ratio(shares)
        parts.append(f"{ratio:.2f} of the {what}{ends}")
    difference = _signed(row) if turned else _turned(row)
    return Insight(
        "mixed precision",
        f"bfloat16 takes {' and '.join(parts)} that float32 takes, and changes accuracy by {difference}.",
        row.is_detectable,
    )


def _step(before: Row, row: Row) -> Insight | None:
    if row.gained is None:
        return None
    whole = {
        ("baseline", "batchnorm"): "BatchNorm gives",
        ("batchnorm", "dropout"): "Dropout after that gives",
        ("dropout", RECIPE): "The rest of the recipe after that gives",
    }
    what = whole.get((before.name, row.name), f"From “{before.value}” to “{row.value}” it is")  # steps were left out
    return Insight("architecture", f"{what} {_signed(row)}.", row.is_detectable)


def _others(rows: list[Row]) -> list[Insight]:
    """Name the ingredients that make a difference, the largest first, and those that make none."""
    judged = [row for row in rows if row.gained is not None]
    strong = sorted((row for row in judged if row.is_detectable), key=lambda row: -abs(row.gained.value))  # type: ignore[union-attr]
    found = [Insight(row.factor, f"{_sentence_of(row)} changes accuracy by {_signed(row)}.", True) for row in strong]
    weak = [_name_of(row) for row in judged if not row.is_detectable]
    if weak:
        found.append(Insight("the rest", f"No detectable difference: {', '.join(weak)}.", False))
    stopped = [_sentence_of(row) for row in rows if row.stopped]
    if stopped:
        found.append(Insight("stability", f"The loss became infinite: {'; '.join(stopped)}.", None))
    return found


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
    logs = np.log(values)
    if len(values) < 2:
        return float(values[0]), ""
    interval: Interval = mean_interval(logs)
    return math.exp(float(logs.mean())), f" ({math.exp(interval.low):.2f} to {math.exp(interval.high):.2f})"
