"""The story of a report: a run and labelled photos become ``report.html``. Reads top to bottom."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.data.cache import default_cache
from tellapart.evaluation.predict import load
from tellapart.files import read_json, write_json, write_text
from tellapart.records import Announce, Progress, no_progress, plain
from tellapart.report.examine import PARTS, examine
from tellapart.report.page import write_page
from tellapart.report.part import Examination
from tellapart.report.parts.quality import range_to_json
from tellapart.report.subject import open_subject, other_photos, photos_of_run
from tellapart.run_folder import RunFolder
from tellapart.tables import csv_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        page: ``report.html``.
        values: the contents of ``evaluation.json``.
    """

    page: Path
    values: dict[str, Any]


def evaluate(
    run: str | os.PathLike[str],
    photos: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
) -> Report:
    """Examine a run, on its own photos or on others, and write the report.

    Args:
        run: a finished run folder.
        photos: other labelled photos; None: those of the run, judged on its test split.
        out: the folder for ``report.html``, ``evaluation.json``, ``quality_range.json`` and ``labels.csv``; None:
            ``RUN/report``, or ``RUN/report-NAME`` for other photos.
        cache: the folder for decoded pictures; None: the user's cache folder.
        progress: called often with (what, done, total).
        announce: called with single lines.

    Raises:
        RunError: `run` has no model.
        InputError: no photo can be read, or one has a label that the model does not know.
    """
    folder = Path(run)
    classifier = load(folder)
    if photos is None:
        root, manifest = photos_of_run(folder)
    else:
        root, manifest = other_photos(Path(photos), classifier.classes, progress)
    out_folder = (
        Path(out) if out is not None else folder / ("report" if photos is None else f"report-{Path(photos).stem}")
    )
    out_folder.mkdir(parents=True, exist_ok=True)
    cache_folder = Path(cache) if cache is not None else default_cache()
    # Outputs that the run saved are those of its own photos; other photos go through the network.
    own_run = folder if photos is None else None
    # The cache of decoded pictures stays open until the page is drawn: parts and page read pictures from it.
    with (
        subject := open_subject(classifier, root, manifest, cache=cache_folder, run=own_run, progress=progress)
    ).pictures:
        # What the check found of the run's photos says nothing of others.
        health = _health(folder) if photos is None else []
        examination = Examination(subject, folder, photos is None, health, progress)
        values: dict[str, Any] = plain(examine(examination, announce))
        # The page comes last: if drawing it fails, the numbers are already on disk.
        write_json(out_folder / "evaluation.json", values)
        write_json(out_folder / "quality_range.json", plain(range_to_json(examination.found["quality"])))
        if (labels := examination.found["labels"]) is not None:
            write_text(out_folder / "labels.csv", csv_text(labels.drop(columns="position")))
        page = write_page(out_folder / "report.html", examination, PARTS)
    return Report(page, values)


def _health(run: Path) -> list[dict[str, Any]]:
    """Return what the check of the run's photos found."""
    path = RunFolder(run).health_path
    return list(read_json(path)["findings"]) if path.is_file() else []
