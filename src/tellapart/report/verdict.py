"""The verdict: what the numbers mean in a few sentences, what is wrong with the data, what to do next.

Knows nothing about pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tellapart.evaluation.wording import percent
from tellapart.report.examine import Findings


@dataclass(frozen=True)
class Verdict:
    """What stands on top of the report.

    Attributes:
        headline: one sentence with the accuracy.
        trust: "trust", "with care" or "no": whether the accuracy can be believed as it stands.
        sentences: what it means.
        problems: what is wrong with the data, worst first.
        steps: what to do next, in order of what it should bring.
    """

    headline: str
    trust: str
    sentences: tuple[str, ...]
    problems: tuple[str, ...]
    steps: tuple[str, ...]


def verdict(found: Findings, health: list[dict[str, Any]]) -> Verdict:
    """Put the findings into words.

    Args:
        found: all that was computed.
        health: the findings of ``health.json``, each with ``kind``, ``severity`` and ``message``; empty for photos that
            were not checked.
    """
    side = found.metrics[found.subject.main]
    ends = side.get("intervals", {}).get("accuracy")
    between = f"95 % interval {percent(ends[0])} to {percent(ends[1])}" if ends else "the photos it was trained on"
    headline = (
        f"{percent(side['accuracy'])} of {side['num_images']:,} {found.subject.main} photos are named rightly "
        f"({between})."
    )
    problems = [f["message"] for f in health if f["severity"] == "falsifies"]
    problems += [f["message"] for f in health if f["severity"] == "warning"]
    if found.subject.num_not_finite:
        problems.insert(0, f"The model gave no finite probabilities for {found.subject.num_not_finite:,} photos.")
    if found.subject.unreadable:
        problems.append(f"{len(found.subject.unreadable):,} photos cannot be read and were left out.")
    falsified = any(f["severity"] == "falsifies" for f in health)
    alarm = found.shortcuts is not None and found.shortcuts.alarm
    trust = "no" if found.subject.num_not_finite else "with care" if falsified or alarm else "trust"
    return Verdict(headline, trust, tuple(_sentences(found)), tuple(problems), tuple(_steps(found, falsified, alarm)))


def _sentences(found: Findings) -> list[str]:
    side, subject = found.metrics[found.subject.main], found.subject
    chance = float(np.bincount(subject.numbers[subject.at(subject.main)]).max() / side["num_images"])
    compared = f"Always naming the most frequent class would be right in {percent(chance)}"
    if found.baseline is not None:
        value, ends = found.baseline
        between = f"{percent(ends.low)} to {percent(ends.high)}"
        compared += f"; a linear model on 8 × 8 coloured squares in {percent(value)} ({between})"
    lines = [compared + "."]
    worst = min(side["per_class"], key=lambda name: side["per_class"][name]["f1"])
    lines.append(
        f"The hardest class is {worst}: precision {percent(side['per_class'][worst]['precision'])}, "
        f"recall {percent(side['per_class'][worst]['recall'])}."
    )
    if "train" in found.metrics and found.subject.main != "train":
        lines.append(
            f"On the photos it was trained on it is right in {percent(found.metrics['train']['accuracy'])}: "
            + ("it has learned some of them by heart." if _overfits(found) else "it has not learned them by heart.")
        )
    return lines


def _steps(found: Findings, falsified: bool, alarm: bool) -> list[str]:
    side = found.metrics[found.subject.main]
    steps = []
    if falsified:
        steps.append("Mend the data first: the findings below would make any model look better than it is.")
    if alarm:
        steps.append(
            "Take photos of each class in the same surroundings: the surroundings alone give much of the answer away."
        )
    if found.labels is not None and found.labels["suspected"].sum() >= 5:
        steps.append(f"Look through the {int(found.labels['suspected'].sum()):,} labels that look wrong, worst first.")
    if found.slices and found.slices[0].is_worse:
        part = found.slices[0]
        steps.append(
            f"Add photos where {part.column} is {part.value}: {percent(part.accuracy)} there, "
            f"{percent(part.accuracy_elsewhere)} elsewhere."
        )
    low, high = side["intervals"]["accuracy"] if "intervals" in side else (0.0, 1.0)
    if high - low > 0.06:
        steps.append(f"Collect more test photos: the interval is {100 * (high - low):.0f} points wide.")
    if _overfits(found):
        steps.append("Collect more training photos, or train with more augmentation: training accuracy is higher.")
    return steps or ["Nothing stands out. Watch the model on new photos."]


def _overfits(found: Findings) -> bool:
    """Return whether accuracy in training is higher than the interval of held-out photos explains."""
    side = found.metrics[found.subject.main]
    if "train" not in found.metrics or "intervals" not in side:
        return False
    return bool(found.subject.main != "train" and found.metrics["train"]["accuracy"] > side["intervals"]["accuracy"][1])
