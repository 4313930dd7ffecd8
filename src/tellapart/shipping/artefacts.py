"""The files that run a bundle's model at full precision, and the proof that each says what the Keras model says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from tellapart.bundles.bundle import EXPLAIN_FILE, Artefact
from tellapart.errors import BundleError, InputError
from tellapart.explain.maps import grad_cam_values
from tellapart.models.ensemble import heaviest
from tellapart.models.layers import LayerReader
from tellapart.records import Progress
from tellapart.shipping.formats import FORMATS, Network, convert_to_onnx, save_explanation, save_saved_model
from tellapart.shipping.litert_metadata import with_metadata
from tellapart.shipping.proofs import prove
from tellapart.shipping.subject import HeldOut, Shipped

_EXPLAINED = 8


def write_artefacts(
    part: Path,
    shipped: Shipped,
    photos: HeldOut,
    formats: Sequence[str],
    progress: Progress,
    announce: Callable[[str], None],
) -> tuple[Artefact, ...]:
    """Write the model in every format that was asked for, and prove each."""
    artefacts = []
    for format_, path in write_formats(shipped.model, part, formats, announce).items():
        describe(format_, path, shipped)
        inside = path.relative_to(part).as_posix()
        artefact = Artefact(id=format_, format=format_, path=inside, bytes=size_of(path), proofs={})
        artefacts.append(
            prove(artefact, path, shipped.probabilities, photos.pictures, photos.numbers, progress, announce)
        )
    return tuple(artefacts)


def write_formats(
    model: keras.Model,
    part: Path,
    formats: Sequence[str],
    announce: Callable[[str], None],
    precision: str = "float32",
) -> dict[str, Path]:
    """Write the graph that explains, ONNX and what was asked for; return format → file or folder of the classifiers.

    Of other precisions than float32 only LiteRT's converter knows; ONNX files are float32 here in any case.
    """
    # All formats are made from the SavedModel; it goes into the bundle only if it was asked for.
    with tempfile.TemporaryDirectory() as folder:
        saved_model, explanation = Path(folder) / "saved_model", Path(folder) / "explanation"
        network = Network(model, saved_model, part / "model.onnx", precision)
        save_saved_model(model, saved_model)
        files = {saved_model: network.onnx}
        try:
            save_explanation(heaviest(model), explanation)  # an ensemble has no one last layer of feature maps
            files[explanation] = part / EXPLAIN_FILE
        except InputError as error:
            announce(f"No heat maps from this bundle: {error}")
        convert_to_onnx(files)
        announce(f"ONNX: {size_of(network.onnx) / 1e6:.2f} MB.")
        extra = part / "formats"
        if formats:
            extra.mkdir()
        return {"onnx": network.onnx, **{format_: FORMATS[format_](network, extra) for format_ in formats}}


def describe(format_: str, path: Path, shipped: Shipped) -> None:
    """Write into a LiteRT file what phones look for in it; others have no place for it."""
    if format_ == "litert":
        path.write_bytes(with_metadata(path.read_bytes(), shipped.classes, int(shipped.model.input_shape[1])))


def prove_explanation(
    model: keras.Model, part: Path, photos: HeldOut, tolerance: float, announce: Callable[[str], None]
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


def size_of(path: Path) -> int:
    """Return the bytes of a file or a folder; of OpenVINO's, with the weights beside it."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if path.suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in files)
