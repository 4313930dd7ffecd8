"""Explains images: a heat map for each, overlays and a sheet of all as files. Knows nothing about the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.data.decode import decode, resize
from tellapart.data.image_file import read_file
from tellapart.errors import DecodeError, InputError, nearest
from tellapart.evaluation.predict import Classifier, load, unfit
from tellapart.explain.maps import DEFAULT_METHOD, METHODS
from tellapart.explain.overlay import overlay, sheet
from tellapart.files import atomic_file
from tellapart.records import Progress, no_progress

_AT_ONCE = 64  # images in memory at their own size
_SHEET_ROWS = 60
_LARGEST_PX = 1024
_LONGEST_STEM = 60
"""Characters of a photo's name in that of its overlay; file systems take 255 bytes for all of it."""


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


@dataclass(frozen=True)
class HeatMap:
    """What a model looked at in one image.

    Attributes:
        path: the file, or "image 3" for an array.
        label: the class that is explained; None with an error.
        probability: of that class.
        heat: (image_px, image_px) float32 in [0, 1].
        overlay: (height, width, 3) uint8 RGB, the image with its heat, at most 1,024 pixels long.
        error: why there is none.
    """

    path: str
    label: str | None
    probability: float
    heat: NDArray[np.float32]
    overlay: NDArray[np.uint8]
    error: str = ""


def heat_maps(
    run: str | os.PathLike[str] | Classifier,
    images: Sequence[str | os.PathLike[str] | NDArray[np.uint8]],
    *,
    method: str = DEFAULT_METHOD,
    label: str | None = None,
) -> list[HeatMap]:
    """Show what a model looks at in each image; one that cannot be read gets an error and costs the others nothing.

    Args:
        run: a finished run folder, or a model as `tellapart.load` returns it.
        images: files, or pictures as (height, width, 3) uint8 RGB arrays of any size.
        method: "grad-cam", "hires-cam", "layer-cam", "integrated-gradients" or "occlusion".
        label: the class to explain; None: the one that the model names for each image.

    Returns:
        One `HeatMap` per image, in their order.

    Raises:
        InputError: there is no such method or class.
        RunError: `run` has no model.

    Example:
        >>> tellapart.heat_maps("runs/pets", ["cat.jpg"])[0].overlay.shape
        (375, 500, 3)
    """
    classifier = run if isinstance(run, Classifier) else load(run)
    _check(classifier, method, label)
    maps: list[HeatMap] = []
    for start in range(0, len(images), _AT_ONCE):
        maps += _part_of_maps(classifier, images[start : start + _AT_ONCE], start, method, label)
    return maps


def explain_files(
    classifier: Classifier,
    images: Sequence[Path],
    out: Path,
    *,
    method: str = DEFAULT_METHOD,
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
    _check(classifier, method, label)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    cells: list[tuple[NDArray[np.uint8], str]] = []
    unreadable: list[tuple[Path, str]] = []
    for start in range(0, len(images), _AT_ONCE):
        for heat_map in _part_of_maps(classifier, images[start : start + _AT_ONCE], start, method, label):
            path = Path(heat_map.path)
            if heat_map.label is None:
                unreadable.append((path, heat_map.error))
                continue
            written.append(_write(out, path, heat_map.label, heat_map.overlay, written))
            # The sheet is one picture in memory, so it shows a limited number of photos.
            if len(cells) < 2 * _SHEET_ROWS:
                # Decoded once more: to keep the photos for the sheet would take more memory than a few decodings take
                # time.
                shown = _not_too_large(decode(read_file(path), max_pixels=classifier.max_pixels))
                cells += [(shown, path.name), (heat_map.overlay, f"{heat_map.label} {heat_map.probability:.2f}")]
        progress("explaining", min(start + _AT_ONCE, len(images)), len(images))
    sheet_path = out / "sheet.jpg" if cells else None
    if sheet_path is not None:
        _save(sheet_path, sheet([cells[at : at + 6] for at in range(0, len(cells), 6)]))
    return Explained(tuple(written), sheet_path, tuple(unreadable))


def _check(classifier: Classifier, method: str, label: str | None) -> None:
    if method not in METHODS:
        raise InputError(
            f"There is no method {method!r}.{nearest(method, METHODS)} Expected one of {', '.join(METHODS)}."
        )
    if label is not None and label not in classifier.classes:
        raise InputError(
            f"The model knows no class {label!r}.{nearest(label, classifier.classes)} "
            f"It knows {', '.join(classifier.classes)}."
        )


def _part_of_maps(
    classifier: Classifier,
    images: Sequence[str | os.PathLike[str] | NDArray[np.uint8]],
    start: int,
    method: str,
    label: str | None,
) -> list[HeatMap]:
    """Return the maps of a few images, the first of which is number `start`."""
    pictures = [_picture(image, classifier.max_pixels) for image in images]
    readable = [picture for picture in pictures if not isinstance(picture, str)]
    # All readable pictures go through the network together; the others keep their place in the result.
    explained = iter(_explained(classifier, readable, method, label) if readable else [])
    maps = []
    for number, (image, picture) in enumerate(zip(images, pictures, strict=True), start):
        path = f"image {number}" if isinstance(image, np.ndarray) else os.fspath(image)
        if isinstance(picture, str):
            no_maps = np.zeros((0, 0), np.float32), np.zeros((0, 0, 3), np.uint8)
            maps.append(HeatMap(path, None, float("nan"), *no_maps, picture))
            continue
        name, probability, heat = next(explained)
        maps.append(HeatMap(path, name, probability, heat, overlay(_not_too_large(picture), heat)))
    return maps


def _picture(image: str | os.PathLike[str] | NDArray[np.uint8], max_pixels: int) -> NDArray[np.uint8] | str:
    """Return the image at its own size, or why there is none."""
    if isinstance(image, np.ndarray):
        return unfit(image) or image
    try:
        return decode(read_file(image), max_pixels=max_pixels)
    except DecodeError as error:
        return str(error)


def _explained(
    classifier: Classifier, pictures: Sequence[NDArray[np.uint8]], method: str, label: str | None
) -> list[tuple[str, float, NDArray[np.float32]]]:
    """Return (class, its probability, heat map) for each picture."""
    small = np.stack([resize(picture, classifier.image_px) for picture in pictures])
    probabilities = classifier.probabilities(small)
    targets = probabilities.argmax(axis=1) if label is None else np.full(len(small), classifier.classes.index(label))
    heat = METHODS[method](classifier.model, small, targets)
    return [
        (classifier.classes[target], float(row[target]), values)
        for target, row, values in zip(targets, probabilities, heat, strict=True)
    ]


def _not_too_large(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _LARGEST_PX / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))


def _write(out: Path, path: Path, name: str, picture: NDArray[np.uint8], written: Sequence[Path]) -> Path:
    """Write one overlay under a name that is not taken: two folders may hold images of one name."""
    safe_name = re.sub(r"[^\w.-]+", "-", f"{path.stem[:_LONGEST_STEM]}.{name}")
    target, number = out / f"{safe_name}.jpg", 2
    # Only names of this call count: files of an earlier call are replaced.
    while target in written:
        target, number = out / f"{safe_name}-{number}.jpg", number + 1
    _save(target, picture)
    return target


def _save(path: Path, picture: NDArray[np.uint8]) -> None:
    # OpenCV expects blue, green, red.
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])
    with atomic_file(path) as stream:
        stream.write(data.tobytes())
