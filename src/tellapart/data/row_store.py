"""Rows of bytes on disk, all of one length, each under the SHA-256 of the file it came from. Knows no pictures.

A folder holds the rows one behind the other and ``index.bin``, their digests in the same order. A row counts once its
digest stands in the index, and the index grows only after the rows are on disk: a killed process leaves some rows that
no digest names, and the next one writes over them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from tellapart.locks import locked

_DIGEST_BYTES = 32


class Writer(Protocol):
    """Appends rows to a store; what it has returned from is on disk."""

    def __call__(self, rows: memoryview, digests: Sequence[str], /) -> None:
        """Append rows, whole ones, and their digests."""


class RowStore:
    """One folder of rows.

    Args:
        folder: it is made when something is written.
        name: of the file with the rows.
        row_bytes: length of each.
    """

    def __init__(self, folder: Path, name: str, row_bytes: int) -> None:
        self.folder, self.row_bytes = folder, row_bytes
        self.rows_path, self._index_path = folder / name, folder / "index.bin"

    def digests(self) -> list[str]:
        """Return the digests of the rows that are wholly on disk, in their order."""
        try:
            index = self._index_path.read_bytes()
            on_disk = self.rows_path.stat().st_size // self.row_bytes
        except FileNotFoundError:
            return []
        # A row needs its digest and all of its bytes; either file may be cut off.
        count = min(len(index) // _DIGEST_BYTES, on_disk)
        text = index[: count * _DIGEST_BYTES].hex()
        return [text[start : start + 64] for start in range(0, len(text), 64)]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for this process; the kernel lets it go when the process ends, however it ends.

        Raises:
            OSError: the folder cannot be made or written.
        """
        with locked(self.folder / "lock"):
            yield

    @contextlib.contextmanager
    def writing(self, count: int) -> Iterator[Writer]:
        """Append rows behind the first `count`; only while the store is `locked`.

        Args:
            count: of the rows that `digests` names.
        """
        # Never "wb": these files hold the rows of all earlier runs, and others read them without the lock.
        with open(self.rows_path, "ab") as stream, open(self._index_path, "ab") as index:
            # What lies beyond was left by a process that was killed between the two writes below; no digest names it.
            stream.truncate(count * self.row_bytes)
            index.truncate(count * _DIGEST_BYTES)

            def write(rows: memoryview, digests: Sequence[str], /) -> None:
                stream.write(rows)
                _to_disk(stream)
                index.write(bytes.fromhex("".join(digests)))
                _to_disk(index)

            yield write


def _to_disk(stream: IO[bytes]) -> None:
    """Order matters: rows must be on disk before the index names them."""
    stream.flush()
    os.fsync(stream.fileno())
