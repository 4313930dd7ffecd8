"""Computes a report, part by part. Knows nothing about pages.

A new part is a module in `tellapart.report.parts` with a fragment of its own beside the page, and its place here.
"""

from __future__ import annotations

from typing import Any

from tellapart.records import Announce
from tellapart.report.part import Examination, Part
from tellapart.report.parts.attribution import ATTRIBUTION
from tellapart.report.parts.calibration import CALIBRATION
from tellapart.report.parts.confusion import CONFUSION, MISTAKES
from tellapart.report.parts.labels import LABELS
from tellapart.report.parts.metrics import METRICS
from tellapart.report.parts.quality import QUALITY
from tellapart.report.parts.reproduce import REPRODUCE
from tellapart.report.parts.shortcuts import SHORTCUTS
from tellapart.report.parts.slices import SLICES
from tellapart.report.parts.training import TRAINING
from tellapart.report.parts.unknown import UNKNOWN

# METRICS and QUALITY must not raise InputError: the verdict, the slices and quality_range.json take what they found
# without asking whether it is there.
PARTS: tuple[Part, ...] = (
    METRICS, TRAINING, CONFUSION, MISTAKES, LABELS, CALIBRATION, UNKNOWN, QUALITY, SLICES, ATTRIBUTION, SHORTCUTS,
    REPRODUCE,
)  # fmt: skip
"""In the order of the page, in which they are computed too: slices need the quality, shortcuts the heat maps."""


def examine(examination: Examination, announce: Announce) -> dict[str, Any]:
    """Compute all parts, and return the numbers of ``evaluation.json``: every metric with its interval."""
    subject = examination.subject
    announce(f"{len(examination.at):,} {subject.main} photos, {len(subject.classes)} classes.")
    values: dict[str, Any] = {"side": subject.main, "num_images": len(examination.at)}
    for part in PARTS:
        part.run(examination)
        # Also for a part that could not be computed, which is None then.
        values |= part.to_json(examination.found[part.name])
    return values | {
        "num_not_finite": subject.num_not_finite,
        "missing": examination.missing,
        "seconds": examination.seconds,
    }
