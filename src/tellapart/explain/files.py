"""Explains image files: an overlay for each, and a sheet of all. Knows nothing about the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.decode import decode, read_file, resize
from tellapart.errors import DecodeError, InputError, nearest
from tellapart.evaluation.predict import Classifier
from tellapart.explain.maps import METHODS
from tellapart.explain.overlay import overlay, sheet
from tellapart.files import atomic_file
from tellapart.records import Progress, no_progress

_AT_ONCE = 64
_SHEET_ROWS = 60
_LARGEST_PX = 1024


@dataclass(frozen=True)
class Explained:
    """What was written.

    Attributes:
        written: the overlays, one for each image that could be read.
        sheet: a contact sheet of the first sixty: photo, overlay, photo, overlay, …
        unreadable: (path, reason) of the others.
    """

    written: tuple[Path, ...]
    sheet: Path | None
    unreadable: tuple[tuple[Path, str], ...]


def explain_files(
    classifier: Classifier,
    images: Sequence[Path],
    out: Path,
    *,
    method: str = "grad-cam",
    label: str | None = None,
    progress: Progress = no_progress,
) -> Explained:
    """Write what the model looked at in each image; one that cannot be read costs the others nothing.

    Args:
        classifier: the model.
        images: files.
        out: the folder for ``NAME.LABEL.jpg`` and ``sheet.jpg``.
        method: one of `tellapart.explain.maps.METHODS`.
        label: the class to explain; None: the one that the model names for each image.
        progress: called with ("explaining", done, total).

    Raises:
        InputError: there is no such method or class.
    """
    if method not in METHODS:
        raise InputError(
            f"There is no method {method!r}.{nearest(method, METHODS)} Expected one of {', '.join(METHODS)}."
        )
    if label is not None and label not in classifier.classes:
        raise InputError(
            f"The model knows no class {label!r}.{nearest(label, classifier.classes)} "
            f"It knows {', '.join(classifier.classes)}."
        )
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    rows: list[tuple[NDArray[np.uint8], str]] = []
    unreadable: list[tuple[Path, str]] = []
    for start in range(0, len(images), _AT_ONCE):
        part: list[tuple[Path, NDArray[np.uint8]]] = []
        for path in images[start : start + _AT_ONCE]:
            try:
                part.append((path, decode(read_file(path), max_pixels=classifier.max_pixels)))
            except DecodeError as error:
                unreadable.append((path, str(error)))
        if part:
            for (path, picture), (name, probability, heat) in zip(
                part, _explained(classifier, [picture for _, picture in part], method, label), strict=True
            ):
                shown = _not_too_large(picture)
                hot = overlay(shown, heat)
                written.append(_write(out, path, name, hot, written))
                if len(rows) < 2 * _SHEET_ROWS:
                    rows += [(shown, path.name), (hot, f"{name} {probability:.2f}")]
        progress("explaining", min(start + _AT_ONCE, len(images)), len(images))
    page = out / "sheet.jpg" if rows else None
    if page is not None:
        _save(page, sheet([rows[at : at + 6] for at in range(0, len(rows), 6)]))
    return Explained(tuple(written), page, tuple(unreadable))


def _explained(
    classifier: Classifier, pictures: Sequence[NDArray[np.uint8]], method: str, label: str | None
) -> list[tuple[str, float, NDArray[np.float32]]]:
    """Return (class, its probability, heat map) for each picture."""
    small = np.stack([resize(picture, classifier.image_px) for picture in pictures])
    probabilities = classifier.probabilities(small)
    targets = probabilities.argmax(axis=1) if label is None else np.full(len(small), classifier.classes.index(label))
    heat = METHODS[method](classifier.model, small, targets)
    return [
        (classifier.classes[target], float(row[target]), each)
        for target, row, each in zip(targets, probabilities, heat, strict=True)
    ]


def _not_too_large(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _LARGEST_PX / max(picture.shape[:2])
    if scale >= 1:
        return picture
    return np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def _write(out: Path, path: Path, name: str, picture: NDArray[np.uint8], written: Sequence[Path]) -> Path:
    """Write one overlay under a name that is not taken: two folders may hold images of one name."""
    plain = re.sub(r"[^\w.-]+", "-", f"{path.stem}.{name}")
    place, number = out / f"{plain}.jpg", 2
    while place in written:
        place, number = out / f"{plain}-{number}.jpg", number + 1
    _save(place, picture)
    return place


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])
    with atomic_file(path) as stream:
        stream.write(data.tobytes())
