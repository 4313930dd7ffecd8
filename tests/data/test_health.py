"""The health of data sets with planted faults, each with numbers known by construction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

import corpus
from drawing import make_classes, photo, save, save_photo
from tellapart.data.health import examine, health_table, to_json
from tellapart.data.scan import scan
from tellapart.data.shortcuts import measure
from tellapart.records import Finding, Health


def health_of(photos: Path) -> Health:
    return examine(scan(photos))


def found(health: Health, kind: str) -> list[Finding]:
    return [finding for finding in health.findings if finding.kind == kind]


def the(health: Health, kind: str) -> Finding:
    (finding,) = found(health, kind)
    return finding


def test_a_clean_set_has_no_findings(tmp_path):
    health = health_of(make_classes(tmp_path, {"a": 12, "b": 12}))
    assert health.findings == ()
    assert health.trustworthy
    assert (health.num_photos, health.num_readable, health.classes) == (24, 24, {"a": 12, "b": 12})


def test_unreadable_files_are_counted_by_reason(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    whole = (tmp_path / "a/0.jpg").read_bytes()
    (tmp_path / "a/cut1.jpg").write_bytes(whole[:700])
    (tmp_path / "a/cut2.jpg").write_bytes(whole[:-2])
    (tmp_path / "b/empty.jpg").write_bytes(b"")
    (tmp_path / "b/page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (tmp_path / "b/bomb.png").write_bytes(corpus.bomb())
    health = health_of(tmp_path)
    finding = the(health, "unreadable")
    assert (finding.severity, finding.count) == ("warning", 5)
    assert finding.figures["reasons"] == {
        "is a truncated JPEG": 2,
        "is empty (0 bytes)": 1,
        "is not an image (an HTML or XML text)": 1,
        "declares too many pixels": 1,
    }
    assert set(finding.examples) == {"a/cut1.jpg", "a/cut2.jpg", "b/empty.jpg", "b/page.jpg", "b/bomb.png"}
    assert (health.num_photos, health.num_readable) == (29, 24)
    assert [other.kind for other in health.findings] == ["unreadable"], "empty files are no exact duplicates"


def test_odd_kinds_of_photos_are_named_each(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    image = Image.fromarray(photo(501))
    frames = [Image.fromarray(photo(seed)) for seed in (502, 503)]
    (tmp_path / "a/print.jpg").write_bytes(corpus.encoded(image.convert("CMYK"), "JPEG"))
    (tmp_path / "a/cut-out.png").write_bytes(corpus.png(np.dstack([photo(504), np.full((48, 64), 128, np.uint8)])))
    (tmp_path / "a/deep.png").write_bytes(corpus.png(photo(505).astype(np.uint16) * 257))
    (tmp_path / "b/turned.jpg").write_bytes(corpus.rotated_jpeg(photo(506), 6))
    (tmp_path / "b/moving.gif").write_bytes(corpus.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    (tmp_path / "b/really-a-png.jpg").write_bytes(corpus.png(photo(507)))
    save_photo(tmp_path / "b/tiny.jpg", 508, (40, 31))
    save_photo(tmp_path / "b/small-but-enough.jpg", 509, (40, 32))
    save(tmp_path / "b/grey.jpg", photo(510)[..., 0])
    health = health_of(tmp_path)
    expected = {
        "cmyk": "a/print.jpg", "alpha": "a/cut-out.png", "sixteen_bit": "a/deep.png",
        "exif_rotated": "b/turned.jpg", "animated": "b/moving.gif", "wrong_extension": "b/really-a-png.jpg",
        "tiny": "b/tiny.jpg", "grey": "b/grey.jpg",
    }  # fmt: skip
    assert {finding.kind: finding.examples[0] for finding in health.findings} == expected
    assert all(finding.count == 1 for finding in health.findings)
    assert the(health, "tiny").severity == "warning"
    assert the(health, "grey").severity == "note", "one of 21 is no sign of a class"
    assert health.findings[0].severity == "warning", "worst first"
    assert health.trustworthy


def test_grey_pictures_of_one_class_only_are_a_warning(tmp_path):
    make_classes(tmp_path, {"colour": 15, "grey": 5})
    for index in range(10):
        save(tmp_path / "grey" / f"g{index}.jpg", photo(900 + index)[..., 0])
    finding = the(health_of(tmp_path), "grey")
    assert (finding.severity, finding.count) == ("warning", 10)
    assert finding.figures["shares"] == {"colour": 0, "grey": pytest.approx(2 / 3)}


def test_duplicates_within_a_class_are_kept_apart_as_exact_and_near(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    shutil.copy(tmp_path / "a/0.jpg", tmp_path / "a/copy.jpg")
    save(tmp_path / "b/again.jpg", photo(100_000), quality=60)  # b/0.jpg, encoded anew
    health = health_of(tmp_path)
    exact, near = the(health, "exact_duplicates"), the(health, "near_duplicates")
    assert exact.examples == ("a/0.jpg", "a/copy.jpg")
    assert near.examples == ("b/0.jpg", "b/again.jpg")
    assert (exact.count, exact.figures["pairs"], near.count, near.figures["pairs"]) == (2, 1, 2, 1)
    assert not found(health, "conflicting_labels")
    assert health.trustworthy


@pytest.mark.parametrize(("exact", "severity"), [(True, "falsifies"), (False, "warning")])
def test_one_conflicting_label(tmp_path, exact, severity):
    make_classes(tmp_path, {"a": 105, "b": 105})
    if exact:
        shutil.copy(tmp_path / "a/0.jpg", tmp_path / "b/copy.jpg")
    else:
        save(tmp_path / "b/copy.jpg", photo(0), quality=60)
    health = health_of(tmp_path)
    finding = the(health, "conflicting_labels")
    assert (finding.severity, finding.count) == (severity, 2)
    assert finding.examples == ("a/0.jpg", "b/copy.jpg")
    assert finding.figures == {"pairs": 1, "exact_pairs": int(exact), "share": 2 / 211}
    assert health.trustworthy != exact


def test_many_near_conflicts_falsify(tmp_path):
    make_classes(tmp_path, {"a": 50, "b": 50})
    for index in range(2):
        save(tmp_path / f"b/copy{index}.jpg", photo(index), quality=60)
    finding = the(health_of(tmp_path), "conflicting_labels")
    assert (finding.severity, finding.count, finding.figures["exact_pairs"]) == ("falsifies", 4, 0)


def test_imbalance_and_small_classes(tmp_path):
    make_classes(tmp_path, {"many": 45, "some": 10, "few": 4, "one": 1})
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/1.jpg").write_bytes(b"")
    health = health_of(tmp_path)
    imbalance = the(health, "imbalance")
    assert (imbalance.severity, imbalance.figures["ratio"]) == ("warning", 45)
    worst, small = found(health, "few_photos")
    assert (worst.severity, worst.figures["classes"]) == ("falsifies", {"broken": 0, "one": 1})
    assert (small.severity, small.figures["classes"]) == ("warning", {"few": 4})
    left_out = the(health, "left_out")
    assert "class folders hold no photo: none." in left_out.message
    assert health.findings[0] is worst
    assert not health.trustworthy


@pytest.mark.parametrize(("counts", "severity"), [((30, 10), None), ((31, 10), "note"), ((101, 10), "warning")])
def test_imbalance_limits(tmp_path, counts, severity):
    make_classes(tmp_path, dict(zip("ab", counts, strict=True)), size=(32, 32))
    assert [finding.severity for finding in found(health_of(tmp_path), "imbalance")] == [severity] * bool(severity)


def test_a_single_class_measures_nothing(tmp_path):
    health = health_of(make_classes(tmp_path, {"a": 12}))
    assert [(finding.kind, finding.severity) for finding in health.findings] == [("few_photos", "falsifies")]


def test_what_the_scan_left_out_is_said(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    (tmp_path / "a/notes.txt").write_text("x")
    (tmp_path / "away").symlink_to("nowhere")
    save_photo(tmp_path / "stray.jpg", 77)
    (tmp_path / "empty").mkdir()
    by_severity = {}
    for finding in found(health_of(tmp_path), "left_out"):
        by_severity.setdefault(finding.severity, []).append(finding.examples)
    assert by_severity == {"warning": [("empty",), ("stray.jpg", "away")], "note": [("a/notes.txt",)]}


def test_leakage_across_given_folders_finds_copies_re_encoded_and_mirrored(tmp_path):
    make_classes(tmp_path / "train", {"a": 12, "b": 12})
    make_classes(tmp_path / "test", {"a": 12, "b": 12}, seed=5_000)
    assert health_of(tmp_path).findings == ()
    shutil.copy(tmp_path / "train/a/0.jpg", tmp_path / "test/a/exact.jpg")
    save(tmp_path / "test/a/encoded.jpg", cv2.resize(photo(1), (128, 96)), quality=60)
    save(tmp_path / "test/a/mirrored.jpg", np.ascontiguousarray(photo(2)[:, ::-1]))
    health = health_of(tmp_path)
    finding = the(health, "leakage")
    assert (finding.severity, finding.count, finding.figures["pairs"]) == ("falsifies", 6, 3)
    assert finding.figures["photos"] == {"train": 3, "test": 3}
    assert {"test/a/exact.jpg", "test/a/encoded.jpg", "test/a/mirrored.jpg"} < set(finding.examples)
    assert not health.trustworthy


def test_leakage_by_group_in_a_table(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    lines = ["path,label,split,group"]
    for label in "ab":
        for index in range(12):
            side = "train" if index < 8 else "test"
            group = "visit" if (label, index) in (("a", 0), ("a", 11)) else f"{label}{index}"
            lines.append(f"{label}/{index}.jpg,{label},{side},{group}")
    (tmp_path / "photos.csv").write_text("\n".join(lines))
    finding = the(health_of(tmp_path / "photos.csv"), "leakage")
    assert (finding.count, finding.figures["groups"], finding.figures["pairs"]) == (2, 1, 0)
    assert set(finding.examples) == {"a/0.jpg", "a/11.jpg"}


def test_a_planted_size_is_found_and_measured_as_certain(tmp_path):
    make_classes(tmp_path, {"a": 40}, size=(64, 64))
    make_classes(tmp_path, {"b": 40}, size=(80, 60), seed=700)
    health = health_of(tmp_path)
    findings = {finding.figures["features"]: finding for finding in found(health, "metadata_shortcut")}
    assert {"size", "aspect", "all together"} <= set(findings)
    assert "format" not in findings
    size = findings["size"]
    assert size.severity == "falsifies"
    assert size.count == size.figures["num_right"] == 80
    assert size.figures["balanced_accuracy"]["value"] == size.figures["excess"]["high"] == 1
    assert size.figures["chance"] == size.figures["majority_share"] == 0.5
    expected = binomtest(80, 80).proportion_ci(method="wilson")
    assert size.figures["accuracy"]["low"] == pytest.approx(expected.low, abs=1e-6)
    assert not health.trustworthy


def test_a_planted_format_is_found(tmp_path):
    make_classes(tmp_path, {"a": 20}, ext="png")
    make_classes(tmp_path, {"b": 20}, seed=700)
    findings = {finding.figures["features"] for finding in found(health_of(tmp_path), "metadata_shortcut")}
    assert {"format", "all together"} <= findings
    assert not {"size", "aspect"} & findings


def test_file_length_alone_never_falsifies(tmp_path):
    # One class is smooth and the other is noise: length follows from what is shown.
    make_classes(tmp_path, {"smooth": 40})
    for index in range(40):
        noise = np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)
        save(tmp_path / "noise" / f"{index}.jpg", cv2.addWeighted(noise, 0.4, photo(8_000 + index), 0.6, 0))
    health = health_of(tmp_path)
    finding = the(health, "metadata_shortcut")
    assert (finding.figures["features"], finding.severity) == ("file length", "warning")
    assert finding.figures["balanced_accuracy"]["low"] > 0.9
    assert health.trustworthy


def test_balanced_accuracy_agrees_with_scikit_learn():
    # The value tells the class on 75 % of class b and on all of a; a leaf of five sees nothing finer.
    labels = np.array(["a"] * 200 + ["b"] * 80, object)
    values = np.array([0] * 200 + [0] * 20 + [1] * 60)
    figures = measure(pd.DataFrame({"value": values}), labels)
    told = np.where(values == 1, "b", "a")
    balanced = figures["balanced_accuracy"]
    assert balanced["value"] == pytest.approx(balanced_accuracy_score(labels.astype(str), told)) == 0.875
    assert figures["accuracy"]["value"] == pytest.approx(260 / 280)
    # Square-and-add by hand from the Wilson ends of 200/200 and 60/80.
    spread = np.hypot(1 - 0.981155, 0.75 - 0.645238) / 2
    assert balanced["low"] == pytest.approx(0.875 - spread, abs=1e-4)


def test_table_and_json_hold_all_findings(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    shutil.copy(tmp_path / "a/0.jpg", tmp_path / "b/copy.jpg")
    health = health_of(tmp_path)
    table = health_table(health)
    assert list(table.columns) == ["severity", "kind", "count", "message", "examples"]
    assert table["kind"].tolist() == ["conflicting_labels", "exact_duplicates"]
    assert table["examples"][0] == "a/0.jpg, b/copy.jpg"
    value = json.loads(json.dumps(to_json(health), allow_nan=False))
    assert value["trustworthy"] is False
    assert value["findings"][0]["figures"]["exact_pairs"] == 1
    assert value["findings"][0]["examples"] == ["a/0.jpg", "b/copy.jpg"]


@pytest.mark.slow
@pytest.mark.integration
def test_photos9_tells_its_classes_by_size(shared_data):
    health = health_of(shared_data("photos9"))
    findings = {finding.figures["features"]: finding for finding in found(health, "metadata_shortcut")}
    assert findings["size"].severity == "falsifies"
    assert 0.5 < findings["size"].figures["accuracy"]["value"] < 0.7, "about 0.60 by its README"
    assert not health.trustworthy


def test_antsbees_is_readable_and_without_conflicts(shared_data):
    health = health_of(shared_data("antsbees"))
    assert health.num_readable == health.num_photos == 397
    assert health.trustworthy
    assert not found(health, "conflicting_labels")
    assert not found(health, "metadata_shortcut")
