"""The story of a bundle: a finished run becomes one folder that is all anyone needs. Reads top to bottom."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.bundles.bundle import (
    EXPLAIN_FILE,
    NAME,
    REFERENCE,
    UNKNOWN_FILE,
    Artefact,
    Bundle,
    BundleRecord,
    Preprocessing,
    is_bundle,
    open_bundle,
    strange_files,
    write_record,
)
from tellapart.bundles.runtimes import RUNTIMES, Predictor
from tellapart.correctness import CorrectnessModel
from tellapart.data.cache import Pictures, default_cache, open_rows
from tellapart.data.decode import DECODER_VERSION, decode, decode_square
from tellapart.data.image_file import read_file
from tellapart.data.metadata import without_metadata
from tellapart.data.quality import UNKNOWN, measure_quality
from tellapart.errors import BundleError, DecodeError, InputError, nearest
from tellapart.evaluation.calibration import conformal_threshold, fit_temperature
from tellapart.evaluation.features import features_and_probabilities
from tellapart.evaluation.measure import class_numbers, groups_of, measure_sides
from tellapart.evaluation.predict import Classifier, load, predict_pictures
from tellapart.evaluation.robustness import find_quality_range, learn_under_corruption
from tellapart.explain.maps import grad_cam_values
from tellapart.files import write_text
from tellapart.models.ensemble import heaviest
from tellapart.models.layers import LayerReader
from tellapart.models.temperature import with_temperature
from tellapart.records import SPLITS, Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.shipping.card import model_card
from tellapart.shipping.formats import (
    FORMATS,
    WITHOUT_EMBEDDING,
    Network,
    convert_to_onnx,
    save_explanation,
    save_saved_model,
)
from tellapart.shipping.proofs import prove
from tellapart.shipping.quantize import equalised, litert_int8, quantize_onnx, weights_to_int8
from tellapart.shipping.reduced import answers_to, calibration_pictures, fit_shipped_detector, shipped_predictor
from tellapart.unknown import UnknownDetector, load_detector

logger = logging.getLogger(__name__)

COVERAGE = 0.95
"""Of the prediction sets, and with them of the answer "I am not sure"."""

_REFERENCE_IMAGES = 8
_REFERENCE_BYTES = 500_000
_EMBEDDINGS = 2000
_EXPLAINED = 8
FULL = "float32"
_HEAT = {FULL: 1e-3, "int8": 0.1}
"""How far heat maps may be from Keras', of the strongest heat, by precision of the weights."""
MARGIN = 0.005
"""Share of the validation photos by which a bundle in int8 may be less accurate."""
_PNG = b"\x89PNG"


def export(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    name: str | None = None,
    formats: Sequence[str] = (),
    coverage: float = COVERAGE,
    precision: str = FULL,
    margin: float = MARGIN,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    announce: Callable[[str], None] = logger.info,
) -> Bundle:
    """Make a bundle of a finished run, and prove that it says what the run's model says.

    In int8 it is another model: metrics, thresholds, references and what tells unknown photos are those of the file
    that ships, and the proof is that it is not less accurate than the run's on validation photos by more than a margin.

    Args:
        run: a finished run folder; its validation and test photos are read.
        to: the folder to make. A bundle that stands there is replaced, and not touched if something fails.
        name: of the model; None: the run folder's.
        formats: any of "openvino", "litert", "saved_model", "keras", beside ONNX.
        coverage: that the prediction sets promise, 0 to 1.
        precision: "float32" or "int8", of weights and activations.
        margin: share of the validation photos by which int8 may be less accurate, 0 to 1: the upper end of the 95 %
            interval of the loss must lie below it.
        cache: the folder for decoded pictures; None: the user's.
        progress: called often with (what, done, total).
        announce: called with single lines.

    Raises:
        RunError: `run` has no model.
        InputError: an unknown format or name, or a network that cannot be calibrated.
        BundleError: `to` is something else, or an artefact failed the parity gate.
    """
    run_folder, target = Path(run), Path(to)
    cache_folder = default_cache() if cache is None else Path(cache)
    name = re.sub(r"[^\w.-]+", "-", run_folder.resolve().name)[:100] if name is None else name
    # Cheap checks first: a wrong name must not surface after minutes of proofs.
    _check(target, name, formats, coverage, precision, margin)
    classifier = load(run_folder)
    classifier.max_pixels = RunFolder(run_folder).recipe().data.max_pixels
    photos = _photos(run_folder, classifier, cache_folder, progress)
    # Hidden, so that a server ignores it; beside the target, so that a rename stays on one file system.
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with photos.pictures:
            # Calibrate first: the temperature goes into the weights of every artefact below.
            known = _calibrated(run_folder, classifier, photos, coverage, progress)
            announce(
                f"Temperature {known.temperature:.3f}; a class belongs to the answer from a probability of "
                f"{known.threshold or 0:.3f}."
            )
            detector, of_run = load_detector(RunFolder(run_folder).unknown_path), _of_run(run_folder)
            if precision == FULL:
                artefacts = _artefacts(part, known, photos, formats, progress, announce)
            else:
                request = _Reduction(RunFolder(run_folder), classifier, cache_folder, margin, coverage)
                artefacts = _reduced_artefacts(part, known, request, formats, progress, announce)
                known, detector = _as_shipped(part, artefacts[0], known, photos, request, progress)
                of_run["metrics"] = measure_sides(photos.frame, known.probabilities, classifier.classes)
            record = BundleRecord(
                name=name,
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                classes=tuple(classifier.classes),
                preprocessing=Preprocessing(image_px=classifier.image_px, decoder_version=DECODER_VERSION),
                max_pixels=classifier.max_pixels,
                temperature=known.temperature,
                coverage=coverage,
                threshold=known.threshold,
                quality_range=_quality_range(known, photos, progress),
                **of_run,
                artefacts=artefacts,
                explains=_prove_explanation(known.model, part, photos, _HEAT[precision], announce),
                reference_images=_write_reference_images(part, known, photos),
            )
            predict = shipped_predictor(artefacts[0], part / artefacts[0].path)
            _write_reference(part, known, photos, _correctness(predict, detector, photos, classifier, progress))
            _write_unknown(part, detector, run_folder, formats, announce)
        # The card before the record: `write_record` takes the checksums of all files that are there.
        write_text(part / "card.md", model_card(record, detector))
        write_record(part, record)
        # Open it before it replaces the old one: a bundle that cannot be opened here cannot be opened anywhere.
        bundle = open_bundle(part)
        _replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return replace(bundle, folder=target)


@dataclass(frozen=True)
class _Photos:
    """The photos that a bundle is proved on.

    Attributes:
        frame: their rows of the manifest.
        pictures: in the order of `frame`, as the network sees them.
        numbers: (num_images,) class numbers.
    """

    frame: pd.DataFrame
    pictures: Pictures
    numbers: NDArray[np.int64]

    def at(self, split: str) -> NDArray[np.int64]:
        """Return the positions in one split."""
        return np.flatnonzero((self.frame["split"] == split).to_numpy())

    @property
    def main(self) -> NDArray[np.int64]:
        """The positions in the last split that has photos."""
        return next(self.at(split) for split in reversed(SPLITS) if len(self.at(split)))


@dataclass(frozen=True)
class _Known:
    """The calibrated network and what it says of the photos.

    Attributes:
        model: the network.
        temperature: that went into it.
        threshold: of the prediction sets, or None.
        probabilities: (num_images, num_classes) float32, calibrated.
        features: (num_images, num_features) float32.
    """

    model: keras.Model
    temperature: float
    threshold: float | None
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class _Reduction:
    """What a bundle of another precision is made of, beside the network.

    Attributes:
        run: the run.
        classifier: its model.
        cache: the folder for decoded pictures.
        margin: share of the validation photos by which it may be less accurate.
        coverage: that the prediction sets promise.
    """

    run: RunFolder
    classifier: Classifier
    cache: Path
    margin: float
    coverage: float


def _check(target: Path, name: str, formats: Sequence[str], coverage: float, precision: str, margin: float) -> None:
    if precision not in _HEAT:
        raise InputError(
            f"There is no precision {precision!r}.{nearest(precision, _HEAT)} Expected {' or '.join(_HEAT)}."
        )
    if precision != FULL and (others := sorted(set(formats) - {"litert"})):
        raise InputError(f"{precision} comes as ONNX and LiteRT. Leave the format {others[0]} out.")
    if not 0 < margin < 1:
        raise InputError(f"The margin is {margin:g}. Expected a share between 0 and 1, such as 0.005.")
    for format_ in formats:
        if format_ not in FORMATS:
            raise InputError(
                f"There is no format {format_!r}.{nearest(format_, FORMATS)} Expected any of {', '.join(FORMATS)}."
            )
        if not any(runtime.format == format_ and runtime.installed for runtime in RUNTIMES.values()):
            raise InputError(
                f"Nothing here runs the format {format_!r}, so that the model could not be proved: "
                f"pip install 'tellapart[{format_}]', or leave the format out."
            )
    if not re.fullmatch(NAME, name):
        raise InputError(f"The name is {name!r}. Expected up to 100 letters, digits, points, hyphens and underscores.")
    if not 0 < coverage < 1:
        raise InputError(f"The coverage is {coverage:g}. Expected a share between 0 and 1, such as 0.95.")
    # The target is deleted in the end, so it must not hold anything that export did not make.
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not is_bundle(target))):
        raise BundleError(f"{target} already exists and is not a bundle. Name a new folder.")
    if is_bundle(target) and (foreign := strange_files(target)):
        raise BundleError(f"{target} holds {foreign[0]}, which is not the bundle's and would be lost. Move it away.")


def _photos(run: Path, classifier: Classifier, cache: Path, progress: Progress) -> _Photos:
    """Open the run's validation and test photos, or all where there are none of those."""
    readable = RunFolder(run).readable()
    held_out = readable[readable["split"].isin(["validation", "test"])]
    frame = (held_out if len(held_out) else readable).reset_index(drop=True)
    pictures = open_rows(
        RunFolder(run).root,
        frame,
        classifier.image_px,
        folder=cache,
        max_pixels=classifier.max_pixels,
        progress=progress,
    )
    numbers = np.array([classifier.classes.index(label) for label in frame["label"]], np.int64)
    return _Photos(frame, pictures, numbers)


def _calibrated(run: Path, classifier: Classifier, photos: _Photos, coverage: float, progress: Progress) -> _Known:
    """Fit the threshold on validation photos, and the temperature where the run has none; without any, neither."""
    features, probabilities = features_and_probabilities(classifier.model, photos.pictures, progress)
    # Fitted on validation photos only: test photos must stay unseen by everything that the bundle promises.
    held_out, threshold, model = photos.at("validation"), None, classifier.model
    # Told apart by the key, not by its value: a run without validation photos has "temperature" with null.
    metrics = RunFolder(run).metrics()
    temperature = metrics.get("temperature") or 1.0  # it is inside the network
    if len(held_out) and "temperature" not in metrics:  # made before runs were calibrated
        temperature = fit_temperature(photos.numbers[held_out], probabilities[held_out].astype(np.float64))
        model = with_temperature(classifier.model, temperature)
        probabilities = predict_pictures(model, photos.pictures, progress)
    if len(held_out):
        held_out_probabilities = probabilities[held_out].astype(np.float64)
        threshold = conformal_threshold(photos.numbers[held_out], held_out_probabilities, coverage)
    # `features` hold for both networks: the temperature is in the last layer, and they are what it sees.
    return _Known(model, temperature, threshold, probabilities, features)


def _artefacts(
    part: Path,
    known: _Known,
    photos: _Photos,
    formats: Sequence[str],
    progress: Progress,
    announce: Callable[[str], None],
) -> tuple[Artefact, ...]:
    """Write the model in every format that was asked for, and prove each."""
    artefacts = []
    for format_, path in _write_formats(known.model, part, formats, announce).items():
        inside = path.relative_to(part).as_posix()
        artefact = Artefact(id=format_, format=format_, path=inside, bytes=_size(path), proofs={})
        artefacts.append(
            prove(artefact, path, known.probabilities, photos.pictures, photos.numbers, progress, announce)
        )
    return tuple(artefacts)


def _reduced_artefacts(
    part: Path,
    known: _Known,
    request: _Reduction,
    formats: Sequence[str],
    progress: Progress,
    announce: Callable[[str], None],
) -> tuple[Artefact, ...]:
    """Write the model in int8, and prove that it is not less accurate on validation photos by more than the margin."""
    run, classifier = request.run, request.classifier
    options = {"folder": request.cache, "max_pixels": classifier.max_pixels}
    pictures = calibration_pictures(run, classifier.image_px, request.cache, classifier.max_pixels)
    model = equalised(known.model)
    floats = _write_formats(model, part, (), announce)["onnx"]
    progress("quantizing", 0, 1)
    quantize_onnx(floats, floats, pictures)
    if (part / EXPLAIN_FILE).is_file():
        weights_to_int8(part / EXPLAIN_FILE, part / EXPLAIN_FILE)
    paths = {"onnx": floats}
    if "litert" in formats:
        paths["litert"] = part / "formats" / "model.tflite"
        paths["litert"].parent.mkdir()
        paths["litert"].write_bytes(litert_int8(model, pictures, classifier.image_px))
    progress("quantizing", 1, 1)
    # Validation photos alone: a search chooses between such bundles, and must not do it by test photos.
    frame = run.readable()
    held_out = frame[frame["split"] == "validation"].reset_index(drop=True)
    if not len(held_out):
        raise BundleError("int8 is proved on validation photos, and the run has none.")
    numbers = class_numbers(held_out, classifier.classes)
    artefacts: list[Artefact] = []
    with open_rows(run.root, held_out, classifier.image_px, **options) as photos:
        expected = predict_pictures(known.model, photos, progress)
        for format_, path in paths.items():
            inside = path.relative_to(part).as_posix()
            artefact = Artefact(id=format_, format=format_, precision="int8", path=inside, bytes=_size(path), proofs={})
            try:
                artefact = prove(artefact, path, expected, photos, numbers, progress, announce, margin=request.margin)
            except BundleError as error:
                if not artefacts:
                    raise
                announce(f"warning: {error} It is left out.")
                shutil.rmtree(path.parent)  # of which it is the only file
                continue
            artefacts.append(artefact)
    return tuple(artefacts)


def _as_shipped(
    part: Path, artefact: Artefact, known: _Known, photos: _Photos, request: _Reduction, progress: Progress
) -> tuple[_Known, UnknownDetector | None]:
    """Return what the shipped model says of the photos, and what tells unknown ones by its embeddings."""
    predict, classifier = shipped_predictor(artefact, part / artefact.path), request.classifier
    probabilities, features = answers_to(predict, photos.pictures, progress)
    held_out = photos.at("validation")
    threshold = conformal_threshold(
        photos.numbers[held_out], probabilities[held_out].astype(np.float64), request.coverage
    )
    detector = fit_shipped_detector(
        request.run, predict, classifier.classes, features[held_out], classifier.image_px, request.cache,
        classifier.max_pixels, progress,
    )  # fmt: skip
    return replace(known, threshold=threshold, probabilities=probabilities, features=features), detector


def _write_formats(
    model: keras.Model, part: Path, formats: Sequence[str], announce: Callable[[str], None]
) -> dict[str, Path]:
    """Write the graph that explains, ONNX and what was asked for; return format → file or folder of the classifiers."""
    # All formats are made from the SavedModel; it goes into the bundle only if it was asked for.
    with tempfile.TemporaryDirectory() as folder:
        saved_model, explanation = Path(folder) / "saved_model", Path(folder) / "explanation"
        network = Network(model, saved_model, part / "model.onnx")
        save_saved_model(model, saved_model)
        files = {saved_model: network.onnx}
        try:
            save_explanation(heaviest(model), explanation)  # an ensemble has no one last layer of feature maps
            files[explanation] = part / EXPLAIN_FILE
        except InputError as error:
            announce(f"No heat maps from this bundle: {error}")
        convert_to_onnx(files)
        announce(f"ONNX: {_size(network.onnx) / 1e6:.2f} MB.")
        extra = part / "formats"
        if formats:
            extra.mkdir()
        return {"onnx": network.onnx, **{format_: FORMATS[format_](network, extra) for format_ in formats}}


def _prove_explanation(
    model: keras.Model, part: Path, photos: _Photos, tolerance: float, announce: Callable[[str], None]
) -> str | None:
    """Hold the heat maps of the graph that explains against Keras' on a few photos, and name its method."""
    import onnxruntime

    if not (part / EXPLAIN_FILE).is_file():
        return None
    at = photos.main[:_EXPLAINED]
    pictures, targets = photos.pictures.batch(at), photos.numbers[at]
    session = onnxruntime.InferenceSession(part / EXPLAIN_FILE, providers=["CPUExecutionProvider"])
    (heat,) = session.run(["heat"], {"image": pictures, "target": targets})
    expected = grad_cam_values(LayerReader(heaviest(model)).read(pictures, targets))
    difference = float(np.abs(heat - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= tolerance:  # NaN is no agreement either
        raise BundleError(
            f"The explanation graph differs from Keras by {difference:.2g} of the strongest heat; {tolerance:g} is "
            "allowed. No bundle was made."
        )
    announce(f"Grad-CAM by ONNX Runtime: within {tolerance:g} of Keras' strongest heat on {len(at)} photos.")
    return "grad-cam"


def _qualities(paths: Sequence[Path], progress: Progress) -> pd.DataFrame:
    """Measure the quality of photos; NaN for those that cannot be read any more."""

    def measured(path: Path) -> dict[str, float]:
        try:
            return measure_quality(read_file(path)).to_dict()
        except DecodeError:
            return UNKNOWN.to_dict()

    rows = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, row in enumerate(pool.map(measured, paths), start=1):
            rows.append(row)
            if done % 32 == 0 or done == len(paths):
                progress("measuring quality", done, len(paths))
    return pd.DataFrame(rows)


def _quality_range(known: _Known, photos: _Photos, progress: Progress) -> dict[str, tuple[float | None, float | None]]:
    at = photos.main
    qualities = _qualities([photos.pictures.paths[i] for i in at], progress)
    groups, is_right = groups_of(photos.frame), known.probabilities[at].argmax(axis=1) == photos.numbers[at]
    limits = find_quality_range(qualities, is_right, None if groups is None else groups[at]).limits
    return {measure: (_limit(low), _limit(high)) for measure, (low, high) in limits.items()}


def _correctness(
    predict: Predictor,
    detector: UnknownDetector | None,
    photos: _Photos,
    classifier: Classifier,
    progress: Progress,
) -> CorrectnessModel | None:
    """Learn how likely answers are right, by the very file that is shipped; None where nothing can be learned."""
    at = photos.at("validation")
    if detector is None or not len(at):
        return None

    def outputs(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        probabilities, embeddings = predict(images)
        assert embeddings is not None  # every file that is written here has both
        return probabilities, embeddings

    return learn_under_corruption(
        outputs,
        detector,
        [photos.pictures.paths[i] for i in at],
        photos.numbers[at],
        classifier.image_px,
        max_pixels=classifier.max_pixels,
        progress=progress,
    )


def _write_reference(part: Path, known: _Known, photos: _Photos, correctness: CorrectnessModel | None) -> None:
    at = photos.at("validation")
    # Evenly over all: they are in the order of the classes, and the first ones alone would stand for a few.
    chosen = at[np.linspace(0, len(at) - 1, min(len(at), _EMBEDDINGS)).astype(np.int64)]
    # Half the bytes, and enough to look for similar photos. What decides is in unknown.npz.
    embeddings = known.features[chosen].astype(np.float16)
    arrays: dict[str, Any] = {
        "embeddings": embeddings,
        "probabilities": known.probabilities[chosen].astype(np.float16),
        "labels": photos.numbers[chosen],
    }
    if correctness is not None:
        arrays["correctness"] = correctness.coefficients
    np.savez_compressed(part / REFERENCE, **arrays)


def _write_unknown(
    part: Path,
    detector: UnknownDetector | None,
    run: Path,
    formats: Sequence[str],
    announce: Callable[[str], None],
) -> None:
    """Write what tells photos of no known class, or say that the bundle cannot, or one of its formats."""
    if detector is None:
        why = (RunFolder(run).metrics().get("unknown") or {}).get("missing", "The run has no unknown.npz: train again.")
        announce(f"No photo will be called none of the known classes. {why}")
        return
    detector.save(part / UNKNOWN_FILE)
    for format_ in formats:
        if format_ in WITHOUT_EMBEDDING:
            announce(f"The {format_} model gives no embeddings: it alone cannot call a photo unknown.")


def _write_reference_images(part: Path, known: _Known, photos: _Photos) -> dict[str, tuple[float, ...]]:
    """Copy a few photos, the clearest of each class in turn; return file → probabilities.

    They leave the machine with the bundle: without places, times and whatever else a camera writes into a file.
    """
    # These photos decide on other machines whether a runtime is right. Take clear ones, whose first class does not
    # change with another processor's rounding: the clearest of each class, then the second of each.
    top_two = np.sort(known.probabilities[photos.main], axis=1)[:, -2:]
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
            chosen[name] = tuple(float(value) for value in known.probabilities[position])
    return chosen


def _as_png(data: bytes) -> bytes:
    """Return a photo of another format as a PNG of the same pixels."""
    is_encoded, content = cv2.imencode(".png", cv2.cvtColor(decode(data), cv2.COLOR_RGB2BGR))
    assert is_encoded
    return content.tobytes()


def _of_run(run: Path) -> dict[str, Any]:
    """Return what a bundle's record takes from its run: metrics of the splits, and where it comes from."""
    folder, keys = RunFolder(run), ("run_id", "commit", "packages", "data_sha256", "num_photos", "seed", "precision")
    return {
        "metrics": {split: metrics for split, metrics in folder.metrics().items() if split in SPLITS},
        "source": {"run": run.resolve().name, **folder.record().known(*keys)},
    }


def _limit(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no infinity


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if path.suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in files)


def _replace(part: Path, target: Path) -> None:
    """Put the new folder in the place of the old one: two renames, so that a reader sees either."""
    # A server that watches the folder must never see half a bundle: it would refuse it or, worse, load it.
    # Between the two renames the folder is missing; the server tolerates that for two polls (serving/models.py).
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
