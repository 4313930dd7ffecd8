"""Lays a report out as one HTML file that needs nothing else. Knows nothing about how its numbers were made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.features import nearest_neighbours
from tellapart.files import json_in_html
from tellapart.report import html
from tellapart.report.part import Examination, Part
from tellapart.report.parts.labels import suspected
from tellapart.report.photos import coarse_heat, thumbnails
from tellapart.report.verdict import verdict

_MANY = 2500
"""Photos from which the page shows smaller pictures, and neighbours for mistakes alone."""
_LISTED = 60
"""Correctly classified photos of a cell that the page shows."""


def write_page(path: Path, examination: Examination, parts: Sequence[Part]) -> Path:
    """Write ``report.html``.

    Args:
        path: the file.
        examination: all that was computed.
        parts: in the order of the page.
    """
    subject, steps = examination.subject, len(parts) + 1
    common = {
        "side": subject.main,
        "classes": subject.classes,
        "accuracy": float((examination.predicted == examination.true).mean()),
        "absent": examination.missing,
        "health": examination.health,
    }
    sections = []
    for number, part in enumerate(parts):
        examination.progress("drawing the page", number, steps)
        value = examination.found[part.name]
        text = html.rendered(part.fragment, {**common, "value": value, **part.view(examination, value)})
        # Escaped already: page.html calls `html` safe, so a fragment must come from `rendered`, never from a string.
        sections.append({"name": part.name, "title": part.title, "link": part.link, "html": text})
    examination.progress("drawing the page", steps - 1, steps)
    values = {
        **common,
        "parts": sections,
        "verdict": verdict(examination, parts),
        # Into a <script>, where the template's escaping does not help: a photo or a class may be called "</script>".
        "photos": json_in_html(_photos(examination)),
        "js": html.source("page.js"),
    }
    html.write_page(path, "page.html", values)
    examination.progress("drawing the page", steps, steps)
    return path


def _photos(e: Examination) -> dict[str, Any]:
    """Return what the page's script needs: small pictures, and for each photo of the main side what is said of it."""
    # Two kinds of index: a slot counts the photos of the main split, a position all photos of the subject. Neighbours
    # are training photos, and suspected labels may be in any split.
    subject, at, probabilities = e.subject, e.at, e.probabilities
    wrong = e.predicted != e.true
    is_large = len(at) > _MANY
    shown = np.flatnonzero(_worth_showing(e.true, e.predicted, probabilities.max(axis=1)))
    train = subject.at("train")
    neighbours = np.zeros((len(at), 0), np.int64)
    if len(train):
        neighbours = train[nearest_neighbours(subject.features[at], subject.features[train])[0]]
    suspects = {int(position) for position in suspected(e.found["labels"])["position"]}
    with_neighbours = {int(slot) for slot in shown if wrong[slot] or not is_large}
    # Each picture is stored once, however many photos have it as a neighbour.
    shown_positions = sorted(
        {int(at[slot]) for slot in shown} | {int(p) for s in with_neighbours for p in neighbours[s]} | suspects
    )
    paths = [subject.root / subject.frame["path"].iloc[position] for position in shown_positions]
    thumbnail_of = dict(zip(shown_positions, thumbnails(paths, 64 if is_large else 96), strict=True))
    index = {position: number for number, position in enumerate(shown_positions)}
    attributions = e.found["attribution"]
    heat = dict(zip(attributions.slots.tolist(), coarse_heat(attributions.heat), strict=True)) if attributions else {}
    records = []
    # One-letter keys, because the page may hold thousands of records.
    for slot in shown.tolist():
        order = np.argsort(-probabilities[slot], kind="stable")[:3]
        neighbour_positions = neighbours[slot] if int(slot) in with_neighbours else []
        records.append({
            "i": index[int(at[slot])],
            "t": int(e.true[slot]),
            "p": [[int(n), round(float(probabilities[slot, n]), 3)] for n in order],
            "h": heat.get(slot, ""),
            "n": [index[int(position)] for position in neighbour_positions],
        })  # fmt: skip
    return {
        "classes": subject.classes,
        "images": [thumbnail_of[position] for position in shown_positions],
        "paths": [str(subject.frame["path"].iloc[position]) for position in shown_positions],
        "labels": [int(subject.numbers[position]) for position in shown_positions],
        "positions": shown_positions,
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
