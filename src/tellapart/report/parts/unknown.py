"""How well the model knows what it does not know: photos of no known class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.data.drawn import CLASSES
from tellapart.errors import InputError
from tellapart.evaluation.predict import outputs_of_arrays
from tellapart.evaluation.unknown import (
    Told,
    drawn_pictures,
    leave_each_out,
    mean_auroc,
    noise_pictures,
    share_refused,
    tell,
)
from tellapart.models.embedding import feature_model
from tellapart.records import Interval
from tellapart.report import figures
from tellapart.report.attribution import how_many
from tellapart.report.part import Examination, Part, ends
from tellapart.run_folder import RunFolder
from tellapart.unknown import UnknownDetector, load_detector

_FAR = (60, 200)
"""Pictures of each far kind: fewest and most."""


@dataclass(frozen=True)
class Unknown:
    """Known and unknown photos, and how they are told apart.

    Attributes:
        detector: of the run.
        similarity: (num_images,) float32 of the known photos.
        refused: share of the known photos that are called unknown, and its interval.
        near: each class in turn, left out of the references.
        mean: of their areas; None where no class can be left out.
        far: pictures of something else altogether.
        is_exact: whether the network has no part in the classes but a head on frozen features.
    """

    detector: UnknownDetector
    similarity: NDArray[np.float32]
    refused: tuple[float, Interval]
    near: tuple[Told, ...]
    mean: tuple[float, Interval] | None
    far: tuple[Told, ...]
    is_exact: bool


def _compute(e: Examination) -> Unknown:
    run, subject = RunFolder(e.run), e.subject
    detector = load_detector(run.unknown_path)
    if detector is None:
        reason = (run.metrics().get("unknown") or {}).get("missing")
        raise InputError(reason or "The run has no unknown.npz: it was made before runs had one.")
    embeddings = subject.features[e.at]
    known = detector.similarity(embeddings)
    near = leave_each_out(detector, embeddings, e.true, subject.classes, e.groups)
    return Unknown(
        detector,
        known,
        share_refused(detector, known, e.groups),
        tuple(near),
        mean_auroc(near) if near else None,
        _far(e, detector, known),
        _is_exact(run),
    )


def _far(e: Examination, detector: UnknownDetector, known: NDArray[np.float32]) -> tuple[Told, ...]:
    """Show the network noise and, unless it was trained on them, drawn shapes."""
    image_px = e.subject.pictures.image_px
    count, network = how_many(_FAR, image_px), feature_model(e.subject.model)
    # To a network that was trained on drawn shapes they are not unknown.
    kinds = {"noise": noise_pictures}
    if not set(e.subject.classes) <= set(CLASSES):
        kinds["drawn shapes"] = drawn_pictures
    results = []
    for done, (name, make) in enumerate(kinds.items(), start=1):
        _, embeddings = outputs_of_arrays(network, make(count, image_px))
        results.append(tell(detector, name, known, detector.similarity(embeddings), groups=e.groups))
        e.progress("looking at strange pictures", done, len(kinds))
    return tuple(results)


def _is_exact(run: RunFolder) -> bool:
    """Return whether the kept network is a head on pretrained weights: the best epoch is that before fine-tuning."""
    request = run.record().request
    return run.metrics().get("best_epoch") == 0 and request.begin_from is None and request.ensemble is None


def _to_json(value: Unknown | None) -> dict[str, Any]:
    if value is None:
        return {"unknown": None}
    share, interval = value.refused
    mean = None if value.mean is None else {"auroc": value.mean[0], "interval": ends(value.mean[1])}
    return {
        "unknown": {
            "promised": value.detector.refused,
            "threshold": value.detector.threshold,
            "refused": {"share": share, "interval": ends(interval)},
            "left_out": {told.name: _told(told) for told in value.near},
            "left_out_mean": mean,
            "exact": value.is_exact,
            "far": {told.name: _told(told) for told in value.far},
        }
    }


def _told(told: Told) -> dict[str, Any]:
    return {
        "num_images": told.num_images,
        "auroc": told.auroc,
        "interval": ends(told.interval),
        "refused": {"share": told.refused, "interval": ends(told.refused_interval)},
    }


def _view(e: Examination, value: Unknown | None) -> dict[str, Any]:
    del e
    if value is None:
        return {"similarities": ""}
    kinds = {"known": value.similarity}
    if value.near:
        kinds["left out"] = np.concatenate([told.similarity for told in value.near])
    kinds |= {told.name: told.similarity for told in value.far}
    return {"similarities": figures.similarities(kinds, value.detector.threshold)}


UNKNOWN = Part(
    "unknown", "Photos of no known class", "Unknown", _compute, "part-unknown.html", to_json=_to_json, view=_view
)
