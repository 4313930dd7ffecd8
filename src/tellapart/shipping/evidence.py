"""What travels beside a bundle's model: where it was measured, what came out there, and photos to check it by."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.bundles.bundle import REFERENCE, UNKNOWN_FILE
from tellapart.bundles.runtimes import Predictor
from tellapart.correctness import CorrectnessModel
from tellapart.data.decode import decode, decode_square
from tellapart.data.image_file import read_file
from tellapart.data.metadata import without_metadata
from tellapart.data.quality import UNKNOWN, decode_and_measure
from tellapart.errors import DecodeError
from tellapart.evaluation.measure import groups_of
from tellapart.evaluation.predict import Classifier
from tellapart.evaluation.robustness import find_quality_range, learn_under_corruption
from tellapart.records import Progress
from tellapart.run_folder import RunFolder
from tellapart.shipping.formats import WITHOUT_EMBEDDING
from tellapart.shipping.subject import HeldOut, Shipped

_REFERENCE_IMAGES = 8
_REFERENCE_BYTES = 500_000
_EMBEDDINGS = 2000
_PNG = b"\x89PNG"


def _qualities(paths: Sequence[Path], image_px: int, progress: Progress) -> pd.DataFrame:
    """Measure the quality of photos as a bundle of that size will; NaN where one cannot be read any more."""

    def measured(path: Path) -> dict[str, float]:
        try:
            return decode_and_measure(read_file(path), image_px)[1].to_dict()
        except DecodeError:
            return UNKNOWN.to_dict()

    rows = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, row in enumerate(pool.map(measured, paths), start=1):
            rows.append(row)
            if done % 32 == 0 or done == len(paths):
                progress("measuring quality", done, len(paths))
    return pd.DataFrame(rows)


def quality_range(
    shipped: Shipped, photos: HeldOut, progress: Progress
) -> dict[str, tuple[float | None, float | None]]:
    """Return the photo quality for which the accuracy was measured: measure → (low, high), None: no limit."""
    at = photos.main
    qualities = _qualities([photos.pictures.paths[i] for i in at], photos.pictures.image_px, progress)
    groups, is_right = groups_of(photos.frame), shipped.probabilities[at].argmax(axis=1) == photos.numbers[at]
    limits = find_quality_range(qualities, is_right, None if groups is None else groups[at]).limits
    return {measure: (_limit(low), _limit(high)) for measure, (low, high) in limits.items()}


def learn_correctness_of(
    predict: Predictor, shipped: Shipped, photos: HeldOut, classifier: Classifier, progress: Progress
) -> CorrectnessModel | None:
    """Learn how likely answers are right, by the very file that is shipped; None where nothing can be learned."""
    at = photos.at("validation")
    if shipped.detector is None or not len(at):
        return None

    def outputs(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        probabilities, embeddings = predict(images)
        assert embeddings is not None  # every file that is written here has both
        return probabilities, embeddings

    return learn_under_corruption(
        outputs,
        shipped.detector,
        [photos.pictures.paths[i] for i in at],
        photos.numbers[at],
        classifier.image_px,
        max_pixels=classifier.max_pixels,
        progress=progress,
    )


def write_reference(part: Path, shipped: Shipped, photos: HeldOut, correctness: CorrectnessModel | None) -> None:
    """Write embeddings, probabilities and classes of validation photos, and how likely an answer is right."""
    at = photos.at("validation")
    # Evenly over all: they are in the order of the classes, and the first ones alone would stand for a few.
    chosen = at[np.linspace(0, len(at) - 1, min(len(at), _EMBEDDINGS)).astype(np.int64)]
    # Half the bytes, and enough to look for similar photos. What decides is in unshipped.npz.
    embeddings = shipped.features[chosen].astype(np.float16)
    arrays: dict[str, Any] = {
        "embeddings": embeddings,
        "probabilities": shipped.probabilities[chosen].astype(np.float16),
        "labels": photos.numbers[chosen],
    }
    if correctness is not None:
        arrays["correctness"] = correctness.coefficients
    np.savez_compressed(part / REFERENCE, **arrays)


def write_unknown(
    part: Path, shipped: Shipped, run: Path, formats: Sequence[str], announce: Callable[[str], None]
) -> None:
    """Write what tells photos of no known class, or say that the bundle cannot, or one of its formats."""
    if shipped.detector is None:
        why = (RunFolder(run).metrics().get("unknown") or {}).get(
            "missing", "The run has no unshipped.npz: train again."
        )
        announce(f"No photo will be called none of the known classes. {why}")
        return
    shipped.detector.save(part / UNKNOWN_FILE)
    for format_ in formats:
        if format_ in WITHOUT_EMBEDDING:
            announce(f"The {format_} model gives no embeddings: it alone cannot call a photo unshipped.")


def write_reference_images(part: Path, shipped: Shipped, photos: HeldOut) -> dict[str, tuple[float, ...]]:
    """Copy a few photos, the clearest of each class in turn; return file → probabilities.

    They leave the machine with the bundle: without places, times and whatever else a camera writes into a file.
    """
    # These photos decide on other machines whether a runtime is right. Take clear ones, whose first class does not
    # change with another processor's rounding: the clearest of each class, then the second of each.
    top_two = np.sort(shipped.probabilities[photos.main], axis=1)[:, -2:]
    clearest = photos.main[np.argsort(top_two[:, 0] - top_two[:, 1], kind="stable")]
    rank = pd.Series(clearest).groupby(photos.numbers[clearest]).cumcount().to_numpy()  # rank within its class
    chosen: dict[str, tuple[float, ...]] = {}
    for position in clearest[np.argsort(rank, kind="stable")]:
        path = photos.pictures.paths[position]
        try:
            data = read_file(path)
        except DecodeError:
            continue
        # No large files: a bundle is copied around, and every start of a server decodes these photos.
        if len(data) <= _REFERENCE_BYTES and len(chosen) < _REFERENCE_IMAGES:
            data = without_metadata(data) or _as_png(data)
            # Without its metadata it must decode to the same pixels, or the expected probabilities would not be its
            # own.
            if not np.array_equal(decode_square(data, photos.pictures.image_px), photos.pictures.read(int(position))):
                continue
            name = f"reference_images/{len(chosen) + 1:02d}.{'png' if data[:4] == _PNG else 'jpg'}"
            (part / "reference_images").mkdir(exist_ok=True)
            (part / name).write_bytes(data)
            chosen[name] = tuple(float(value) for value in shipped.probabilities[position])
    return chosen


def _as_png(data: bytes) -> bytes:
    """Return a photo of another format as a PNG of the same pixels."""
    is_encoded, content = cv2.imencode(".png", cv2.cvtColor(decode(data), cv2.COLOR_RGB2BGR))
    assert is_encoded
    return content.tobytes()


def _limit(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no infinity
