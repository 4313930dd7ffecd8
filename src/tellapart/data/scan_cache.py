"""What a scan saw in files, kept by place, size and time of change: photos that stayed as they are are not read again.

One SQLite file in the cache folder. It is never needed: what it does not know, or cannot say, is read from the photos.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.data.decode import DECODER_VERSION

logger = logging.getLogger(__name__)

Seen = tuple[dict[str, Any], NDArray[np.uint8]]
"""A row of the manifest, and its thumbnail."""

# Part of the file's name: with another one nothing is known, and every photo is read again.
_VERSION = 1
_AT_ONCE = 500
_SETTLED = 2.0
"""Seconds: a file that changed so short ago may change again within the resolution of its time, and is not kept."""


class ScanCache:
    """What was seen in files.

    Args:
        folder: where caches are kept.
        max_pixels: larger images are refused, so that what is known holds for one limit.
        thumbnail_px: side of the thumbnails.
    """

    def __init__(self, folder: Path, max_pixels: int, thumbnail_px: int) -> None:
        self._file = folder / f"scan-v{DECODER_VERSION}.{_VERSION}.sqlite"
        self._max_pixels, self._px = max_pixels, thumbnail_px
        self._stamps: dict[bytes, tuple[int, int]] = {}

    def known(self, paths: Sequence[Path]) -> dict[int, Seen]:
        """Return what is known of those files that have neither changed nor moved, by their place among `paths`."""
        names = [os.fsencode(os.path.abspath(path)) for path in paths]
        self._stamps = {name: stamp for name in names if (stamp := _stamp(name)) is not None}
        hits: dict[int, Seen] = {}
        places = {name: position for position, name in enumerate(names)}
        if not self._file.exists():
            return hits
        with self._forgiving(), contextlib.closing(self._opened()) as base:
            for start in range(0, len(names), _AT_ONCE):
                # SQLite limits the number of question marks in a statement.
                part = names[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT path, size, time, row, thumbnail FROM seen WHERE max_pixels = ? AND path IN ({marks})"
                for name, size, changed, row, small in base.execute(query, (self._max_pixels, *part)):
                    # Another size or time: the file is read again, and its row replaced.
                    if self._stamps.get(bytes(name)) == (size, changed):
                        picture = np.frombuffer(small, np.uint8).reshape(self._px, self._px)
                        hits[places[bytes(name)]] = json.loads(row), picture
        return hits

    def keep(self, paths: Sequence[Path], seen: Sequence[Seen]) -> None:
        """Note what was seen in files that could be read; `known` was asked about them before they were."""
        now, rows = time.time_ns(), []
        for path, (row, small) in zip(paths, seen, strict=True):
            name = os.fsencode(os.path.abspath(path))
            stamp = self._stamps.get(name)
            # As it was before it was read: a file that changed meanwhile has another time now, and is read next time.
            if row["error"] or stamp is None or now - stamp[1] < _SETTLED * 1e9:
                continue
            rows.append((name, self._max_pixels, *stamp, json.dumps(row), np.ascontiguousarray(small).tobytes()))
        if rows:
            with self._forgiving(), contextlib.closing(self._opened()) as base, base:
                base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _opened(self) -> sqlite3.Connection:
        """Return the open file; as a context it keeps what was changed.

        Raises:
            sqlite3.Error, OSError: it cannot be opened or made.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # Several commands may share the file: a writer is waited for, five seconds at most.
        base = sqlite3.connect(self._file, timeout=5.0)
        try:
            base.execute(
                # Paths are bytes: a file's name need not be UTF-8.
                "CREATE TABLE IF NOT EXISTS seen (path BLOB, max_pixels INTEGER, size INTEGER, time INTEGER, row TEXT, "
                "thumbnail BLOB, PRIMARY KEY (path, max_pixels))"
            )
        except sqlite3.Error:
            base.close()
            raise
        return base

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Go on without the file where it cannot be used."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a row that is not as it was written
            logger.warning("What was seen in photos cannot be kept in %s (%s).", self._file, error)


def _stamp(name: bytes) -> tuple[int, int] | None:
    """Return (bytes, nanoseconds of the last change) of a file; None where there is none."""
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
