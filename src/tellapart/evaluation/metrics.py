"""Accuracy, precision, recall, F1 and loss with their intervals. Knows nothing about models or files."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.averages import SCORES, average_intervals, averages, count, scores
from tellapart.evaluation.intervals import several, share_interval, share_intervals, skewed_mean_interval
from tellapart.records import Interval

AVERAGED = tuple(f"{name}_{average}" for name in SCORES for average in ("macro", "weighted"))
TINY = 1e-7
"""Probabilities are kept this far from 0 before a logarithm is taken."""
LOSS_BOUNDS = (0.0, float(-np.log(TINY)))


def classification_metrics(
    true: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    classes: list[str],
    groups: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Measure how well probabilities name the true classes.

    A class that is never predicted has precision 0, one that never occurs has recall 0, as in
    scikit-learn with ``zero_division=0``; classes that neither occur nor are predicted are left out of
    macro averages. The loss is the cross-entropy of the true labels in nats, without label smoothing,
    with probabilities clipped at 1e-7.

    Intervals: Wilson's for accuracy, and for each class's precision, recall and F1 (F1 = 2J / (1 + J), where the
    Jaccard index J is a plain share of the photos that belong to the class or are said to); `average_intervals` for
    averages; `skewed_mean_interval` for the loss. All of them take photos of one group for one as far as they are
    alike. What they cover: benchmarks/interval_coverage.py.

    Args:
        true: (num_images,) class numbers.
        probabilities: (num_images, num_classes), rows that add up to 1.
        classes: names of the classes.
        groups: (num_images,) int, the group of each image; None: each stands for itself.

    Returns:
        ``num_images``, ``num_groups``, ``accuracy``, ``loss``, the macro and weighted averages of precision, recall
        and F1, ``per_class`` and ``intervals``, which holds [low, high] of 95 % for each of them.

    Raises:
        ValueError: no images, or shapes that do not fit.
    """
    if len(true) == 0 or probabilities.shape != (len(true), len(classes)):
        raise ValueError(
            f"Expected at least one image and probabilities of shape ({len(true)}, {len(classes)}); "
            f"got {probabilities.shape}."
        )
    if groups is not None and groups.shape != true.shape:
        raise ValueError(f"Expected a group for each of {len(true)} images; got shape {groups.shape}.")
    predicted = probabilities.argmax(axis=1)
    counts, numbers = count(true, predicted, len(classes)), several(groups)
    losses = photo_losses(true, probabilities)
    intervals = {
        **average_intervals(true, predicted, len(classes), numbers),
        "accuracy": share_interval(predicted == true, numbers),
        "loss": skewed_mean_interval(losses, numbers, bounds=LOSS_BOUNDS),
    }
    class_scores = scores(counts)
    return {
        "num_images": len(true),
        "num_groups": len(true) if numbers is None else int(numbers.max()) + 1,
        "accuracy": int(counts.hits.sum()) / len(true),
        "loss": float(losses.mean()),
        **averages(counts),
        "per_class": {
            name: {score: float(class_scores[score][at]) for score in SCORES} | {"num_images": int(counts.support[at])}
            for at, name in enumerate(classes)
        },
        "intervals": {
            **{name: _ends(interval) for name, interval in intervals.items()},
            "per_class": _class_intervals(true, predicted, classes, numbers),
        },
    }


def photo_losses(true: NDArray[np.int64], probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each photo's cross-entropy in nats, (num_images,) float64."""
    return -np.log(np.clip(probabilities[np.arange(len(true)), true].astype(np.float64), TINY, 1.0))


def confusion_matrix(true: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Count (num_classes, num_classes) int64, true classes in rows, predicted ones in columns."""
    # One number for each cell: counting is one pass over the photos.
    cells = np.bincount(true * num_classes + predicted, minlength=num_classes * num_classes)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def _class_intervals(
    true: NDArray[np.int64], predicted: NDArray[np.int64], classes: list[str], groups: NDArray[np.int64] | None
) -> dict[str, dict[str, list[float]]]:
    """Return Wilson's intervals of each class's precision, recall and F1."""
    right, total = true == predicted, len(classes)
    # A photo that is named wrongly belongs to the union of both its classes, that of F1, so it stands in it twice.
    either = np.concatenate([true, predicted[~right]])
    in_either = None if groups is None else np.concatenate([groups, groups[~right]])
    jaccard = share_intervals(np.concatenate([right, right[~right]]), either, total, in_either)
    intervals = {
        "precision": share_intervals(right, predicted, total, groups),
        "recall": share_intervals(right, true, total, groups),
        "f1": [Interval(2 * ends.low / (1 + ends.low), 2 * ends.high / (1 + ends.high)) for ends in jaccard],
    }
    return {name: {score: _ends(intervals[score][at]) for score in SCORES} for at, name in enumerate(classes)}


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
