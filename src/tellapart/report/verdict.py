"""The verdict: what the numbers mean in a few sentences, what is wrong with the data, what to do next.

Knows nothing about pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tellapart.evaluation.wording import percent
from tellapart.report.part import Advice, Examination, Part
from tellapart.report.parts.metrics import Metrics


@dataclass(frozen=True)
class Verdict:
    """What stands on top of the report.

    Attributes:
        headline: one sentence with the accuracy.
        trust: "trust", "with care" or "no": whether the accuracy can be believed as it stands; "guess": it can, and is
            not shown to be better than a guess.
        sentences: what it means.
        problems: what is wrong with the data, worst first.
        steps: what to do next, in order of what it should bring.
    """

    headline: str
    trust: str
    sentences: tuple[str, ...]
    problems: tuple[str, ...]
    steps: tuple[str, ...]


def verdict(examination: Examination, parts: Sequence[Part]) -> Verdict:
    """Put what was found into words.

    Args:
        examination: all that was computed.
        parts: whose advice counts.
    """
    subject, metrics = examination.subject, examination.found["metrics"]
    measured = metrics.of_main
    limits = measured.get("intervals", {}).get("accuracy")
    interval_text = (
        f"95 % interval {percent(limits[0])} to {percent(limits[1])}" if limits else "photos it was trained on"
    )
    headline = (
        f"{percent(measured['accuracy'])} of {measured['num_images']:,} {subject.main} photos are classified correctly "
        f"({interval_text})."
    )
    # Worst first: findings that falsify the numbers, then warnings.
    problems = [f["message"] for f in examination.health if f["severity"] == "falsifies"]
    problems += [f["message"] for f in examination.health if f["severity"] == "warning"]
    if subject.num_not_finite:
        # Before all others: no figure of such a model means anything.
        problems.insert(0, f"The model gave no finite probabilities for {subject.num_not_finite:,} photos.")
    if subject.unreadable:
        problems.append(f"{len(subject.unreadable):,} photos cannot be read and were left out.")
    is_falsified = any(f["severity"] == "falsifies" for f in examination.health)
    advice = [step for part in parts for step in part.advice(examination, examination.found[part.name])]
    if is_falsified:
        advice.append(Advice(1, "Fix the data first: the findings below would make any model look better than it is."))
    # Steps come in order of urgency, whichever part they are from.
    steps = [step.text for step in sorted(advice, key=lambda step: step.urgency)]
    shortcuts = examination.found["shortcuts"]
    is_doubtful = is_falsified or (shortcuts is not None and shortcuts.alarm)
    trust = "no" if subject.num_not_finite else "with care" if is_doubtful else "trust"
    if trust == "trust" and not metrics.beats_guessing:
        trust = "guess"
    steps = steps or ["Nothing stands out. Watch the model on new photos."]
    return Verdict(headline, trust, tuple(_sentences(examination, metrics)), tuple(problems), tuple(steps))


def _sentences(examination: Examination, metrics: Metrics) -> list[str]:
    measured = metrics.of_main
    baselines = f"Always predicting the most frequent class would be right in {percent(metrics.guessing)}"
    if metrics.baseline is not None:
        value, limits = metrics.baseline
        between = f"{percent(limits.low)} to {percent(limits.high)}"
        baselines += f"; a linear model on 8 × 8 coloured squares in {percent(value)} ({between})"
    lines = [baselines + "."]
    # A class without photos has an F1 of 0, and is not the hardest.
    seen = [name for name, values in measured["per_class"].items() if values["num_images"]]
    worst = min(seen, key=lambda name: measured["per_class"][name]["f1"])
    lines.append(
        f"The hardest class is {worst}: precision {percent(measured['per_class'][worst]['precision'])}, "
        f"recall {percent(measured['per_class'][worst]['recall'])}."
    )
    if "train" in metrics.metrics and metrics.main != "train":
        lines.append(
            f"On the photos it was trained on it is right in {percent(metrics.metrics['train']['accuracy'])}: "
            + ("it has memorised some of them." if metrics.overfits else "it has not memorised them.")
        )
    return lines
