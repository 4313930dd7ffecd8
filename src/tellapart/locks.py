"""Locks between processes of a machine. Apart from `files`, for Windows, where servers run too, has no fcntl."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock, and yield whether it was got; the kernel lets it go when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Closing the file lets the lock go. The file stays: if it were deleted, two processes could lock two files.
    # Appending creates it and never empties it: others may hold it open.
    with open(path, "ab") as stream:
        try:
            # It belongs to this opening of the file: threads exclude each other too, and one that holds it already
            # would wait for itself.
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
