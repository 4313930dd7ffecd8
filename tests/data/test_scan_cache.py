"""What was seen in files is not looked at again, unless the file has changed; and a broken cache costs nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drawing import make_classes, save_photo
from tellapart.data import scan as scanning
from tellapart.data.scan import scan


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = make_classes(tmp_path / "photos", {"a": 6, "b": 5})
    (root / "a" / "broken.jpg").write_bytes(b"no image")
    an_hour_ago(root)
    return root


def an_hour_ago(root: Path) -> None:
    for path in root.rglob("*.jpg"):
        os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each file that is read."""
    names, plain = [], scanning.inspect
    monkeypatch.setattr(scanning, "inspect", lambda path, *rest: names.append(path.name) or plain(path, *rest))
    return names


def same(one, other) -> bool:
    pd.testing.assert_frame_equal(one.frame, other.frame)
    return np.array_equal(one.thumbnails, other.thumbnails)


def test_a_second_scan_reads_only_what_changed_or_could_not_be_read(photos: Path, tmp_path: Path, read: list[str]):
    cache = tmp_path / "cache"
    first = scan(photos, cache=cache)
    assert len(read) == 12
    read.clear()
    assert same(scan(photos, cache=cache), first)
    assert read == ["broken.jpg"]
    read.clear()
    save_photo(photos / "a" / "0.jpg", seed=99)  # other content, and a time of change that is only now
    changed = scan(photos, cache=cache)
    assert sorted(read) == ["0.jpg", "broken.jpg"]
    assert same(changed, scan(photos))
    read.clear()
    scan(photos, cache=cache)
    assert sorted(read) == ["0.jpg", "broken.jpg"], (
        "what has just changed may change again within its time's resolution"
    )
    read.clear()
    scan(photos, cache=cache, max_pixels=1000)
    assert len(read) == 12, "what was seen under another limit is not known"


def test_a_cache_that_is_broken_or_cannot_be_written_costs_nothing(photos: Path, tmp_path: Path):
    cache, plain = tmp_path / "cache", scan(photos)
    scan(photos, cache=cache)
    (file,) = cache.glob("scan-*.sqlite")
    file.write_bytes(b"no database" * 100)
    assert same(scan(photos, cache=cache), plain)
    (tmp_path / "taken").write_text("a file where the folder should be")
    assert same(scan(photos, cache=tmp_path / "taken"), plain)
