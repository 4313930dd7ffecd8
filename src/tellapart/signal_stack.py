"""The stack on which handlers of signals run, kept as it is while a library is opened that changes it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give the calling thread back its alternate stack for signals; elsewhere than on Linux do nothing.

    On processors with AMX, OpenVINO gives a thread that opens a network a stack of its own, and puts back the one
    before when that network is closed. Two networks that are closed in the order of their opening leave the first one's
    stack behind, whose memory is gone: the next signal, whatever it was sent for, ends the process with SIGSEGV.
    Python's own handlers need no larger stack than the thread has.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
