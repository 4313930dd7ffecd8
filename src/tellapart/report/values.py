"""The numbers of a report as plain values for ``evaluation.json`` and ``envelope.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from tellapart.evaluation.calibration import Calibration
from tellapart.evaluation.ranking import macro_average
from tellapart.evaluation.robustness import Envelope
from tellapart.records import Interval
from tellapart.report.examine import Findings


def values_of(found: Findings) -> dict[str, Any]:
    """Return all numbers of a report; every metric with its interval, what is not a number as None."""
    robust, looks = found.robustness, found.looks
    values = {
        "side": found.subject.main,
        "num_images": len(found.subject.at(found.subject.main)),
        "metrics": found.metrics,
        "baseline": {"accuracy": found.baseline[0], "interval": _ends(found.baseline[1])} if found.baseline else None,
        "top_k": {str(k): {"accuracy": value, "interval": _ends(ends)} for k, (value, ends) in found.top_k.items()},
        "ranking": {
            "macro": macro_average(found.ranking),
            "per_class": {
                curve.name: {
                    "roc_auc": curve.roc_auc,
                    "average_precision": curve.average_precision,
                    "intervals": {name: _ends(ends) for name, ends in curve.intervals.items()},
                }
                for curve in found.ranking
            },
        },
        "calibration": _calibration(found.calibration),
        "calibration_scaled": _calibration(found.calibration_scaled) if found.calibration_scaled else None,
        "temperature": found.temperature,
        "prediction_sets": found.sets.to_dict("records") if found.sets is not None else None,
        "suspected_labels": int(found.labels["suspected"].sum()) if found.labels is not None else None,
        "robustness": {
            "num_images": robust.num_images,
            "clean_accuracy": robust.clean_accuracy,
            "mean_corruption_error": robust.mean_corruption_error,
            "relative": robust.relative,
            "intervals": {
                "mean_corruption_error": _ends(robust.interval),
                "relative": _ends(robust.relative_interval),
            },
            "runs": robust.runs.to_dict("records"),
        },
        "slices": [asdict(part) for part in found.slices],
        "methods": {name: {**asdict(each), "score": each.score} for name, each in looks.methods.items()}
        if looks
        else {},
        "sanity": asdict(looks.sanity) if looks else None,
        "shortcuts": {**asdict(found.shortcuts), "alarm": found.shortcuts.alarm} if found.shortcuts else None,
        "num_not_finite": found.subject.num_not_finite,
        "missing": found.missing,
        "seconds": found.seconds,
    }
    plain: dict[str, Any] = _plain(values)
    return plain


def envelope_record(envelope: Envelope) -> dict[str, Any]:
    """Return what serving needs to know of the envelope: limits by measure, None where nothing limits it."""
    limits = {name: [_finite(low), _finite(high)] for name, (low, high) in envelope.limits.items()}
    record: dict[str, Any] = _plain(
        {"accuracy": envelope.accuracy, "limits": limits, "bins": envelope.bins.to_dict("records")}
    )
    return record


def _calibration(found: Calibration) -> dict[str, Any]:
    intervals = {name: _ends(ends) for name, ends in found.intervals.items()}
    values = {name: getattr(found, name) for name in ("ece", "ece_plain", "brier", "log_loss")}
    return values | {"intervals": intervals}


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return _finite(value)
    return value
