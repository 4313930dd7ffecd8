"""How the network does on worse pictures: corruptions, and the quality that the photos have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.decode import resize
from tellapart.data.image_file import read_file
from tellapart.data.quality import UNKNOWN, decode_and_measure
from tellapart.errors import DecodeError
from tellapart.evaluation.robustness import CORRUPTED_PX, QualityRange, Robustness, find_quality_range, robustness
from tellapart.report import figures
from tellapart.report.attribution import how_many, spread
from tellapart.report.part import Examination, Part, ends

_CORRUPTED = (48, 260)
"""Pictures in each of the 75 corruption runs: fewest and most."""


@dataclass(frozen=True)
class Quality:
    """Accuracy and photo quality.

    Attributes:
        robustness: accuracy under corruption.
        quality_range: photo quality for which the accuracy holds.
        qualities: a row per photo, as `tellapart.data.quality` measures it.
    """

    robustness: Robustness
    quality_range: QualityRange
    qualities: pd.DataFrame


def _compute(e: Examination) -> Quality:
    large, qualities = _large_pictures(e)
    picture_px, groups = e.subject.pictures.image_px, e.groups
    sample = spread(e.true, how_many(_CORRUPTED, picture_px))
    robustness_result = robustness(
        e.subject.predict,
        large[sample],
        e.true[sample],
        picture_px,
        None if groups is None else groups[sample],
        progress=e.progress,
    )
    # The range is found on all photos, the corruptions cost 75 passes each and get a sample.
    return Quality(robustness_result, find_quality_range(qualities, e.predicted == e.true, groups), qualities)


def _large_pictures(e: Examination) -> tuple[NDArray[np.uint8], pd.DataFrame]:
    """Read the photos once more: as pictures to corrupt, and to measure their quality.

    Of one that has changed since the scan the small picture is enlarged, and its quality is not known.
    """
    subject, at = e.subject, e.at
    # The corruptions are defined at 224 px, so corrupt at that size and shrink afterwards. All pictures are in memory
    # at once, 150 kB each.
    large_px = max(CORRUPTED_PX, subject.pictures.image_px)
    pictures = np.empty((len(at), large_px, large_px, 3), np.uint8)
    rows = []
    for slot, position in enumerate(at):
        path = subject.root / subject.frame["path"].iloc[position]
        try:
            pictures[slot], quality = decode_and_measure(read_file(path), large_px)
        except DecodeError:
            pictures[slot], quality = resize(subject.pictures.read(int(position)), large_px), UNKNOWN
        rows.append(quality.to_dict())
        if slot % 32 == 31 or slot + 1 == len(at):
            e.progress("measuring quality", slot + 1, len(at))
    return pictures, pd.DataFrame(rows)


def _to_json(value: Quality) -> dict[str, Any]:
    robust = value.robustness
    return {
        "robustness": {
            "num_images": robust.num_images,
            "clean_accuracy": robust.clean_accuracy,
            "mean_corruption_error": robust.mean_corruption_error,
            "relative": robust.relative,
            "intervals": {
                "mean_corruption_error": ends(robust.interval),
                "relative": ends(robust.relative_interval),
            },
            "runs": robust.runs.to_dict("records"),
        }
    }


def range_to_json(value: Quality) -> dict[str, Any]:
    """Return what ``quality_range.json`` says: limits by measure, which are infinite where nothing limits it."""
    limits = value.quality_range
    return {"accuracy": limits.accuracy, "limits": limits.limits, "bins": limits.bins.to_dict("records")}


def _view(e: Examination, value: Quality) -> dict[str, Any]:
    del e
    robust, limits = value.robustness, value.quality_range
    # One axis for all kinds of damage, so that the figures can be compared.
    lowest = float(np.floor(10 * robust.runs["low"].min()) / 10)
    return {
        "corruptions": [
            figures.corruption(runs, str(name), robust.clean_accuracy, lowest)
            for name, runs in robust.runs.groupby("corruption", sort=False)
        ],
        "quality_range": [
            figures.quality_measure(bins, str(name), limits.accuracy)
            for name, bins in limits.bins.groupby("measure", sort=False)
            if len(bins) > 1
        ],
    }


QUALITY = Part(
    "quality", "Robustness to corruptions", "Quality", _compute, "part-quality.html", to_json=_to_json, view=_view
)
