"""How well the probabilities order images: top-k accuracy, ROC and precision-recall curves, class against rest.

Knows nothing about models or files. `true` is (num_images,) int64, `probabilities` (num_images, num_classes) float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t

from tellapart.randomness import generator
from tellapart.records import Interval
from tellapart.shares import wilson

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One class against the rest.

    Attributes:
        name: of the class.
        roc_auc: area under the ROC curve; NaN where the class, or all others, do not occur.
        average_precision: as scikit-learn defines it, the sum of precision times the step in recall; NaN likewise.
        intervals: of both.
        false_positive_rate: of the ROC curve, (num_points,).
        true_positive_rate: of the ROC curve, which is also the recall.
        precision: at the same thresholds; 1 where nothing is named yet.
    """

    name: str
    roc_auc: float
    average_precision: float
    intervals: dict[str, Interval]
    false_positive_rate: Floats
    true_positive_rate: Floats
    precision: Floats


def top_k_accuracy(true: Numbers, probabilities: Floats, k: int) -> tuple[float, Interval]:
    """Return the share of images whose true class is among the `k` most probable; ties go to the first class."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    hits = int((order == true[:, None]).any(axis=1).sum())
    return hits / len(true), wilson(hits, len(true))


def curves(true: Numbers, probabilities: Floats, classes: list[str]) -> list[Curve]:
    """Return each class's curves against the rest, in the order of `classes`."""
    return [_curve(true == index, probabilities[:, index], name) for index, name in enumerate(classes)]


def macro_average(found: list[Curve]) -> dict[str, float]:
    """Return the means of ``roc_auc`` and ``average_precision`` over the classes that have them; NaN if none has."""
    return {
        name: float(np.mean(values)) if (values := [v for c in found if np.isfinite(v := getattr(c, name))]) else np.nan
        for name in ("roc_auc", "average_precision")
    }


def _curve(positive: NDArray[np.bool_], score: Floats, name: str) -> Curve:
    count = int(positive.sum())
    if count in (0, len(positive)):
        none, ends = np.zeros(0), Interval(float("nan"), float("nan"))
        nan = float("nan")
        return Curve(name, nan, nan, {"roc_auc": ends, "average_precision": ends}, none, none, none)
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # of each run of equal scores
    hits = np.cumsum(positive[order])[last]
    named = last + 1
    recall = np.concatenate([[0.0], hits / count])
    false_rate = np.concatenate([[0.0], (named - hits) / (len(positive) - count)])
    precision = np.concatenate([[1.0], hits / named])
    average = float((np.diff(recall) * precision[1:]).sum())
    area, interval = roc_auc(positive, score)
    intervals = {"roc_auc": interval, "average_precision": _average_precision_interval(positive[order], last)}
    return Curve(name, area, average, intervals, false_rate, recall, precision)


def roc_auc(positive: NDArray[np.bool_], score: Floats) -> tuple[float, Interval]:
    """Return the area under the ROC curve with its interval.

    The area is the share of (positive, negative) pairs in the right order, ties counted as half (Mann & Whitney 1947);
    its variance is DeLong's (1988). The interval is taken on the logit scale, so that it stays within 0 and 1, with
    Student's t at Welch's degrees of freedom: with few positives the variance itself is uncertain.
    """
    both, ours, theirs = rankdata(score), rankdata(score[positive]), rankdata(score[~positive])
    num_positive, num_negative = len(ours), len(theirs)
    above = (both[positive] - ours) / num_negative  # share of negatives below each positive
    below = 1 - (both[~positive] - theirs) / num_positive  # share of positives above each negative
    area = float(above.mean())
    spread = [values.var(ddof=1) / len(values) if len(values) > 1 else 0.25 for values in (above, below)]
    deviation = float(np.sqrt(sum(spread)))
    freedom = (
        sum(spread) ** 2
        / sum(part**2 / max(len(values) - 1, 1) for part, values in zip(spread, (above, below), strict=True))
        if deviation
        else 1.0
    )
    if not 0 < area < 1:
        # All pairs in order say nothing of the variance: as many hits as there are of the rarer kind, by Wilson.
        few = min(num_positive, num_negative)
        return area, wilson(round(area) * few, few)
    logit, half = np.log(area / (1 - area)), t.ppf(0.975, freedom) * deviation / (area * (1 - area))
    low, high = (float(1 / (1 + np.exp(-end))) for end in (logit - half, logit + half))
    return area, Interval(low, high)


def _average_precision_interval(
    positive: NDArray[np.bool_], last: NDArray[np.int64], *, resamples: int = 500
) -> Interval:
    """Return the percentile bootstrap interval over images in falling order of score; `last` ends runs of ties."""
    rng = generator(0, "average precision")
    found = []
    for _ in range(0, resamples, 50):
        counts = rng.multinomial(len(positive), np.full(len(positive), 1 / len(positive)), size=50)
        named = np.cumsum(counts, axis=1)[:, last]
        hits = np.cumsum(counts * positive, axis=1)[:, last]
        total = np.maximum(hits[:, -1:], 1)
        steps = np.diff(hits, axis=1, prepend=0) / total
        found.append((steps * hits / np.maximum(named, 1)).sum(axis=1))
    return Interval(*(float(end) for end in np.quantile(np.concatenate(found), (0.025, 0.975))))
