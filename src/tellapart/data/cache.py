"""Pictures decoded once and kept on disk, shared by all runs. Knows nothing about labels or training.

One `RowStore` per picture size and decoder version holds them as uint8, one behind the other. They are read with
``pread``: the kernel's page cache serves them without adding to this process' memory, as a memory map would.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.decode import DECODER_VERSION, decode_square
from tellapart.data.image_file import decoding_threads, read_file
from tellapart.data.row_store import RowStore
from tellapart.errors import DecodeError, InputError
from tellapart.files import is_disk_full, sha256
from tellapart.records import Progress, no_progress

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 32 * 1024 * 1024
_TASK = 8
"""Photos that a thread decodes in one go."""


def default_cache() -> Path:
    """Return the folder for what is worth keeping between runs: TELLAPART_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TELLAPART_CACHE") or f"{base}/tellapart").expanduser()


class Pictures:
    """Photos of a data set as square uint8 pictures, from the cache where they are in it.

    Safe to read from many threads. `close` it, or use it in a ``with`` block: that also ends what fills the cache.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        digests: Sequence[str],
        image_px: int,
        *,
        max_pixels: int = 100_000_000,
        cache: RowStore | None = None,
    ) -> None:
        self.paths = list(paths)
        self.digests = list(digests)
        self.image_px = image_px
        self.max_pixels = max_pixels
        self._rows = np.full(len(self.paths), -1, np.int64)
        self._file = -1
        self._closing = threading.Event()
        self._settling = threading.Lock()
        self._filling: Future[RowStore | None] | None = None
        if cache is not None:
            self._read_from(cache)

    def _read_from(self, cache: RowStore) -> None:
        """Read what the cache holds from it from now on."""
        if cache.rows_path.exists():
            # By content: a photo that was renamed, or that another data set has too, is found.
            known = {digest: row for row, digest in enumerate(cache.digests())}
            self._rows[:] = [known.get(digest, -1) for digest in self.digests]
            self._file = os.open(cache.rows_path, os.O_RDONLY | os.O_CLOEXEC)

    def fill(self, cache: Callable[[Callable[[], bool]], RowStore | None]) -> None:
        """Let a thread put the photos into the cache. The first look at a photo waits for it.

        Args:
            cache: puts them there, unless what it is called with says that they are not wanted any more, and returns
                the cache to read them from, or None.
        """
        self._filling = _filler().submit(cache, self._closing.is_set)

    def _settle(self) -> None:
        """Wait until the cache is filled, if it is being filled."""
        if self._filling is None:
            return
        with self._settling:
            # Looked at again under the lock: many threads come here at once, and one of them may just have settled it.
            if self._filling is not None:
                # What the filling raised is raised here, and at every later look as well: `_filling` stays then.
                cache = self._filling.result()
                if cache is not None and not self._closing.is_set():
                    self._read_from(cache)
                # Last: threads that see None go on without the lock, and must find the rows.
                self._filling = None

    def __len__(self) -> int:
        return len(self.paths)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_cached(self) -> int:
        """How many of the photos are read from the cache; the others are decoded at each use."""
        self._settle()
        return int((self._rows >= 0).sum())

    def read(self, position: int) -> NDArray[np.uint8]:
        """Return the photo at `position` as (image_px, image_px, 3) uint8.

        Raises:
            InputError: the photo changed or vanished since the scan.
        """
        self._settle()
        row, size = int(self._rows[position]), picture_bytes(self.image_px)
        if row >= 0:
            # pread takes the position as an argument: threads share one descriptor without a lock.
            data = os.pread(self._file, size, row * size)
            # Shorter where somebody emptied the cache meanwhile: then the photo itself is read, as if never cached.
            if len(data) == size:
                # Read-only, where what is decoded below is not: who wants to change a picture has to copy it first.
                return np.frombuffer(data, np.uint8).reshape(self.image_px, self.image_px, 3)
        path = self.paths[position]
        try:
            content = read_file(path)
            # Another picture under this name would be learned with the old one's label, and nobody would notice.
            if sha256(content) != self.digests[position]:
                raise InputError(f"{path} has changed since the run began. Bring it back, or begin a new run.")
            return decode_square(content, self.image_px, max_pixels=self.max_pixels)
        except DecodeError as error:
            raise InputError(f"{path} {error}; it could be read when the run began.") from error

    def batch(self, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (len(positions), image_px, image_px, 3) uint8."""
        batch = np.empty((len(positions), self.image_px, self.image_px, 3), np.uint8)
        for slot, position in enumerate(positions):
            batch[slot] = self.read(int(position))
        return batch

    def close(self) -> None:
        """Close the file. The pictures cannot be read from the cache afterwards."""
        self._closing.set()
        if self._filling is not None:
            # It must be over before this returns: it holds the cache's lock, and the caller may delete the folder.
            if not self._filling.cancel():
                wait([self._filling])
            self._filling = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._rows[:] = -1


@functools.cache
def _filler() -> ThreadPoolExecutor:
    """Return the one thread that fills caches, one after the other: each uses all processors."""
    # Python waits for its thread when it ends: pictures that were opened ahead and are never closed keep a process
    # alive until all of them are decoded.
    return ThreadPoolExecutor(1)


LIMIT_BYTES = 20 * 10**9
"""To what the cache for one size of pictures grows, where nothing else is said."""


def open_rows(root: Path, frame: pd.DataFrame, image_px: int, **options: Any) -> Pictures:
    """Open the photos of a manifest's rows, in their order; `options` as for `open_pictures`."""
    return open_pictures([root / path for path in frame["path"]], frame["sha256"].tolist(), image_px, **options)


def open_pictures(
    paths: Sequence[Path],
    digests: Sequence[str],
    image_px: int,
    *,
    folder: Path,
    limit_bytes: int = LIMIT_BYTES,
    max_pixels: int = 100_000_000,
    progress: Progress = no_progress,
    ahead: bool = False,
) -> Pictures:
    """Decode the photos that are not in the cache yet, and open all of them for reading.

    Args:
        paths: the photo files.
        digests: their SHA-256, the key in the cache.
        image_px: side of the pictures in pixels.
        folder: where caches are kept.
        limit_bytes: the cache for this size grows to at most so much; 0 leaves it alone.
        max_pixels: larger images are refused.
        progress: called with ("decoding photos", done, total).
        ahead: return at once; a thread decodes, and the first look at a picture waits for it.

    Returns:
        All photos. Those beyond the limit, or that did not fit on the disk, are decoded at each use.
    """
    pictures = Pictures(paths, digests, image_px, max_pixels=max_pixels)
    if limit_bytes > 0:
        pictures.fill(partial(_filled, picture_store(folder, image_px), pictures, limit_bytes, progress))
    if not ahead:
        pictures.num_cached  # noqa: B018  # waits, and raises what decoding raised
    return pictures


def _filled(
    cache: RowStore, pictures: Pictures, limit_bytes: int, progress: Progress, unwanted: Callable[[], bool]
) -> RowStore | None:
    """Decode what the cache lacks, and return it, if pictures can be read from it."""
    try:
        with cache.locked():
            _extend(cache, pictures, limit_bytes, progress, unwanted)
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else str(error)
        logger.warning("The cache %s cannot grow (%s): the rest is decoded as it is needed.", cache.folder, reason)
    return cache if os.access(cache.folder, os.R_OK) else None


def picture_store(folder: Path, image_px: int) -> RowStore:
    """Return the cache for one picture size."""
    return RowStore(folder / f"pictures-{image_px}px-v{DECODER_VERSION}", "pictures.u8", picture_bytes(image_px))


def picture_bytes(image_px: int) -> int:
    """Return the bytes of one picture."""
    return image_px * image_px * 3


def _extend(
    cache: RowStore, pictures: Pictures, limit_bytes: int, progress: Progress, unwanted: Callable[[], bool]
) -> None:
    paths, digests, image_px = pictures.paths, pictures.digests, pictures.image_px
    known = cache.digests()
    have, size = set(known), picture_bytes(image_px)
    # By digest: copies of a photo are decoded once.
    missing = {digest: path for digest, path in zip(digests, paths, strict=True) if digest not in have}
    # Rows are never deleted, so the limit counts those of other data sets too.
    room = max(0, limit_bytes // size - len(known))
    todo = list(missing.items())[:room]
    if len(todo) < len(missing):
        logger.warning(
            "The cache limit leaves out %d photos: they are decoded as they are needed.",
            len(missing) - len(todo),
        )
    if not todo:
        return
    chunk = max(1, _CHUNK_BYTES // size)
    with cache.writing(len(known)) as write, ThreadPoolExecutor(decoding_threads(paths)) as pool:
        done = 0
        # Chunk by chunk: whatever ends this, the chunks that were written stay in the cache.
        for decoded, chunk_digests, num_done in _decoded_chunks(todo, chunk, image_px, pictures.max_pixels, pool):
            if unwanted():
                break
            write(decoded.data, chunk_digests)
            done += num_done
            progress("decoding photos", done, len(todo))


def _decoded_chunks(
    todo: list[tuple[str, Path]], chunk: int, image_px: int, max_pixels: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[NDArray[np.uint8], list[str], int]]:
    """Yield (pictures, their digests, photos looked at) a chunk at a time; the next is decoded meanwhile.

    The pictures lie in one of two buffers that are used in turn.
    """
    buffers = [np.empty((min(chunk, len(todo)), image_px, image_px, 3), np.uint8) for _ in range(2)]

    def decode_some(buffer: NDArray[np.uint8], items: list[tuple[str, Path]]) -> list[bool]:
        return [_decode_into(buffer[slot], item, max_pixels) for slot, item in enumerate(items)]

    waiting: deque[tuple[NDArray[np.uint8], list[tuple[str, Path]], list[Future[list[bool]]]]] = deque()

    def begin(start: int) -> None:
        buffer, part = buffers[start // chunk % 2], todo[start : start + chunk]
        tasks = [
            pool.submit(decode_some, buffer[first : first + _TASK], part[first : first + _TASK])
            for first in range(0, len(part), _TASK)
        ]
        waiting.append((buffer, part, tasks))

    try:
        starts = iter(range(0, len(todo), chunk))
        for start in itertools.islice(starts, 2):
            begin(start)
        while waiting:
            buffer, part, tasks = waiting[0]
            good = np.concatenate([task.result() for task in tasks])
            digests = [digest for (digest, _), is_good in zip(part, good, strict=True) if is_good]
            yield buffer[: len(part)] if good.all() else buffer[: len(part)][good], digests, len(part)
            waiting.popleft()
            # Not before: the chunk after the next one is decoded into the buffer that the caller has just written out.
            for start in itertools.islice(starts, 1):
                begin(start)
    finally:
        # The caller stopped, or decoding failed: what has not begun is not needed.
        for _, _, tasks in waiting:
            for task in tasks:
                task.cancel()


def _decode_into(out: NDArray[np.uint8], item: tuple[str, Path], max_pixels: int) -> bool:
    """Decode one photo; False where it cannot be, or is no longer the file that was scanned."""
    digest, path = item
    try:
        data = read_file(path)
        # Under the digest of the scan every later run that knows the old photo would be given the new one.
        if sha256(data) != digest:
            return False
        decode_square(data, out.shape[0], max_pixels=max_pixels, out=out)
    except DecodeError:
        return False
    return True
