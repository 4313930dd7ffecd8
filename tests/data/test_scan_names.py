"""Names that are not UTF-8, and folders with a file beside each photo."""

from __future__ import annotations

import json
import os
import time

import pandas as pd
import pytest

from drawing import make_classes, save_photo
from tellapart.data.health import check, examine, health_table, to_json
from tellapart.data.scan import scan
from tellapart.errors import InputError
from tellapart.files import read_json, write_json
from tellapart.records import Manifest

CAFE = os.fsdecode(b"caf\xe9")


def test_a_photo_may_have_a_name_that_is_not_utf8(tmp_path):
    make_classes(tmp_path, {"a": 12, "b": 12})
    save_photo(tmp_path / "a" / f"{CAFE}.jpg", 99)
    (tmp_path / "a" / f"copy {CAFE}.jpg").write_bytes((tmp_path / "a" / f"{CAFE}.jpg").read_bytes())
    (tmp_path / "b" / f"{CAFE}.txt").write_text("no photo")
    manifest = scan(tmp_path)
    assert f"a/{CAFE}.jpg" in manifest.frame["path"].tolist()
    health = examine(manifest)
    assert {finding.kind for finding in health.findings} >= {"exact_duplicates", "left_out"}
    write_json(tmp_path / "health.json", to_json(health))
    examples = [path for finding in read_json(tmp_path / "health.json")["findings"] for path in finding["examples"]]
    assert f"a/{CAFE}.jpg" in examples
    assert f"b/{CAFE}.txt" in examples
    assert len(health_table(health)) == len(health.findings)
    json.dumps(to_json(health), allow_nan=False)


@pytest.mark.parametrize("inside", ["", "train/"])
def test_a_class_may_not(tmp_path, inside):
    make_classes(tmp_path / inside, {"a": 3})
    if inside:
        make_classes(tmp_path / "test", {"a": 3})
    save_photo(tmp_path / inside / CAFE / "1.jpg", 1)
    with pytest.raises(InputError, match=r"caf\\xe9 is a class folder whose name is not UTF-8\. Rename it"):
        check(tmp_path)


def test_a_file_beside_each_photo_costs_time_in_proportion(tmp_path):
    """50,000 of them took half a minute: each was looked up in a set made anew for it."""
    make_classes(tmp_path, {"a": 12, "b": 12})
    manifest = scan(tmp_path)

    def seconds(count: int) -> float:
        problems = tuple((f"a/{number}.xmp", "is not an image by its name and was left out") for number in range(count))
        start = time.process_time()
        health = examine(Manifest(manifest.root, manifest.frame, manifest.thumbnails, problems))
        assert [finding.count for finding in health.findings if finding.kind == "left_out"] == [count]
        return time.process_time() - start

    assert seconds(50_000) - seconds(1) < 1.0


def test_photos_beside_the_class_folders_of_a_split_are_said_to_be_left_out(tmp_path):
    make_classes(tmp_path / "train", {"a": 3, "b": 3})
    make_classes(tmp_path / "test", {"a": 3, "b": 3})
    save_photo(tmp_path / "test" / "loose.jpg", 5)
    manifest = scan(tmp_path)
    assert len(manifest.frame) == 12
    assert ("test/loose.jpg", "is not inside a class folder") in manifest.problems


def test_tables_may_be_spelled_large_and_have_gaps(tmp_path):
    make_classes(tmp_path, {"a": 3, "b": 3})
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.jpg"))
    frame = pd.DataFrame({"path": paths, "label": [path[0] for path in paths]})
    frame.to_csv(tmp_path / "PHOTOS.TSV", sep="\t", index=False)
    assert scan(tmp_path / "PHOTOS.TSV").frame["label"].tolist() == frame["label"].tolist()
    pytest.importorskip("pyarrow")
    group = pd.Series([1, None, 2, None, None, 3], dtype="Int64")
    frame.assign(group=group, split=pd.Categorical([None] * 6, ["train"])).to_parquet(tmp_path / "photos.parquet")
    assert scan(tmp_path / "photos.parquet").frame["group"].tolist() == ["1", "", "2", "", "", "3"]
