"""How many threads NumPy's matrix products take. Knows nothing about what is multiplied."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class _OneThread:
    """The number of threads is the process's: the first caller keeps what it was, and the last one puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers = 0
        self._before = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        from threadpoolctl import threadpool_limits

        with self._lock:
            self._callers += 1
            if self._callers == 1:
                self._before.enter_context(threadpool_limits(limits=1, user_api="blas"))
        try:
            yield
        finally:
            with self._lock:
                self._callers -= 1
                if not self._callers:
                    self._before.close()


one_blas_thread = _OneThread()
"""Have each product done by the thread that asks for it, in the whole process, as long as this lasts.

OpenBLAS's threads spin for the next product while other threads have work: naming photos took 1.4 times as long
(docs/experiments.md, 2026-11-29). And small products are done sooner by one: logistic regression in half the time.
"""
