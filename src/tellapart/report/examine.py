"""Computes all parts of a report, one after the other. Knows nothing about pages or folders."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.decode import resize
from tellapart.data.image_file import read_file
from tellapart.data.quality import UNKNOWN, decode_and_measure
from tellapart.errors import DecodeError, InputError
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
from tellapart.evaluation.measure import groups_of, measure_sides
from tellapart.evaluation.predict import predict_arrays
from tellapart.evaluation.ranking import Curve, curves, top_k_accuracy
from tellapart.evaluation.robustness import CORRUPTED_PX, Envelope, Robustness, envelope, robustness
from tellapart.evaluation.slices import Slice, slices
from tellapart.records import Interval, Progress
from tellapart.report.attribution import SOME, Attributions, how_many, look, spread
from tellapart.report.shortcuts import Shortcuts, shortcuts
from tellapart.report.subject import Subject
from tellapart.report.suspects import suspects
from tellapart.training.callbacks import Announce

COVERAGES = (0.9, 0.95, 0.99)
_CORRUPTED = (48, 260)
"""Pictures in each of the 75 corruption runs: fewest and most."""


@dataclass(frozen=True)
class Findings:
    """All that a report says. What could not be computed is None, with a reason in `missing`.

    Attributes:
        subject: the network and its photos.
        metrics: for each side, as `measure_sides` gives it.
        baseline: accuracy of a linear model on 8 × 8 coloured squares, trained on the same photos.
        top_k: k → (accuracy, interval), on the main side, as are all that follow.
        ranking: ROC and precision-recall curves of the classes.
        calibration: of the network as it was trained.
        calibration_scaled: after temperature scaling.
        temperature: fitted on validation; it is inside the network of a run.
        sets: a row per stated coverage: ``coverage``, ``threshold``, ``covered``, ``low``, ``high``, ``mean_size``.
        abstention: accuracy against the share answered.
        labels: how suspicious the label of each photo is, over all sides, as `suspects` gives it.
        robustness: accuracy under corruption.
        envelope: photo quality for which the accuracy holds.
        slices: worst first.
        looks: heat maps, their tests, and channels.
        shortcuts: whether the surroundings give the class away.
        missing: part → why it is not there.
        seconds: part → how long it took.
    """

    subject: Subject
    metrics: dict[str, Any]
    baseline: tuple[float, Interval] | None
    top_k: dict[int, tuple[float, Interval]]
    ranking: list[Curve]
    calibration: Calibration
    calibration_scaled: Calibration | None
    temperature: float | None
    sets: pd.DataFrame | None
    abstention: Abstention
    labels: pd.DataFrame | None
    robustness: Robustness
    envelope: Envelope
    slices: list[Slice]
    looks: Attributions | None
    shortcuts: Shortcuts | None
    missing: dict[str, str]
    seconds: dict[str, float]


def examine(subject: Subject, *, own_photos: bool, progress: Progress, announce: Announce) -> Findings:
    """Compute all parts of a report."""
    predict = functools.partial(predict_arrays, subject.model)
    missing: dict[str, str] = {}
    seconds: dict[str, float] = {}
    at = subject.at(subject.main)
    true, probabilities = subject.numbers[at], subject.probabilities[at]
    correct = probabilities.argmax(axis=1) == true
    groups = _groups(subject, at)
    announce(f"{len(at):,} {subject.main} photos, {len(subject.classes)} classes.")

    def timed(part: str, compute: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = compute()
        seconds[part] = time.perf_counter() - start
        return result

    # What the probabilities say
    held_out = subject.at("validation") if subject.main != "validation" else np.zeros(0, np.int64)
    as_trained, scaled, temperature = _calibrations(subject, held_out, at, missing)
    sets = _sets(subject, held_out, at, missing)
    labels = None
    try:
        labels = timed("labels", lambda: suspects(subject, own_photos=own_photos, progress=progress))
    except InputError as error:
        missing["label errors"] = str(error)

    # How it fares with worse pictures and in parts of the photos
    large, qualities = timed("quality", lambda: _large_pictures(subject, at, progress))
    picture_px = subject.pictures.image_px
    few = spread(true, how_many(_CORRUPTED, picture_px))
    robust = timed(
        "corruptions",
        lambda: robustness(
            predict, large[few], true[few], picture_px, None if groups is None else groups[few], progress=progress
        ),
    )
    parts = slices(correct, _properties(subject.frame.iloc[at], qualities), groups)

    # What it looks at
    looks, alarm = _looks(subject, at, predict, missing, timed, progress)
    return Findings(
        subject=subject,
        metrics=measure_sides(
            subject.frame, subject.probabilities.astype(np.float32), subject.classes, trained_on=own_photos
        ),
        baseline=timed("baseline", lambda: _baseline(subject, at, own_photos, missing)),
        top_k={k: top_k_accuracy(true, probabilities, k, groups) for k in (1, 2, 3, 5) if k < len(subject.classes)},
        ranking=timed("ranking", lambda: curves(true, probabilities, subject.classes, groups)),
        calibration=as_trained,
        calibration_scaled=scaled,
        temperature=temperature,
        sets=sets,
        abstention=abstention(true, probabilities, groups),
        labels=labels,
        robustness=robust,
        envelope=envelope(qualities, correct, groups),
        slices=parts,
        looks=looks,
        shortcuts=alarm,
        missing=missing,
        seconds=seconds,
    )


def _looks(
    subject: Subject,
    at: NDArray[np.int64],
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    missing: dict[str, str],
    timed: Callable[[str, Callable[[], Any]], Any],
    progress: Progress,
) -> tuple[Attributions | None, Shortcuts | None]:
    pictures, true = subject.pictures.batch(at), subject.numbers[at]
    try:
        looks = timed("heat maps and their tests", lambda: look(subject, pictures, at, progress))
    except InputError as error:
        missing["heat maps"] = str(error)
        return None, None
    some = spread(true, how_many(SOME, subject.pictures.image_px))
    groups, heat = _groups(subject, at[some]), looks.of(some)
    return looks, timed("shortcuts", lambda: shortcuts(predict, pictures[some], true[some], heat, groups))


def _baseline(
    subject: Subject, at: NDArray[np.int64], own_photos: bool, missing: dict[str, str]
) -> tuple[float, Interval] | None:
    """Return the accuracy of a logistic regression on 8 × 8 coloured squares: what needs no network."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    trained_on = subject.at("train")
    if not own_photos or not len(trained_on) or len(np.unique(subject.numbers[trained_on])) < 2:
        missing["baseline"] = "There are no training photos to fit one to."
        return None

    def squares(positions: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = [resize(subject.pictures.read(int(position)), 8).ravel() for position in positions]
        return np.stack(rows).astype(np.float32)

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    model.fit(squares(trained_on), subject.numbers[trained_on])
    right = model.predict(squares(at)) == subject.numbers[at]
    return float(right.mean()), share_interval(right, _groups(subject, at))


def _calibrations(
    subject: Subject, held_out: NDArray[np.int64], at: NDArray[np.int64], missing: dict[str, str]
) -> tuple[Calibration, Calibration | None, float | None]:
    """Return the calibration as trained and after temperature scaling, and the temperature.

    A run's network has the temperature inside; one that was made before runs were calibrated gets it here.
    """
    true, groups = subject.numbers[at], _groups(subject, at)
    given, temperature = subject.probabilities[at], subject.temperature
    if temperature is not None:
        return (
            calibration(true, at_temperature(given, 1 / temperature), groups),
            calibration(true, given, groups),
            temperature,
        )
    if not len(held_out):
        missing["temperature scaling"] = "There are no validation photos to fit it on."
        return calibration(true, given, groups), None, None
    temperature = fit_temperature(subject.numbers[held_out], subject.probabilities[held_out])
    scaled = calibration(true, at_temperature(given, temperature), groups)
    return calibration(true, given, groups), scaled, temperature


def _sets(
    subject: Subject, held_out: NDArray[np.int64], at: NDArray[np.int64], missing: dict[str, str]
) -> pd.DataFrame | None:
    if not len(held_out):
        missing["prediction sets"] = "There are no validation photos to fit them on."
        return None
    rows = []
    for coverage in COVERAGES:
        threshold = conformal_threshold(subject.numbers[held_out], subject.probabilities[held_out], coverage)
        sets = conformal_sets(subject.probabilities[at], threshold)
        covered = sets[np.arange(len(at)), subject.numbers[at]]
        interval = share_interval(covered, _groups(subject, at))
        sizes = sets.sum(axis=1)
        rows.append((
            coverage, threshold, float(covered.mean()), interval.low, interval.high, float(sizes.mean()),
            float((sizes == 1).mean()),
        ))  # fmt: skip
    columns = ["coverage", "threshold", "covered", "low", "high", "mean_size", "single"]
    return pd.DataFrame(rows, columns=columns)


def _groups(subject: Subject, at: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the groups of the photos at these positions, or None where they are not known."""
    groups = groups_of(subject.frame)
    return None if groups is None else groups[at]


def _large_pictures(
    subject: Subject, at: NDArray[np.int64], progress: Progress
) -> tuple[NDArray[np.uint8], pd.DataFrame]:
    """Read the photos once more: as pictures to corrupt, and to measure their quality.

    Of one that has changed since the scan the small picture is enlarged, and its quality is not known.
    """
    side = max(CORRUPTED_PX, subject.pictures.image_px)
    pictures = np.empty((len(at), side, side, 3), np.uint8)
    rows = []
    for slot, position in enumerate(at):
        path = subject.root / subject.frame["path"].iloc[position]
        try:
            pictures[slot], quality = decode_and_measure(read_file(path), side)
        except DecodeError:
            pictures[slot], quality = resize(subject.pictures.read(int(position)), side), UNKNOWN
        rows.append(quality.to_dict())
        if slot % 32 == 31 or slot + 1 == len(at):
            progress("measuring quality", slot + 1, len(at))
    return pictures, pd.DataFrame(rows)


_PROPERTIES = ("format", "mode", "orientation", "grey", "transparent", "frames", "bits", "extension", "group")


def _properties(frame: pd.DataFrame, qualities: pd.DataFrame) -> pd.DataFrame:
    """Return the columns to slice by: classes, folders, size, format, quality, and what else the manifest has."""
    # Not by pandas' own methods for text, which refuse names that are not UTF-8.
    folders = pd.Series([path.rpartition("/")[0] for path in frame["path"]], frame.index, dtype=object)
    plain = {
        "class": frame["label"],
        "folder": folders,
        "width": frame["width"],
        "height": frame["height"],
        "aspect": frame["width"] / frame["height"],
        "bytes per pixel": frame["bytes"] / (frame["width"] * frame["height"]),
        **{name: frame[name] for name in _PROPERTIES if name in frame},
    }
    if (folders == frame["label"]).all():
        del plain["folder"]  # the same slices twice would only cost power
    table = pd.DataFrame({name: values.reset_index(drop=True) for name, values in plain.items()})
    measured = qualities.drop(columns="short_side_px").add_prefix("quality: ")
    return pd.concat([table, measured.reset_index(drop=True)], axis=1)
