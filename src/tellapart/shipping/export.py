"""The story of a bundle: a finished run becomes one folder that is all anyone needs. Reads top to bottom."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tellapart.bundles.bundle import (
    NAME,
    Bundle,
    BundleRecord,
    Preprocessing,
    is_bundle,
    open_bundle,
    strange_files,
    write_record,
)
from tellapart.bundles.parity import SAME_HEAT, SIMILAR_HEAT
from tellapart.bundles.runtimes import RUNTIMES
from tellapart.data.cache import default_cache
from tellapart.data.decode import DECODER_VERSION
from tellapart.errors import BundleError, InputError, nearest
from tellapart.evaluation.predict import load
from tellapart.files import write_text
from tellapart.records import Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.shipping.artefacts import prove_explanation, write_artefacts
from tellapart.shipping.card import model_card
from tellapart.shipping.evidence import (
    learn_correctness_of,
    quality_range,
    write_reference,
    write_reference_images,
    write_unknown,
)
from tellapart.shipping.formats import FORMATS
from tellapart.shipping.reduced import Reduction, as_shipped, shipped_predictor, write_reduced_artefacts
from tellapart.shipping.subject import calibrated, open_held_out

logger = logging.getLogger(__name__)

COVERAGE = 0.95
"""Of the prediction sets, and with them of the answer "I am not sure"."""
FULL = "float32"
PRECISIONS = (FULL, "float16", "int8-weights", "int8")
MARGIN = 0.005
"""Share of the validation photos by which a bundle in fewer bits may be less accurate."""


def export(
    run: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    name: str | None = None,
    formats: Sequence[str] = (),
    coverage: float = COVERAGE,
    precision: str = FULL,
    margin: float = MARGIN,
    int8_epochs: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    announce: Callable[[str], None] = logger.info,
) -> Bundle:
    """Make a bundle of a finished run, and prove that it says what the run's model says.

    In fewer bits it is another model: metrics, thresholds, references and what tells unknown photos are those of the
    file that ships, and the proof is that on validation photos it loses no more accuracy than a margin.

    Args:
        run: a finished run folder; its validation and test photos are read.
        to: the folder to make. A bundle that stands there is replaced, and not touched if something fails.
        name: of the model; None: the run folder's.
        formats: any of "openvino", "litert", "saved_model", "keras", beside ONNX.
        coverage: that the prediction sets promise, 0 to 1.
        precision: of the weights: "float32", "float16", "int8-weights", whose arithmetic stays float32, or "int8", of
            weights and activations.
        margin: share of the validation photos by which fewer bits may be less accurate, 0 to 1: the upper end of the
            95 % interval of the loss must lie below it.
        int8_epochs: that the network is trained for with rounded weights and activations first; 0: it is only rounded.
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
    _check(target, name, formats, coverage, precision, margin, int8_epochs)
    classifier = load(run_folder)
    classifier.max_pixels = RunFolder(run_folder).recipe().data.max_pixels
    heat = SAME_HEAT if precision == FULL else SIMILAR_HEAT
    photos = open_held_out(run_folder, classifier, cache_folder, progress)
    # Hidden, so that a server ignores it; beside the target, so that a rename stays on one file system.
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with photos.pictures:
            # Calibrate first: the temperature goes into the weights of every artefact below.
            shipped = calibrated(run_folder, classifier, photos, coverage, progress)
            announce(
                f"Temperature {shipped.temperature:.3f}; a class belongs to the answer from a probability of "
                f"{shipped.threshold or 0:.3f}."
            )
            if precision == FULL:
                artefacts = write_artefacts(part, shipped, photos, formats, progress, announce)
            else:
                request = Reduction(
                    RunFolder(run_folder), classifier, cache_folder, margin, coverage, precision, int8_epochs
                )
                model, artefacts = write_reduced_artefacts(part, shipped, request, formats, progress, announce)
                shipped = replace(shipped, model=model)
                shipped = as_shipped(part, artefacts[0], shipped, photos, request, progress)
            record = BundleRecord(
                name=name,
                created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                classes=tuple(classifier.classes),
                preprocessing=Preprocessing(image_px=classifier.image_px, decoder_version=DECODER_VERSION),
                max_pixels=classifier.max_pixels,
                temperature=shipped.temperature,
                coverage=coverage,
                threshold=shipped.threshold,
                quality_range=quality_range(shipped, photos, progress),
                metrics=shipped.metrics,
                source=_source(run_folder),
                artefacts=artefacts,
                explains=prove_explanation(shipped.model, part, photos, heat, announce),
                reference_images=write_reference_images(part, shipped, photos),
            )
            predict = shipped_predictor(artefacts[0], part / artefacts[0].path)
            write_reference(part, shipped, photos, learn_correctness_of(predict, shipped, photos, classifier, progress))
            write_unknown(part, shipped, run_folder, formats, announce)
        # The card before the record: `write_record` takes the checksums of all files that are there.
        write_text(part / "card.md", model_card(record, shipped.detector))
        write_record(part, record)
        # Open it before it replaces the old one: a bundle that cannot be opened here cannot be opened anywhere.
        bundle = open_bundle(part)
        _replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return replace(bundle, folder=target)


def _check(
    target: Path,
    name: str,
    formats: Sequence[str],
    coverage: float,
    precision: str,
    margin: float,
    int8_epochs: int,
) -> None:
    if precision not in PRECISIONS:
        raise InputError(
            f"There is no precision {precision!r}.{nearest(precision, PRECISIONS)} Expected one of "
            f"{', '.join(PRECISIONS)}."
        )
    if precision != FULL and (others := sorted(set(formats) - {"litert"})):
        raise InputError(f"{precision} comes as ONNX and LiteRT. Leave the format {others[0]} out.")
    if int8_epochs < 0 or (int8_epochs and precision != "int8"):
        raise InputError(f"int8 epochs are {int8_epochs}. Expected 0, or more for the precision int8.")
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


def _source(run: Path) -> dict[str, Any]:
    """Return what a bundle's record says of where it comes from."""
    keys = ("run_id", "commit", "packages", "data_sha256", "num_photos", "seed", "precision")
    return {"run": run.resolve().name, **RunFolder(run).record().known(*keys)}


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
