"""Lays a report out as one HTML file that needs nothing else. Knows nothing about how its numbers were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.features import nearest_neighbours
from tellapart.evaluation.metrics import confusion_matrix
from tellapart.evaluation.ranking import macro_average
from tellapart.explain.overlay import overlay
from tellapart.files import json_in_html, read_json
from tellapart.records import SPLITS, Progress
from tellapart.report import figures, html
from tellapart.report.attribution import SUREST
from tellapart.report.examine import Findings
from tellapart.report.photos import coarse_heat, encoded, thumbnails
from tellapart.report.verdict import verdict
from tellapart.run_folder import RunFolder, RunRecord
from tellapart.settings import saved_values
from tellapart.training.selection import best_epoch

_MANY = 2500
"""Photos from which the page shows smaller pictures, and neighbours for mistakes alone."""
_LISTED = 60
"""Rows of a long list, and rightly named photos of a cell, that the page shows."""
_LAYERS = 9
_FEATURE_MAPS = 8


def write_page(path: Path, run: Path, found: Findings, *, progress: Progress) -> Path:
    """Write ``report.html``.

    Args:
        path: the file.
        run: the run folder.
        found: all that was computed.
        progress: called with ("drawing the page", done, total).
    """
    health = read_json(RunFolder(run).health_path)["findings"] if RunFolder(run).health_path.is_file() else []
    progress("drawing the page", 0, 2)
    photos = _photos(found)
    progress("drawing the page", 1, 2)
    values = {
        "found": found,
        "side": found.subject.main,
        "metrics": found.metrics[found.subject.main],
        "sides": [name for name in SPLITS if name in found.metrics],
        "verdict": verdict(found, health),
        "health": health,
        "confusion": _confusion(found),
        "averages": macro_average(found.ranking),
        "drawn": _figures(run, found),
        "suspects": _suspects(found),
        "looks": _looks(found),
        "sanity": list(zip(found.looks.sanity.layers, found.looks.sanity.correlation, strict=True))
        if found.looks
        else [],
        "photos": json_in_html(photos),
        "again": _again(run),
        "js": html.source("page.js"),
    }
    html.write_page(path, "page.html", values)
    progress("drawing the page", 2, 2)
    return path


def _photos(found: Findings) -> dict[str, Any]:
    """Return what the page's script needs: small pictures, and for each photo of the main side what is said of it."""
    subject = found.subject
    at = subject.at(subject.main)
    probabilities = subject.probabilities[at]
    predicted = probabilities.argmax(axis=1)
    wrong = predicted != subject.numbers[at]
    many = len(at) > _MANY
    shown = np.flatnonzero(_worth_showing(subject.numbers[at], predicted, probabilities.max(axis=1)))
    train = subject.at("train")
    neighbours = np.zeros((len(at), 0), np.int64)
    if len(train):
        neighbours = train[nearest_neighbours(subject.features[at], subject.features[train])[0]]
    suspects = _suspect_positions(found)
    with_neighbours = {int(slot) for slot in shown if wrong[slot] or not many}
    needed = sorted(
        {int(at[slot]) for slot in shown} | {int(p) for s in with_neighbours for p in neighbours[s]} | suspects
    )
    paths = [subject.root / subject.frame["path"].iloc[position] for position in needed]
    small = dict(zip(needed, thumbnails(paths, 64 if many else 96), strict=True))
    index = {position: number for number, position in enumerate(needed)}
    heat = dict(zip(found.looks.slots.tolist(), coarse_heat(found.looks.heat), strict=True)) if found.looks else {}
    records = []
    for slot in shown.tolist():
        order = np.argsort(-probabilities[slot], kind="stable")[:3]
        near = neighbours[slot] if int(slot) in with_neighbours else []
        records.append({
            "i": index[int(at[slot])],
            "t": int(subject.numbers[at[slot]]),
            "p": [[int(n), round(float(probabilities[slot, n]), 3)] for n in order],
            "h": heat.get(slot, ""),
            "n": [index[int(position)] for position in near],
        })  # fmt: skip
    return {
        "classes": subject.classes,
        "images": [small[position] for position in needed],
        "paths": [str(subject.frame["path"].iloc[position]) for position in needed],
        "labels": [int(subject.numbers[position]) for position in needed],
        "positions": needed,
        "photos": records,
    }


def _worth_showing(
    true: NDArray[np.int64], predicted: NDArray[np.int64], sure: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which photos go into the page: all mistakes, and of each class's right ones the least sure."""
    shown = predicted != true
    for number in np.unique(true):
        right = np.flatnonzero((true == number) & (predicted == number))
        shown[right[np.argsort(sure[right], kind="stable")[:_LISTED]]] = True
    return np.asarray(shown)


def _confusion(found: Findings) -> dict[str, Any]:
    subject = found.subject
    at = subject.at(subject.main)
    predicted = subject.probabilities[at].argmax(axis=1)
    counts = confusion_matrix(subject.numbers[at], predicted, len(subject.classes))
    totals = counts.sum(axis=1)
    shares = np.divide(counts, totals[:, None], out=np.zeros(counts.shape), where=totals[:, None] > 0)
    return {"counts": counts.tolist(), "shares": shares.tolist(), "totals": totals.tolist()}


def _figures(run: Path, found: Findings) -> dict[str, Any]:
    """Return all SVG figures by name."""
    robust = found.robustness
    lowest = float(np.floor(10 * robust.runs["low"].min()) / 10)
    drawn: dict[str, Any] = {
        "roc": figures.roc([curve for curve in found.ranking if len(curve.precision)]),
        "precision_recall": figures.precision_recall([curve for curve in found.ranking if len(curve.precision)]),
        "reliability": figures.reliability(found.calibration, "as trained"),
        "scaled": figures.reliability(found.calibration_scaled, f"temperature {found.temperature:.2f}")
        if found.calibration_scaled is not None
        else "",
        "answered": figures.answered(found.abstention),
        "corruptions": [
            figures.corruption(runs, str(name), robust.clean_accuracy, lowest)
            for name, runs in robust.runs.groupby("corruption", sort=False)
        ],
        "envelope": [
            figures.envelope_measure(bins, str(name), found.envelope.accuracy)
            for name, bins in found.envelope.bins.groupby("measure", sort=False)
            if len(bins) > 1
        ],
        "curves": [],
    }
    if RunFolder(run).history_path.is_file():
        history = RunFolder(run).history()
        best = best_epoch(history.to_dict("records"))
        names = [name for name in ("loss", "accuracy", "learning_rate") if name in history]
        drawn["curves"] = [figures.learning_curve(history, name, best) for name in names]
    return drawn


def _suspect_positions(found: Findings) -> set[int]:
    if found.labels is None:
        return set()
    suspected = found.labels[found.labels["suspected"]]
    return {int(position) for position in suspected["position"].head(_LISTED)}


def _suspects(found: Findings) -> list[dict[str, Any]]:
    """Return the labels that look wrong, most suspicious first."""
    if found.labels is None:
        return []
    rows: Any = found.labels[found.labels["suspected"]].head(_LISTED).to_dict("records")
    return list(rows)


def _looks(found: Findings) -> dict[str, Any]:
    """Return the pictures of what the network sees: class maps, feature maps, and the channels of each class."""
    if found.looks is None:
        return {}
    subject = found.subject
    at = subject.at(subject.main)
    probabilities = subject.probabilities[at]
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    classes = []
    for number, name in enumerate(subject.classes):
        right = np.flatnonzero((predicted == number) & (subject.numbers[at] == number))
        if not len(right):
            continue
        best = right[np.argsort(-sure[right], kind="stable")[:SUREST]]
        maps = zip(np.sort(best).tolist(), found.looks.of(best), strict=True)
        shown = [encoded(overlay(subject.pictures.read(int(at[slot])), heat), 80) for slot, heat in maps]
        mean = found.looks.of(right).mean(axis=0)
        patches = found.looks.patches[number]
        strongest = np.argsort(-found.looks.channels.importance[:, number], kind="stable")[:3]
        channels = [
            {
                "channel": int(channel),
                "importance": float(found.looks.channels.importance[channel, number]),
                "photos": [
                    encoded(subject.pictures.read(int(found.looks.channel_photos[place])), 75)
                    for place in found.looks.channels.strongest[channel][:4]
                ],
            }
            for channel in strongest
        ]
        classes.append({
            "name": name,
            "shown": shown,
            "mean": encoded(_on_grey(mean), 80),
            "patches": encoded(_on_grey(np.kron(patches, np.ones((12, 12), np.float32))), 80),
            "most": float(patches.max()),
            "channels": channels,
        })  # fmt: skip
    layers = _feature_maps(found, at)
    return {
        "classes": classes,
        "layer": found.looks.channels.layer,
        "layers": layers,
        "num_maps": len(found.looks.slots),
    }


def _feature_maps(found: Findings, at: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return for each layer with feature maps the strongest of them, for the surest photo of the main side."""
    from tellapart.models.layers import feature_maps

    subject = found.subject
    surest = int(at[int(subject.probabilities[at].max(axis=1).argmax())])
    rows = []
    for name, outputs in feature_maps(subject.model, subject.pictures.read(surest)[None], at_most=_LAYERS).items():
        maps = np.nan_to_num(outputs[0], nan=0.0, posinf=0.0, neginf=0.0).clip(-1e9, 1e9)
        best = np.argsort(-maps.std(axis=(0, 1)), kind="stable")[:_FEATURE_MAPS]
        rows.append({
            "name": name,
            "shape": " × ".join(map(str, maps.shape)),
            "maps": [encoded(_grey(maps[..., channel]), 80) for channel in best],
        })  # fmt: skip
    return rows


def _on_grey(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a map, scaled to its largest value, without a picture below it."""
    scaled = np.asarray(np.maximum(heat, 0) / max(float(heat.max()), 1e-9), np.float32)
    return overlay(np.full((*heat.shape, 3), 128, np.uint8), scaled)


def _grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    import cv2

    low, high = float(values.min()), float(values.max())
    scaled = (255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(scaled, cv2.COLORMAP_VIRIDIS)[..., ::-1])


def _again(run: Path) -> dict[str, Any]:
    """Return what it takes to do the run again."""
    folder = RunFolder(run)
    record = folder.record()
    return {
        "commands": [made_by(run, record), f"tellapart evaluate {run}"],
        "recipe": json.dumps(saved_values(folder.recipe()), indent=1),
        "facts": record.known("commit", "data_sha256", "seed", "processor", "python", "backend", "precision"),
        "packages": record.packages,
    }


def made_by(run: Path, record: RunRecord) -> str:
    """Return the command that makes a run again: an ensemble is combined again, not trained.

    Args:
        run: a finished run folder.
        record: its own.
    """
    if not record.request.ensemble:
        return f"tellapart reproduce {run}"
    standings = read_json(run / "ensemble.json")["standings"]
    members = list(dict.fromkeys(each["run"] for each in standings))
    return " ".join(["tellapart ensemble", *members, *(["--snapshots"] if len(standings) > len(members) else [])])
