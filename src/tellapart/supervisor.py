"""Processes that are kept running: spawned, watched, replaced, stopped in time. Knows neither HTTP nor trials.

A process is asked to stop by SIGTERM, and asks itself when its supervisor is gone, however that ended. Ctrl-C is the
supervisor's: its processes ignore SIGINT. Nothing heavy is imported here: a process may set its threads before it does.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from typing import Any

logger = logging.getLogger(__name__)

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_ORPHAN_SECONDS = 0.5
_KILLED_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
"""From Linux's prctl.h."""


@dataclass(frozen=True, eq=False)
class Child:
    """One of the processes.

    Attributes:
        number: in the order of their starts, from 0.
        process: itself.
        ready: an event that it sets.
        pause_seconds: that came before its start, if it replaces another.
    """

    number: int
    process: SpawnProcess
    ready: Event
    pause_seconds: float

    @property
    def code(self) -> int:
        """Exit code of one that has ended; negative: the signal that killed it."""
        return self.process.exitcode or 0


class Supervisor:
    """Owns processes that all do the same. `stop` has to be called in the end.

    Args:
        target: a function of a module, called in each process as ``target(number, ready, *arguments)``; it sets the
            event `ready` when it has what it needs.
        arguments: sent to each process.
        name: of the processes.
        stop_seconds: that they have between SIGTERM and SIGKILL.

    Example:
        >>> servers = Supervisor(serve, (options,), name="server", stop_seconds=10)
        >>> try:
        ...     servers.start(2)
        ...     while servers.running:
        ...         time.sleep(0.1)
        ...         for ended in servers.poll():
        ...             servers.replace(ended)
        ... finally:
        ...     servers.stop()
    """

    def __init__(
        self, target: Callable[..., None], arguments: tuple[Any, ...], *, name: str, stop_seconds: float
    ) -> None:
        self._target, self._arguments, self._name, self._stop_seconds = target, arguments, name, stop_seconds
        # Not fork, which would copy locks that the parent's threads hold, and nobody would release them.
        self._context = multiprocessing.get_context("spawn")
        self._children: list[Child] = []
        self._due: list[tuple[float, float]] = []  # (time.monotonic() of a start, the pause that comes before it)
        self._started = 0

    @property
    def running(self) -> bool:
        """Whether a process runs, is about to start, or has ended since the last `poll`."""
        return bool(self._children or self._due)

    @property
    def num_ready(self) -> int:
        """Processes that have said that they are ready."""
        return sum(child.ready.is_set() for child in self._children)

    def start(self, count: int) -> None:
        """Start processes."""
        for _ in range(count):
            self._spawn(_PAUSE_SECONDS)

    def poll(self) -> list[Child]:
        """Start replacements whose time has come, and return the processes that have ended since the last call."""
        now = time.monotonic()
        for start in [start for start in self._due if start[0] <= now]:
            self._due.remove(start)
            self._spawn(start[1])
        # A process that has ended is returned once; whether it is replaced is the caller's decision.
        ended = [child for child in self._children if not child.process.is_alive()]
        self._children = [child for child in self._children if child not in ended]
        return ended

    def replace(self, ended: Child) -> float:
        """Start another process in the place of one that has ended, after a pause; return its seconds.

        The pauses grow as long as nothing gets ready in that place.
        """
        # A process that was ready can start, so its replacement starts soon. One that fails every time must not keep a
        # processor busy.
        pause = _PAUSE_SECONDS if ended.ready.is_set() else min(2 * ended.pause_seconds, _LONGEST_PAUSE_SECONDS)
        self._due.append((time.monotonic() + pause, pause))
        return pause

    def terminate(self) -> None:
        """Ask all processes to stop."""
        for child in self._children:
            child.process.terminate()

    def stop(self) -> None:
        """Ask all processes to stop, wait for them, and kill what does not end in time."""
        self._due.clear()  # no replacement may start from now on
        self.terminate()
        # They stop in parallel, so one time limit holds for all of them.
        until = time.monotonic() + self._stop_seconds
        for process in [child.process for child in self._children]:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                logger.error("%s %s did not end in time and is killed.", self._name, process.pid)
                process.kill()
                process.join(_KILLED_SECONDS)

    def _spawn(self, pause_seconds: float) -> None:
        ready, number = self._context.Event(), self._started
        # The parent's id is sent along: a child that asked for it might be an orphan by then, and never notice.
        arguments = (os.getpid(), self._target, number, ready, self._arguments)
        process = self._context.Process(target=_run, args=arguments, name=self._name)
        process.start()
        self._started += 1
        self._children.append(Child(number, process, ready, pause_seconds))


def _run(parent: int, target: Callable[..., None], number: int, ready: Event, arguments: tuple[Any, ...]) -> None:
    """Be one of the processes."""
    # Ctrl-C reaches the whole process group. Only the parent acts on it, by sending each process one SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    target(number, ready, *arguments)


def _end_with(parent: int) -> None:
    """Have this process asked to stop when its parent is gone, even by SIGKILL: nobody else would end it.

    Linux sends the signal at once, when the thread ends that started this process. Everywhere an orphan sees that it
    has another parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)

    # Also covers a parent that died before prctl was called: this process already has another one by then.
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
