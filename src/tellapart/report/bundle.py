"""Measures a bundle on labelled photos that its run never saw: what it is worth where it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.bundles.predictor import BATCH_SIZE, open_classifier
from tellapart.data.cache import default_cache, open_rows
from tellapart.errors import InputError
from tellapart.evaluation.measure import measure_sides
from tellapart.evaluation.predict import prediction_table
from tellapart.files import write_json, write_text
from tellapart.records import Progress, no_progress, plain
from tellapart.report.subject import other_photos
from tellapart.tables import csv_text


def evaluate_bundle(
    bundle: str | os.PathLike[str],
    photos: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Classify labelled photos with a bundle, in the runtime that serves them, and measure it.

    Args:
        bundle: its folder; nothing is written into it, since every file there has its checksum.
        photos: a folder per class, split folders of those, or a table; classes that the bundle knows.
        out: the folder for ``evaluation.json`` and ``predictions.csv``; None: ``evaluation-NAME`` here.
        cache: the folder for decoded pictures; None: the user's cache folder.
        progress: called often with (what, done, total).

    Returns:
        For each split that has photos what `tellapart.train` measures, with intervals; ``test`` where the photos have
        no splits. Photos that the bundle's own run was trained on count like any others: leave them out.

    Raises:
        BundleError: the bundle is damaged.
        InputError: no photo can be read, or one has a label that the bundle does not know.
    """
    classifier = open_classifier(bundle)
    root, manifest = other_photos(Path(photos), classifier.classes, progress)
    frame = manifest[manifest["error"] == ""].reset_index(drop=True)
    if frame.empty:
        raise InputError(f"{root} holds no readable photo to evaluate on.")
    cache_folder = Path(cache) if cache is not None else default_cache()
    rows = []
    with open_rows(
        root, frame, classifier.image_px, folder=cache_folder, max_pixels=classifier.max_pixels, progress=progress
    ) as pictures:
        for start in range(0, len(pictures), BATCH_SIZE):
            end = min(start + BATCH_SIZE, len(pictures))
            rows.append(classifier.probabilities(pictures.batch(range(start, end))))
            progress("predicting", end, len(pictures))
    probabilities = np.concatenate(rows)
    # The bundle does not say which photos it learned from: a "train" split here is a name, and gets intervals as any
    # other.
    metrics = measure_sides(frame, probabilities, classifier.classes, trained_on=False)
    evaluation: dict[str, Any] = plain({"bundle": classifier.identity, "runtime": classifier.runtime, **metrics})
    # Never write into the bundle: it cannot be opened with a file that has no checksum.
    out_folder = Path(out) if out is not None else Path(f"evaluation-{Path(photos).resolve().stem}")
    out_folder.mkdir(parents=True, exist_ok=True)
    write_json(out_folder / "evaluation.json", evaluation)
    write_text(out_folder / "predictions.csv", csv_text(prediction_table(frame, probabilities, classifier.classes)))
    return evaluation
