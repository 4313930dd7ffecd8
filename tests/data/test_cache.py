"""The cache of decoded pictures under kills, full disks, torn files and company."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from drawing import save_photo
from tellapart.data.cache import Pictures, open_pictures, picture_bytes, picture_store
from tellapart.data.decode import decode_square

PX = 40
PLENTY = 10**9


def photos(folder: Path, count: int) -> tuple[list[Path], list[str]]:
    paths = [save_photo(folder / f"{number}.jpg", number) for number in range(count)]
    return paths, [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def assert_right(pictures: Pictures) -> None:
    for position, path in enumerate(pictures.paths):
        expected = decode_square(path.read_bytes(), pictures.image_px)
        np.testing.assert_array_equal(pictures.read(position), expected)


def start(script: str, folder: Path, cache: Path, px: int) -> subprocess.Popen[str]:
    """Start a process that runs `script` with paths, digests, cache and px defined."""
    head = """
        import hashlib, os, sys, time
        from pathlib import Path
        from tellapart.data import cache as module
        from tellapart.data.cache import open_pictures
        folder, cache, px = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
        paths = sorted(folder.iterdir(), key=lambda path: int(path.stem))
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        """
    command = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(script), folder, cache, px]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_pictures_are_decoded_once_and_then_read_without_their_files(tmp_path):
    paths, digests = photos(tmp_path / "photos", 12)
    paths, digests = [*paths, paths[0]], [*digests, digests[0]]  # the same content twice
    cache, told = tmp_path / "cache", []
    with open_pictures(
        paths, digests, PX, folder=cache, limit_bytes=PLENTY, progress=lambda *args: told.append(args)
    ) as pictures:
        assert pictures.num_cached == len(pictures) == 13
        assert_right(pictures)
        first = pictures.batch([3, 0, 12])
    assert told[-1] == ("decoding photos", 12, 12)
    assert picture_store(cache, PX).rows_path.stat().st_size == 12 * picture_bytes(PX)
    for path in set(paths):
        path.unlink()
    with open_pictures(paths, digests, PX, folder=cache, limit_bytes=PLENTY) as pictures:
        np.testing.assert_array_equal(pictures.batch([3, 0, 12]), first)
        np.testing.assert_array_equal(first[1], first[2])


def test_another_size_is_another_cache(tmp_path):
    paths, digests = photos(tmp_path / "photos", 3)
    for px in (PX, 24):
        with open_pictures(paths, digests, px, folder=tmp_path / "cache", limit_bytes=PLENTY) as pictures:
            assert_right(pictures)


def test_a_torn_tail_is_cut_off_and_written_again(tmp_path):
    paths, digests = photos(tmp_path / "photos", 12)
    cache = picture_store(tmp_path, PX)
    open_pictures(paths[:8], digests[:8], PX, folder=tmp_path, limit_bytes=PLENTY).close()
    with open(cache.rows_path, "ab") as stream:
        stream.write(b"\x07" * (2 * picture_bytes(PX) + 5))  # pictures without an entry in the index
    with open(cache.folder / "index.bin", "ab") as stream:
        stream.write(b"\x07" * 13)  # part of an entry
    with Pictures(paths, digests, PX, cache=cache) as pictures:
        assert pictures.num_cached == 8
        assert_right(pictures)
    with open_pictures(paths, digests, PX, folder=tmp_path, limit_bytes=PLENTY) as pictures:
        assert pictures.num_cached == 12
        assert_right(pictures)
    os.truncate(cache.rows_path, 5 * picture_bytes(PX) + 1)  # the index now promises too much
    with open_pictures(paths, digests, PX, folder=tmp_path, limit_bytes=PLENTY) as pictures:
        assert pictures.num_cached == 12
        assert_right(pictures)
    assert sorted(cache.digests()) == sorted(digests)


def test_beyond_the_limit_pictures_are_decoded_as_they_are_needed(tmp_path, caplog):
    paths, digests = photos(tmp_path / "photos", 14)
    options = {"folder": tmp_path, "limit_bytes": 10 * picture_bytes(PX) + 1}
    for _ in range(2):
        with open_pictures(paths, digests, PX, **options) as pictures:
            assert pictures.num_cached == 10
            assert_right(pictures)
        assert "leaves out 4 photos" in caplog.text
    assert picture_store(tmp_path, PX).rows_path.stat().st_size <= options["limit_bytes"]


def test_no_limit_no_cache(tmp_path):
    paths, digests = photos(tmp_path / "photos", 2)
    with open_pictures(paths, digests, PX, folder=tmp_path / "cache", limit_bytes=0) as pictures:
        assert_right(pictures)
    assert not (tmp_path / "cache").exists()


def test_a_photo_that_changed_after_the_scan_is_not_kept_under_its_old_digest(tmp_path):
    paths, digests = photos(tmp_path / "photos", 4)
    save_photo(paths[2], 99)
    paths[3].write_bytes(paths[3].read_bytes()[:50])
    with open_pictures(paths, digests, PX, folder=tmp_path, limit_bytes=PLENTY) as pictures:
        assert pictures.num_cached == 2
        with pytest.raises(ValueError, match=r"2\.jpg has changed since the run began"):
            pictures.read(2)
        with pytest.raises(ValueError, match=r"3\.jpg has changed since the run began"):
            pictures.read(3)
    assert set(picture_store(tmp_path, PX).digests()) == set(digests[:2])


@pytest.mark.integration
def test_a_process_killed_while_it_decodes_loses_only_what_it_had_not_written(tmp_path):
    paths, digests = photos(tmp_path / "photos", 300)
    script = """
        module._CHUNK_BYTES = 3_000_000  # 19 pictures of 224 px
        def slowly(what, done, total):
            print(done, flush=True)
            time.sleep(0.01)
        open_pictures(paths, digests, px, folder=cache, limit_bytes=10**9, progress=slowly)
        """
    cache, cached = picture_store(tmp_path / "cache", 224), 0
    for chunks, wait_s in ((1, 0.0), (3, 0.02), (2, 0.05)):
        process = start(script, tmp_path / "photos", tmp_path / "cache", 224)
        for _ in range(chunks):
            assert process.stdout.readline().strip().isdigit()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(wait_s or 0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        with Pictures(paths, digests, 224, cache=cache) as pictures:
            assert cached + 19 * chunks <= pictures.num_cached < 300
            cached = pictures.num_cached
            assert_right(pictures)
    with open_pictures(paths, digests, 224, folder=tmp_path / "cache", limit_bytes=PLENTY) as pictures:
        assert pictures.num_cached == 300
        assert_right(pictures)
    assert sorted(cache.digests()) == sorted(digests)


@pytest.mark.integration
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path):
    paths, digests = photos(tmp_path / "photos", 30)
    script = """
        import resource, signal
        import numpy as np
        from tellapart.data.decode import decode_square
        module._CHUNK_BYTES = 4 * 3 * px * px
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * 3 * px * px + 100,) * 2)
        with open_pictures(paths, digests, px, folder=cache, limit_bytes=10**9) as pictures:
            for position, path in enumerate(paths):
                assert np.array_equal(pictures.read(position), decode_square(path.read_bytes(), px))
            print(pictures.num_cached)
        """
    process = start(script, tmp_path / "photos", tmp_path / "cache", PX)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "8\n"), errors
    assert "cannot grow (the disk is full): the rest is decoded" in errors
    assert "Traceback" not in errors
    with open_pictures(paths, digests, PX, folder=tmp_path / "cache", limit_bytes=PLENTY) as pictures:
        assert pictures.num_cached == 30
        assert_right(pictures)


@pytest.mark.integration
def test_processes_share_one_cache(tmp_path):
    paths, digests = photos(tmp_path / "photos", 60)
    script = """
        from numpy import array_equal
        from tellapart.data.decode import decode_square
        module._CHUNK_BYTES = 5 * 3 * px * px
        part = slice(0, 45) if {first} else slice(20, 60)
        paths, digests = paths[part], digests[part]
        while not (folder.parent / "go").exists():
            time.sleep(0.001)
        with open_pictures(paths, digests, px, folder=cache, limit_bytes=10**9) as pictures:
            assert pictures.num_cached == len(paths)
            assert all(array_equal(pictures.read(n), decode_square(path.read_bytes(), px))
                       for n, path in enumerate(paths))
        """
    both = [start(script.format(first=first), tmp_path / "photos", tmp_path / "cache", PX) for first in (1, 0, 1)]
    (tmp_path / "go").touch()
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    cache = picture_store(tmp_path / "cache", PX)
    assert sorted(cache.digests()) == sorted(digests), "each picture once"
    for path in paths:
        path.unlink()
    with Pictures(paths, digests, PX, cache=cache) as pictures:
        assert pictures.num_cached == 60
