"""Files are written whole or not at all, and JSON is strict."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tellapart.errors import InputError
from tellapart.files import atomic_file, is_disk_full, read_json, sha256, write_json, write_text


def write_half(path: Path) -> None:
    with atomic_file(path) as stream:
        stream.write(b"half of the ne")
        stream.flush()
        raise RuntimeError("stop")


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "notes.txt"
    write_text(path, "old ü")
    with pytest.raises(RuntimeError, match="stop"):
        write_half(path)
    assert path.read_text("utf-8") == "old ü"
    write_text(path, "new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_is_strict_and_takes_numpy(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"loss": float("nan"), 3: (np.float32(0.5), np.int64(2), np.inf), "deep": [{"x": None}]})
    json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert read_json(path) == {"loss": None, "3": [0.5, 2, None], "deep": [{"x": None}]}


def test_missing_and_damaged_json_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    for data in (b'{"x": ', b"\xff\xfe{}", b""):
        (tmp_path / "b.json").write_bytes(data)
        with pytest.raises(InputError, match=r"b\.json is not valid JSON .*Restore it"):
            read_json(tmp_path / "b.json")


def test_digests_and_full_disks_are_recognised():
    assert sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()
    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"))
