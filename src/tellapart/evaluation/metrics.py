"""Accuracy, precision, recall, F1 and loss with their intervals. Knows nothing about models or files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import bootstrap_confusion, mean_interval
from tellapart.shares import wilson

AVERAGED = tuple(f"{name}_{average}" for name in ("precision", "recall", "f1") for average in ("macro", "weighted"))


def classification_metrics(
    true: NDArray[np.int64], probabilities: NDArray[np.float64], classes: list[str]
) -> dict[str, Any]:
    """Measure how well probabilities name the true classes.

    A class that is never predicted has precision 0, one that never occurs has recall 0, as in
    scikit-learn with ``zero_division=0``; classes that neither occur nor are predicted are left out of
    macro averages. The loss is the cross-entropy of the true labels in nats, without label smoothing,
    with probabilities clipped at 1e-7.

    Args:
        true: (num_images,) class numbers.
        probabilities: (num_images, num_classes), rows that add up to 1.
        classes: names of the classes.

    Returns:
        ``num_images``, ``accuracy``, ``loss``, the macro and weighted averages of precision, recall and F1,
        ``per_class`` and ``intervals``, which holds [low, high] of 95 % for each of them.

    Raises:
        ValueError: no images, or shapes that do not fit.
    """
    if len(true) == 0 or probabilities.shape != (len(true), len(classes)):
        raise ValueError(
            f"Expected at least one image and probabilities of shape ({len(true)}, {len(classes)}); "
            f"got {probabilities.shape}."
        )
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(true, predicted, len(classes))
    losses = -np.log(np.clip(probabilities[np.arange(len(true)), true].astype(np.float64), 1e-7, 1.0))
    values = {name: float(value[0]) for name, value in _averages(confusion[None].astype(np.float64)).items()}
    correct = int(np.trace(confusion))
    drawn = bootstrap_confusion(confusion, lambda draws: _averages(draws) | _f1_of_classes(draws, classes))
    drawn |= {"accuracy": wilson(correct, len(true)), "loss": mean_interval(losses)}
    ends = {name: [interval.low, interval.high] for name, interval in drawn.items()}
    per_class, class_ends = _per_class(confusion, classes)
    for name in classes:
        class_ends[name]["f1"] = ends.pop(_f1_key(name))
    intervals = {**ends, "per_class": class_ends}
    return {
        "num_images": len(true),
        "accuracy": correct / len(true),
        "loss": float(losses.mean()),
        **values,
        "per_class": per_class,
        "intervals": intervals,
    }


def confusion_matrix(true: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Count (num_classes, num_classes) int64, true classes in rows, predicted ones in columns."""
    cells = np.bincount(true * num_classes + predicted, minlength=num_classes * num_classes)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _scores(confusion: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Map (…, num_classes, num_classes) to precision, recall, F1 and support, each (…, num_classes)."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).copy()
    support, named = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return {
        "precision": _ratio(hits, named),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + named),
        "support": support,
        "named": named,
    }


def _averages(confusion: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Map (num_draws, num_classes, num_classes) to the averaged scores, each (num_draws,)."""
    scores = _scores(confusion)
    present = ((scores["support"] + scores["named"]) > 0).astype(np.float64)
    support = scores["support"]
    result = {}
    for name in ("precision", "recall", "f1"):
        result[f"{name}_macro"] = _ratio((scores[name] * present).sum(-1), present.sum(-1))
        result[f"{name}_weighted"] = _ratio((scores[name] * support).sum(-1), support.sum(-1))
    return result


def _f1_key(name: str) -> str:
    return f"f1 of {name}"


def _f1_of_classes(confusion: NDArray[np.float64], classes: list[str]) -> dict[str, NDArray[np.float64]]:
    f1 = _scores(confusion)["f1"]
    return {_f1_key(name): f1[:, index] for index, name in enumerate(classes)}


def _per_class(confusion: NDArray[np.int64], classes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    scores = _scores(confusion.astype(np.float64))
    values, intervals = {}, {}
    for index, name in enumerate(classes):
        hits, support, named = confusion[index, index], scores["support"][index], scores["named"][index]
        values[name] = {
            "precision": float(scores["precision"][index]),
            "recall": float(scores["recall"][index]),
            "f1": float(scores["f1"][index]),
            "num_images": int(support),
        }
        intervals[name] = {
            "precision": list(asdict(wilson(hits, named)).values()),
            "recall": list(asdict(wilson(hits, support)).values()),
        }
    return values, intervals
