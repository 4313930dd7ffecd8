"""How the C library keeps the memory that it was given back. Knows nothing about servers."""

from __future__ import annotations

import ctypes
import logging
import platform
from functools import lru_cache

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
"""From glibc's malloc.h."""

_OWN_PAGES_BYTES = 256_000
"""Strips of large pictures are larger: with 1 MB as the limit an attack left holes of 30 MB in the heaps."""
_KEPT_BYTES = 8_000_000
# With all three settings a server grows from 201.2 to 201.3 MB in ten minutes of load with damaged images
# (results/endurance.json). In a first trial, two arenas alone let it grow from 294 to 377 MB.
_ARENAS = 2


@lru_cache
def _glibc() -> ctypes.CDLL | None:
    # CDLL(None) opens the running program itself. musl and macOS have neither mallopt nor malloc_trim.
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def give_back() -> None:
    """Return to the system what is free in the heaps: after large work, in a thread that nobody waits for.

    glibc by itself only returns what is free at a heap's end. Takes about a millisecond; elsewhere does nothing.
    """
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that were freed for the next ones; elsewhere do nothing.

    Left alone it returns them to the system, which has to clear their pages before it hands them out again: the layers
    of a network free and take hundreds of megabytes in each step. For programs that end when their work is done.
    """
    if (library := _glibc()) is None:
        return
    for option, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, (1 << 31) - 1), (_M_TOP_PAD, 1 << 26)):
        if not library.mallopt(option, value):
            logger.info("mallopt refused option %d with %d.", option, value)


def keep_memory_flat() -> None:
    """Let glibc give large blocks back to the system as soon as they are free; elsewhere do nothing.

    Left alone it raises its threshold after the first large picture (mallopt(3), M_MMAP_THRESHOLD): later ones come
    from heaps that have holes and do not shrink. Damaged and huge images made a server grow by half. Call this
    before it has threads.
    """
    if (library := _glibc()) is None:
        return
    tune = library.mallopt
    # Setting a threshold also stops glibc from adjusting it dynamically (mallopt(3)). mallopt returns 0 on error.
    wanted = ((_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES), (_M_ARENA_MAX, _ARENAS))
    if not all(tune(name, value) for name, value in wanted):
        logger.warning("The C library does not take memory settings; the server may need more than it should.")
