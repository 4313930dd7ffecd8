"""A bundle: one folder with all that is needed to run a model. Knows nothing about how it is made or run.

bundle.json      what it is: classes, preprocessing, temperature, thresholds, quality range, metrics, proofs of equality
model.onnx       uint8 (num_images, image_px, image_px, 3) → calibrated probabilities and embeddings
explain.onnx     the same pictures and a class → heat maps; absent where the network has no feature maps
reference.npz    embeddings and probabilities of validation photos: what comes out where nothing has changed; and how
                 likely an answer is right, by how sure the network is and how near the photo is to known ones
unknown.npz      what tells photos of no known class; absent where the run has no threshold for it
reference_images/ a few photos with the probabilities that must come out
card.md          the model card
formats/         the other formats that were asked for
SHA256SUMS       of every file, as `sha256sum --check` reads it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tellapart.correctness import CorrectnessModel
from tellapart.errors import BundleError, InputError
from tellapart.files import read_json, write_json, write_text
from tellapart.unknown import UnknownDetector, load_detector

# Raise it with every field that is added: the models below forbid fields that they do not know, so an older tellapart
# must be told by the version that it cannot read the record.
SCHEMA_VERSION = 2
"""Of ``bundle.json``. 1: artefacts by format, `quality_range` was "envelope", `reference_images` was "golden"."""
SUMS = "SHA256SUMS"
RECORD = "bundle.json"
UNKNOWN_FILE = "unknown.npz"
REFERENCE = "reference.npz"
EXPLAIN_FILE = "explain.onnx"
NAME = r"^[\w.-]{1,100}$"
"""What a model may be called: it goes into URLs and labels of metrics."""


class Proof(BaseModel):
    """What a comparison with the Keras model found (bundles/parity.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed: bool
    reason: str
    num_images: int
    agreement: float
    largest_difference: float
    accuracy: float | None = None
    accuracy_of_keras: float | None = None
    p_value: float | None = None


def _inside(path: str) -> str:
    """Refuse a path that leads out of the bundle: it would be opened, and no checksum covers it."""
    if os.path.isabs(path) or "\\" in path or ".." in path.split("/") or not path:
        raise ValueError(f"{path!r} leads out of the bundle")
    return path


Inside = Annotated[str, AfterValidator(_inside)]


class Artefact(BaseModel):
    """One file or folder that runs the model.

    Attributes:
        id: its name in the bundle.
        format: "onnx", "openvino", "litert", "saved_model" or "keras".
        precision: of its weights, such as "float32".
        sparsity: share of its weights that are zero by pruning, 0 to 1.
        parent: id of the artefact that it was made from; None: made from the Keras model.
        float_layers: of an artefact in int8, the convolutions that stayed in float32.
        path: inside the bundle, with "/".
        bytes: its size.
        proofs: runtime → what its comparison with Keras found.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=NAME)
    format: str
    precision: str = "float32"
    sparsity: float = Field(0.0, ge=0, lt=1)
    parent: str | None = None
    float_layers: tuple[str, ...] = ()
    path: Inside
    bytes: int
    proofs: dict[str, Proof]


class Preprocessing(BaseModel):
    """What happens to an image file before the model: enough to do it on a phone or in a browser.

    Attributes:
        image_px: side of the square picture that the model takes.
        layout: of the model's input: number of images, height, width, channels.
        channels: their order.
        dtype: of the input, 0 to 255; scaling and normalisation are inside the model.
        steps: what is done, in this order.
        decoder_version: of `tellapart.data.decode`, which does it here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_px: int = Field(gt=0)
    layout: str = "NHWC"
    channels: str = "RGB"
    dtype: str = "uint8"
    steps: tuple[str, ...] = (
        "Decode the file; of an animation take the first picture.",
        "Turn it as its EXIF orientation says.",
        "Convert grey, palette, CMYK and 16-bit images to 8-bit RGB; lay transparent pixels on white.",
        "Shrink each side that is at least twice image_px to image_px, averaging over areas.",
        "Resize to image_px × image_px, bilinear; the aspect ratio is not kept, nothing is cropped or padded.",
    )
    decoder_version: int


class BundleRecord(BaseModel):
    """The contents of ``bundle.json``.

    Attributes:
        schema_version: of this record.
        name: of the model.
        created: date and time, UTC.
        classes: in the order of the outputs.
        preprocessing: from a file to the model's input.
        max_pixels: images that declare more are refused, as they were by the run (`data.max_pixels`).
        temperature: that the probabilities were divided by, in the logits; it is inside the model.
        coverage: that the prediction sets promise.
        threshold: classes at or above it are in the set; None: there were no validation photos to fit it on.
        quality_range: photo quality for which the accuracy was measured, measure → (low, high), None: no limit.
        metrics: of the run, by side.
        source: run, data, versions, date of training.
        artefacts: with different ids; "onnx" is always there.
        explains: the method of ``explain.onnx``; None: there is none.
        reference_images: file → probabilities.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    name: str = Field(pattern=NAME)
    created: str
    classes: tuple[str, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    max_pixels: int = Field(100_000_000, gt=0)
    temperature: float = Field(gt=0)
    coverage: float = Field(gt=0, lt=1)
    threshold: float | None = Field(ge=0, le=1)
    quality_range: dict[str, tuple[float | None, float | None]]
    metrics: dict[str, Any]
    source: dict[str, Any]
    artefacts: tuple[Artefact, ...]
    explains: str | None
    reference_images: dict[Inside, tuple[float, ...]]

    @property
    def image_px(self) -> int:
        """Side of the pictures that the model takes."""
        return self.preprocessing.image_px

    def artefact(self, id_: str = "onnx") -> Artefact | None:
        """Return the artefact with an id; None: there is none."""
        return next((artefact for artefact in self.artefacts if artefact.id == id_), None)

    @model_validator(mode="after")
    def _ids_differ(self) -> BundleRecord:
        ids = [artefact.id for artefact in self.artefacts]
        if repeated := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
            raise ValueError(f"two artefacts are called {repeated[0]!r}")
        if "onnx" not in ids:
            raise ValueError('no artefact is called "onnx"')
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are what they were when it was made.

    Attributes:
        folder: where it is.
        record: ``bundle.json``.
        version: the first twelve digits of the checksum of all checksums.
        detector: of photos of no known class; None where the bundle has none.
    """

    folder: Path
    record: BundleRecord
    version: str
    detector: UnknownDetector | None = None

    def path(self, artefact: Artefact) -> Path:
        """Return the file or folder of an artefact."""
        return self.folder / artefact.path

    @property
    def explain_path(self) -> Path | None:
        """The explanation graph, or None."""
        return self.folder / EXPLAIN_FILE if self.record.explains else None

    def reference_similarities(self) -> NDArray[np.float64]:
        """Return the similarity of validation photos to the nearest training photos, (num_photos,) float64.

        It is what `UnknownDetector.similarity` gives for photos like those that the model was measured on; empty where
        the bundle has none, or no detector.
        """
        path = self.folder / REFERENCE
        if self.detector is None or not path.is_file():
            return np.zeros(0)
        with np.load(path, allow_pickle=False) as archive:
            embeddings = np.asarray(archive["embeddings"], np.float32)
        return np.asarray(self.detector.similarity(embeddings), np.float64)

    def reference_probabilities(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return (num_photos, num_classes) probabilities of validation photos, and (num_photos,) int64 class numbers.

        Both are empty where the bundle has none: it was made before they were kept.
        """
        path = self.folder / REFERENCE
        if path.is_file():
            with np.load(path, allow_pickle=False) as archive:
                if "probabilities" in archive:
                    return np.asarray(archive["probabilities"], np.float64), np.asarray(archive["labels"], np.int64)
        return np.zeros((0, len(self.record.classes))), np.zeros(0, np.int64)

    def correctness(self) -> CorrectnessModel | None:
        """Return what says how likely an answer is right; None where the bundle has nothing that does."""
        path = self.folder / REFERENCE
        if self.detector is None or not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as archive:
            return CorrectnessModel(archive["correctness"]) if "correctness" in archive else None

    def quality_warnings(self, quality: dict[str, float]) -> list[str]:
        """Return the measures of `tellapart.data.quality` in which a photo is worse than what was measured."""
        outside = []
        for name, (low, high) in self.record.quality_range.items():
            value = quality[name]
            if (low is not None and value < low) or (high is not None and value > high):
                outside.append(name)
        return outside


def open_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and check every file against its checksum.

    Raises:
        BundleError: it is none, of a later version, or a file is missing, changed or not listed.
    """
    # SHA256SUMS tells damage and forgotten files, not malice: whoever can change a file can change its sum.
    path = Path(folder)
    if not (path / SUMS).is_file():
        state = "has no SHA256SUMS" if path.is_dir() else "does not exist"
        raise BundleError(f"{path} {state}. Expected a bundle made by tellapart export.")
    text = (path / SUMS).read_bytes()
    # Check sums before any file is parsed: a parser must never see a file that was changed.
    _check_sums(path, text)
    record = _read_record(path)
    try:
        detector = load_detector(path / UNKNOWN_FILE)
    except InputError as error:
        raise BundleError(str(error)) from error
    # The version is the checksum of all checksums: two bundles with the same version are identical, byte for byte.
    return Bundle(path, record, hashlib.sha256(text).hexdigest()[:12], detector)


def is_bundle(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder claims to be a bundle."""
    return (Path(folder) / SUMS).is_file() and (Path(folder) / RECORD).is_file()


def write_record(folder: Path, record: BundleRecord) -> None:
    """Write ``bundle.json`` and then the checksums of all files: what is changed later is noticed."""
    # The record first: its own checksum stands among the others. The sums last: without them it is not a bundle yet.
    write_json(folder / RECORD, record.model_dump(mode="json"))
    lines = [f"{_file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    write_text(folder / SUMS, "".join(lines))


def _read_record(folder: Path) -> BundleRecord:
    values = read_json(folder / RECORD)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise BundleError(
            f"{folder / RECORD} has schema version {version!r}; this tellapart reads 1 to {SCHEMA_VERSION}. "
            "Export the run again, or install the tellapart that made the bundle."
        )
    try:
        # One step per version: a record of any age goes through the same upgrades.
        for older in range(version, SCHEMA_VERSION):
            values = _UPGRADES[older](values)
        return BundleRecord.model_validate_json(json.dumps(values))
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder / RECORD} is not a whole record: {error}. Export the run again.") from error
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(str(part) for part in problem["loc"])
        raise BundleError(f"{folder / RECORD}: {location}: {problem['msg']}. Export the run again.") from error


def _from_version_1(old: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a record in which formats were ids, and two things had other names."""
    new = {**old, "schema_version": 2}
    new["quality_range"], new["reference_images"] = new.pop("envelope"), new.pop("golden")
    new["preprocessing"] = {"image_px": new.pop("image_px"), "decoder_version": new.pop("decoder_version")}
    new["artefacts"] = [{"id": name, "format": name, **artefact} for name, artefact in old["artefacts"].items()]
    return new


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_version_1}
"""From each older schema version to the next one."""


def _check_sums(folder: Path, text: bytes) -> None:
    # A bundle may come from a stranger: a path that leads out of its folder must not make this read other files.
    listed = {}
    for line in text.decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        inside = os.path.normpath(name)
        if len(digest) != 64 or not name or os.path.isabs(inside) or inside.startswith(".."):
            raise BundleError(f"{folder / SUMS} is damaged: {line[:80]!r}. Copy or export the bundle again.")
        listed[name] = digest
    present = {path.relative_to(folder).as_posix() for path in _files(folder)}
    for name, digest in listed.items():
        if name not in present:
            raise BundleError(f"{folder / name} is missing. Copy or export the bundle again.")
        if _file_sha256(folder / name) != digest:
            raise BundleError(f"{folder / name} is not what it was when the bundle was made. Copy or export it again.")
    # The target of a link can change without any change in this folder.
    if links := sorted(path for path in folder.rglob("*") if path.is_symlink()):
        raise BundleError(f"{links[0]} is a link: what it leads to is not the bundle's. Copy or export it again.")
    if unlisted := sorted(present - set(listed)):
        raise BundleError(f"{folder / unlisted[0]} does not belong to the bundle. Remove it.")
    if RECORD not in listed:
        raise BundleError(f"{folder / SUMS} does not list {RECORD}. Copy or export the bundle again.")


def strange_files(folder: Path) -> list[str]:
    """Return what lies in a bundle's folder and is not the bundle's: it must not be deleted with it."""
    listed = {line.partition("  ")[2] for line in (folder / SUMS).read_text("utf-8", "replace").splitlines()}
    # A link to a folder counts as foreign: its target does not belong to the bundle.
    present = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted({path.relative_to(folder).as_posix() for path in present} - listed - {SUMS})


def _files(folder: Path) -> list[Path]:
    # SHA256SUMS cannot hold its own checksum.
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
