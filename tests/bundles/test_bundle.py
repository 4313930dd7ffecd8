"""A bundle is opened only if every file in it is what it was."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tellapart.bundles.bundle import is_bundle, open_bundle, write_record
from tellapart.bundles.predictor import to_prediction
from tellapart.errors import BundleError
from tellapart.unknown import UnknownDetector
from written_bundle import bundle_record, write_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def rewritten(folder: Path, values: dict) -> None:
    """Write another record, with its checksum."""
    (folder / "bundle.json").write_text(json.dumps(values))
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    lines = [f"{digest}  bundle.json" if line.endswith("  bundle.json") else line for line in sums]
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines))


def test_what_is_written_is_read_again(folder: Path):
    bundle = open_bundle(folder)
    assert is_bundle(folder)
    assert bundle.record == bundle_record()
    assert bundle.path(bundle.record.artefacts[0]) == folder / "model.onnx"
    assert len(bundle.version) == 12
    (folder.parent / "empty").mkdir()
    assert not is_bundle(folder.parent / "empty")


def test_a_changed_bundle_has_another_version(folder: Path):
    before = open_bundle(folder).version
    (folder / "model.onnx").write_bytes(b"abd")
    write_record(folder, bundle_record())
    assert open_bundle(folder).version != before


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "model.onnx").write_bytes(b"abd"), "model.onnx is not what it was"),
        (lambda f: (f / "reference_images" / "01.png").unlink(), "01.png is missing"),
        (lambda f: (f / "extra.py").write_text("import os"), "extra.py does not belong to the bundle"),
        (lambda f: (f / "bundle.json").write_text("{}"), "bundle.json is not what it was"),
        (lambda f: (f / "SHA256SUMS").unlink(), "has no SHA256SUMS"),
        (lambda f: (f / "SHA256SUMS").write_text("nonsense\n"), "SHA256SUMS is damaged"),
        (lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../../secret\n"), "SHA256SUMS is damaged"),
    ],
)
def test_a_damaged_bundle_is_refused_and_the_file_is_named(folder: Path, harm, message: str):
    harm(folder)
    with pytest.raises(BundleError, match=re.escape(message)):
        open_bundle(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BundleError, match="nowhere does not exist"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "has schema version 3; this tellapart reads 1 to 2"),
        ({"schema_version": 1}, "is not a whole record: 'envelope'"),
        ({"temperature": -1}, "temperature: Input should be greater than 0"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"name": "../../etc"}, "name: String should match pattern"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(folder: Path, change: dict, message: str):
    values = json.loads((folder / "bundle.json").read_text()) | change
    rewritten(folder, values)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_sets_and_abstention_by_hand(folder: Path):
    bundle = open_bundle(folder)
    probabilities = np.array([[0.7, 0.2, 0.1], [0.45, 0.1, 0.45], [0.34, 0.33, 0.33]], np.float32)
    found = [to_prediction(bundle, "a.jpg", row, 2) for row in probabilities]
    assert [each.prediction_set for each in found] == [("cat",), ("cat", "owl"), ()]
    assert [each.abstains for each in found] == [False, True, True]
    assert [each.top[0][0] for each in found] == ["cat", "cat", "cat"]
    without = replace(bundle, record=bundle.record.model_copy(update={"threshold": None}))
    assert [to_prediction(without, "", row, 1).prediction_set for row in probabilities] == [("cat",)] * 3
    assert to_prediction(bundle, "", np.array([np.nan, 0.5, 0.5], np.float32), 1).label is None


def test_a_photo_is_outside_where_it_is_beyond_a_limit(folder: Path):
    bundle = open_bundle(folder)
    assert bundle.quality_warnings({"sharpness": 3.0, "brightness": 230.0}) == []
    assert bundle.quality_warnings({"sharpness": 2.9, "brightness": 231.0}) == ["sharpness", "brightness"]


@pytest.mark.parametrize(
    "path", ["../model.onnx", "/etc/passwd", "reference_images/../../model.onnx", "..\\model.onnx", ""]
)
def test_paths_that_lead_out_of_the_bundle_are_refused(folder: Path, path: str):
    values = json.loads((folder / "bundle.json").read_text())
    values["artefacts"][0]["path"] = path
    rewritten(folder, values)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        open_bundle(folder)


def test_a_file_in_a_folder_is_the_bundles_whatever_its_name(folder: Path):
    (folder / "reference_images" / "SHA256SUMS").write_text("not listed")
    with pytest.raises(BundleError, match="reference_images/SHA256SUMS does not belong to the bundle"):
        open_bundle(folder)
    (folder / "reference_images" / "SHA256SUMS").unlink()
    write_record(folder, bundle_record())
    assert open_bundle(folder).record == bundle_record()


def test_links_are_no_part_of_a_bundle(folder: Path):
    (folder.parent / "elsewhere.onnx").write_bytes(b"abc")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(folder)


def test_a_bundle_of_schema_1_opens_as_it_was(folder: Path):
    values = json.loads((folder / "bundle.json").read_text())
    old = {name: values[name] for name in values if name not in ("preprocessing", "quality_range", "reference_images")}
    proofs = values["artefacts"][0]["proofs"]
    old |= {
        "schema_version": 1, "image_px": 32, "decoder_version": 2, "envelope": values["quality_range"],
        "golden": values["reference_images"],
        "artefacts": {"onnx": {"path": "model.onnx", "bytes": 3, "proofs": proofs}},
    }  # fmt: skip
    rewritten(folder, old)
    assert open_bundle(folder).record == bundle_record()


def test_a_bundle_without_references_cannot_tell_and_one_with_them_can(folder: Path):
    assert open_bundle(folder).detector is None
    UnknownDetector(np.eye(2, dtype=np.float16), np.array([0, 1]), 0.9, 0.05, 30).save(folder / "unknown.npz")
    with pytest.raises(BundleError, match=r"unknown\.npz does not belong to the bundle"):
        open_bundle(folder)
    write_record(folder, bundle_record())
    detector = open_bundle(folder).detector
    assert detector is not None
    assert (detector.threshold, detector.num_features) == (0.9, 2)
    (folder / "unknown.npz").write_bytes(b"no archive")
    write_record(folder, bundle_record())
    with pytest.raises(BundleError, match=r"unknown\.npz cannot be read"):
        open_bundle(folder)


def test_artefacts_have_ids_of_their_own_and_onnx_is_among_them(folder: Path):
    values = json.loads((folder / "bundle.json").read_text())
    first = values["artefacts"][0]
    rewritten(folder, values | {"artefacts": [first, first]})
    with pytest.raises(BundleError, match="two artefacts are called 'onnx'"):
        open_bundle(folder)
    rewritten(folder, values | {"artefacts": [first | {"id": "other"}]})
    with pytest.raises(BundleError, match='no artefact is called "onnx"'):
        open_bundle(folder)
