"""A bundle whose weights are not float32: what it says is measured on the file that ships, not on the Keras model.

Knows nothing about how the file is made (`tellapart.shipping.quantize`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.bundles.bundle import EXPLAIN_FILE, Artefact
from tellapart.bundles.parity import no_worse, parity
from tellapart.bundles.runtimes import RUNTIMES, Predictor
from tellapart.data.cache import Pictures, open_rows
from tellapart.errors import BundleError, InputError
from tellapart.evaluation.calibration import conformal_threshold
from tellapart.evaluation.measure import class_numbers, measure_sides
from tellapart.evaluation.predict import Classifier, predict_pictures
from tellapart.models.ensemble import members_of
from tellapart.randomness import generator
from tellapart.records import Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.shipping.artefacts import describe, size_of, write_formats
from tellapart.shipping.proofs import prove
from tellapart.shipping.quantize import (
    NUM_CALIBRATION,
    OnnxQuantizer,
    clipped,
    equalised,
    litert_int8,
    weights_to_float16,
    weights_to_int8,
)
from tellapart.shipping.rounding import folded, trained_for_int8
from tellapart.shipping.subject import HeldOut, Shipped
from tellapart.unknown import fit_detector

_BATCH = 32


@dataclass(frozen=True)
class Reduction:
    """What a bundle of another precision is made of, beside the network.

    Attributes:
        run: the run.
        classifier: its model.
        cache: the folder for decoded pictures.
        margin: share of the validation photos by which it may be less accurate.
        coverage: that the prediction sets promise.
        precision: "float16", "int8-weights" or "int8", of weights and activations.
        epochs: that the network is trained for with rounded weights and activations before it becomes int8.
    """

    run: RunFolder
    classifier: Classifier
    cache: Path
    margin: float
    coverage: float
    precision: str
    epochs: int = 0

    def open(self, frame: pd.DataFrame, progress: Progress = no_progress) -> Pictures:
        """Open photos of the run as the network sees them."""
        options = {"folder": self.cache, "max_pixels": self.classifier.max_pixels, "progress": progress}
        return open_rows(self.run.root, frame, self.classifier.image_px, **options)


class Answers(NamedTuple):
    """What a shipped model says of photos.

    Attributes:
        probabilities: (num_images, num_classes) float32.
        features: (num_images, num_features) float32.
    """

    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


def write_reduced_artefacts(
    part: Path,
    shipped: Shipped,
    request: Reduction,
    formats: Sequence[str],
    progress: Progress,
    announce: Callable[[str], None],
) -> tuple[keras.Model, tuple[Artefact, ...]]:
    """Write the model in fewer bits, and prove on validation photos that it loses no more accuracy than the margin.

    Returns:
        The network whose weights are in the files, and the artefacts.

    Raises:
        InputError: the run has no photos to calibrate or prove it on, or is an ensemble and this is int8.
        BundleError: the ONNX file lost more. A LiteRT file that did is left out, with a warning.
    """
    classifier, frame = request.classifier, request.run.readable()
    # Validation photos alone: a search chooses between such bundles, and must not do it by test photos.
    held_out = frame[frame["split"] == "validation"].reset_index(drop=True)
    if not len(held_out):
        raise InputError(f"{request.precision} is proved on validation photos, and {request.run.path} has none.")
    with contextlib.ExitStack() as stack:
        quantizer = None
        if request.precision == "int8":
            model, paths, quantizer = _int8_files(part, shipped.model, request, formats, progress, announce, stack)
        else:
            model, paths = shipped.model, write_formats(shipped.model, part, formats, announce, request.precision)
            reduce = weights_to_float16 if request.precision == "float16" else weights_to_int8
            reduce(paths["onnx"], paths["onnx"])
            if (part / EXPLAIN_FILE).is_file():
                reduce(part / EXPLAIN_FILE, part / EXPLAIN_FILE)
        photos = stack.enter_context(request.open(held_out, progress))
        expected = predict_pictures(shipped.model, photos, progress)

        def proved(format_: str, path: Path, float_layers: tuple[str, ...] = ()) -> Artefact:
            inside = path.relative_to(part).as_posix()
            artefact = Artefact(
                id=format_, format=format_, precision=request.precision, float_layers=float_layers, path=inside,
                bytes=size_of(path), proofs={},
            )  # fmt: skip
            return prove(artefact, path, expected, photos, numbers, progress, announce, margin=request.margin)

        numbers = class_numbers(held_out, classifier.classes)
        artefacts: list[Artefact] = []
        for format_, path in paths.items():
            describe(format_, path, shipped)
            try:
                artefacts.append(proved(format_, path))
            except BundleError as error:
                if format_ != "onnx":
                    announce(f"warning: {error} It is left out.")
                    shutil.rmtree(path.parent)  # of which it is the only file
                    continue
                # With few photos even a network that says the same is not shown to keep the margin.
                hopeless = not parity(expected, expected, numbers, no_worse(request.margin)).passed
                if quantizer is None or hopeless:
                    raise
                announce(f"{error} Convolutions that suffer are looked for.")
                artefacts.append(_partly_in_float(quantizer, path, proved, error, progress, announce))
    return model, tuple(artefacts)


def _partly_in_float(
    quantizer: OnnxQuantizer,
    path: Path,
    proved: Callable[[str, Path, tuple[str, ...]], Artefact],
    refusal: BundleError,
    progress: Progress,
    announce: Callable[[str], None],
) -> Artefact:
    """Leave the convolutions in float32 that int8 harms most: one, two, four, as many as it takes, up to a quarter."""
    progress("measuring convolutions", 0, 1)
    worst = list(quantizer.damages())
    progress("measuring convolutions", 1, 1)
    count = 1
    while count <= max(1, len(worst) // 4):
        chosen = tuple(worst[:count])
        quantizer.write(path, chosen)
        announce(f"{count} of {len(worst)} convolutions in float32: {', '.join(chosen)}.")
        try:
            return proved("onnx", path, chosen)
        except BundleError as error:
            refusal = error
        count *= 2
    raise refusal


def _int8_files(
    part: Path,
    whole: keras.Model,
    request: Reduction,
    formats: Sequence[str],
    progress: Progress,
    announce: Callable[[str], None],
    stack: contextlib.ExitStack,
) -> tuple[keras.Model, dict[str, Path], OnnxQuantizer]:
    """Write weights and activations in int8.

    Returns:
        The network whose weights those are, format → file, and what can write the ONNX file once more, as long as
        `stack` is open.
    """
    if members_of(whole):
        raise InputError("An ensemble has no int8. Export one of its members, or a student of it.")
    pictures = _calibration_pictures(request, progress)
    model = equalised(whole)
    if request.epochs:
        model = _trained(clipped(model, pictures), request, pictures, progress)
    paths = write_formats(model, part, (), announce)
    progress("quantizing", 0, 1)
    quantizer = stack.enter_context(OnnxQuantizer(paths["onnx"], pictures))
    quantizer.write(paths["onnx"])
    if (part / EXPLAIN_FILE).is_file():
        weights_to_int8(part / EXPLAIN_FILE, part / EXPLAIN_FILE)
    if "litert" in formats:
        paths["litert"] = part / "formats" / "model.tflite"
        paths["litert"].parent.mkdir()
        paths["litert"].write_bytes(litert_int8(model, pictures, request.classifier.image_px))
    progress("quantizing", 1, 1)
    return model, paths, quantizer


def as_shipped(
    part: Path, artefact: Artefact, shipped: Shipped, photos: HeldOut, request: Reduction, progress: Progress
) -> Shipped:
    """Return what the reduced model says of the photos, its metrics, and what tells unknown ones by its embeddings."""
    predict, classifier = shipped_predictor(artefact, part / artefact.path), request.classifier
    probabilities, features = answers_to(predict, photos.pictures, progress)
    held_out = photos.at("validation")
    threshold = conformal_threshold(
        photos.numbers[held_out], probabilities[held_out].astype(np.float64), request.coverage
    )
    frame = request.run.readable()
    frame = frame[frame["split"] == "train"].reset_index(drop=True)
    with request.open(frame, progress) as pictures:
        learned = answers_to(predict, pictures, progress).features
    try:
        detector = fit_detector(learned, class_numbers(frame, classifier.classes), features[held_out])
    except InputError:  # too few validation photos, as the run had
        detector = None
    metrics = measure_sides(photos.frame, probabilities, classifier.classes)
    return replace(
        shipped, threshold=threshold, probabilities=probabilities, features=features, detector=detector, metrics=metrics
    )


def shipped_predictor(artefact: Artefact, path: Path) -> Predictor:
    """Open an artefact in a runtime that passed its proof: ONNX Runtime, whose arithmetic is the file's, or another."""
    passed = [name for name in RUNTIMES if (proof := artefact.proofs.get(name)) is not None and proof.passed]
    name = min(passed, key=lambda name: not name.startswith("onnxruntime"))
    return RUNTIMES[name].opens(path, os.cpu_count() or 1)


def answers_to(predict: Predictor, pictures: Pictures, progress: Progress) -> Answers:
    """Return what a shipped model says of all pictures."""
    probabilities, features = [], []
    for start in range(0, len(pictures), _BATCH):
        outputs = predict(pictures.batch(range(start, min(start + _BATCH, len(pictures)))))
        assert outputs.embeddings is not None  # every file that is written here has them
        probabilities.append(outputs.probabilities)
        features.append(outputs.embeddings)
        progress("predicting", min(start + _BATCH, len(pictures)), len(pictures))
    return Answers(np.concatenate(probabilities), np.concatenate(features))


def _trained(model: keras.Model, request: Reduction, calibration: NDArray[np.uint8], progress: Progress) -> keras.Model:
    """Train the network with rounding on the run's training photos, half of them mirrored."""
    frame = request.run.readable()
    frame = frame[frame["split"] == "train"].reset_index(drop=True)
    random = generator(0, "rounding")
    with request.open(frame, progress) as pictures:

        def batches() -> Iterator[NDArray[np.uint8]]:
            order = random.permutation(len(pictures))
            # Whole batches only: a short one at the end would compile the step anew.
            for start in range(0, len(order) - _BATCH + 1, _BATCH):
                batch = pictures.batch(np.sort(order[start : start + _BATCH]))
                mirrored = random.random(len(batch)) < 0.5
                batch[mirrored] = batch[mirrored, :, ::-1]
                yield batch

        return trained_for_int8(
            folded(model), batches, calibration, epochs=request.epochs, num_batches=len(pictures) // _BATCH,
            progress=progress,
        )  # fmt: skip


def _calibration_pictures(request: Reduction, progress: Progress) -> NDArray[np.uint8]:
    """Return training photos to learn the ranges of activations from: (num_images, image_px, image_px, 3) uint8.

    No label is looked at, and no photo that anything is measured on.

    Raises:
        InputError: the run has no training photos.
    """
    frame = request.run.readable()
    learned = np.flatnonzero((frame["split"] == "train").to_numpy())
    # Drawn, and in their order: photos are in the order of their classes.
    chosen = np.sort(generator(0, "calibration").permutation(learned)[:NUM_CALIBRATION])
    if not len(chosen):
        raise InputError(f"{request.run.path} has no training photos to learn the ranges of activations from.")
    with request.open(frame.iloc[chosen].reset_index(drop=True), progress) as pictures:
        return pictures.batch(np.arange(len(pictures)))
