"""How far probabilities can be believed: calibration, prediction sets, abstention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tellapart.evaluation.calibration import (
    Abstention,
    Calibration,
    abstention,
    at_temperature,
    calibration,
    conformal_sets,
    conformal_threshold,
    fit_temperature,
)
from tellapart.evaluation.intervals import share_interval
from tellapart.report import figures
from tellapart.report.part import Examination, Part, ends

COVERAGES = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Sureness:
    """How sure the network is, and how sure it should be.

    Attributes:
        unscaled: calibration without the temperature; a shift for balanced classes stays in it.
        scaled: after temperature scaling; None: there is no temperature.
        temperature: fitted on validation; it is inside the network of a run.
        sets: a row per stated coverage: ``coverage``, ``threshold``, ``covered``, ``low``, ``high``, ``mean_size``,
            ``single``; None: there are no validation photos.
        abstention: accuracy against the share answered.
    """

    unscaled: Calibration
    scaled: Calibration | None
    temperature: float | None
    sets: pd.DataFrame | None
    abstention: Abstention


def _compute(e: Examination) -> Sureness:
    return Sureness(*_calibrations(e), _sets(e), abstention(e.true, e.probabilities, e.groups))


def _calibrations(e: Examination) -> tuple[Calibration, Calibration | None, float | None]:
    """Return the calibration before and after temperature scaling, and the temperature.

    A run's network has the temperature inside; one that was made before runs were calibrated gets it here.
    """
    # `held_out` is empty where the report is about the validation photos themselves: nothing is judged on what it was
    # fitted to.
    subject, true, groups, held_out = e.subject, e.true, e.groups, e.held_out
    probabilities, temperature = e.probabilities, subject.temperature
    # Dividing the logits by the inverse takes it out again.
    if temperature is not None:
        return (
            calibration(true, at_temperature(probabilities, 1 / temperature), groups),
            calibration(true, probabilities, groups),
            temperature,
        )
    if not len(held_out):
        e.missing["temperature scaling"] = "There are no validation photos to fit it on."
        return calibration(true, probabilities, groups), None, None
    temperature = fit_temperature(subject.numbers[held_out], subject.probabilities[held_out])
    scaled = calibration(true, at_temperature(probabilities, temperature), groups)
    return calibration(true, probabilities, groups), scaled, temperature


def _sets(e: Examination) -> pd.DataFrame | None:
    """Return a row per promised coverage: what was kept of it, and how large the sets are."""
    subject, held_out, at = e.subject, e.held_out, e.at
    if not len(held_out):
        e.missing["prediction sets"] = "There are no validation photos to fit them on."
        return None
    rows = []
    for coverage in COVERAGES:
        # Fitted on validation photos, counted on the main split, which had no part in the fit.
        threshold = conformal_threshold(subject.numbers[held_out], subject.probabilities[held_out], coverage)
        sets = conformal_sets(subject.probabilities[at], threshold)
        covered = sets[np.arange(len(at)), subject.numbers[at]]
        interval = share_interval(covered, e.groups)
        sizes = sets.sum(axis=1)
        rows.append((
            coverage, threshold, float(covered.mean()), interval.low, interval.high, float(sizes.mean()),
            float((sizes == 1).mean()),
        ))  # fmt: skip
    columns = ["coverage", "threshold", "covered", "low", "high", "mean_size", "single"]
    return pd.DataFrame(rows, columns=columns)


def _to_json(value: Sureness) -> dict[str, Any]:
    return {
        "calibration": _measures(value.unscaled),
        "calibration_scaled": _measures(value.scaled) if value.scaled else None,
        "temperature": value.temperature,
        "prediction_sets": value.sets.to_dict("records") if value.sets is not None else None,
    }


def _measures(measured: Calibration) -> dict[str, Any]:
    values = {name: getattr(measured, name) for name in ("ece", "ece_plain", "brier", "log_loss")}
    return values | {"intervals": {name: ends(limits) for name, limits in measured.intervals.items()}}


def _view(e: Examination, value: Sureness) -> dict[str, Any]:
    del e
    scaled = ""
    if value.scaled is not None:
        scaled = figures.reliability(value.scaled, f"temperature {value.temperature:.2f}")
    return {
        "reliability": figures.reliability(value.unscaled, "before temperature scaling"),
        "scaled": scaled,
        "answered": figures.answered(value.abstention),
    }


CALIBRATION = Part(
    "calibration", "Calibration", "Calibration", _compute, "part-calibration.html", to_json=_to_json, view=_view
)
