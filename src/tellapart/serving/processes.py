"""Several server processes on one socket. Knows nothing about HTTP or models."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from types import FrameType

from tellapart.errors import RunError, TellapartError
from tellapart.serving.memory import keep_memory_flat
from tellapart.serving.options import ServerOptions

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_ORPHAN_SECONDS = 0.5
_KILLED_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
"""From Linux's prctl.h."""


@dataclass
class _Place:
    """One of the servers: the process that is it now, or when the next one is started.

    Attributes:
        process: None: none runs.
        ready: set by the process when it answers.
        next_start: time.monotonic().
        pause: seconds before the start after the next one, if that fails.
    """

    process: SpawnProcess | None
    ready: Event
    next_start: float = 0.0
    pause: float = _PAUSE_SECONDS


def run_processes(options: ServerOptions, bound: socket.socket, *, ready: Callable[[], None]) -> None:
    """Run `options.processes` servers until SIGTERM or SIGINT; one that dies is replaced.

    One that cannot start again, such as for a bundle that was damaged meanwhile, is tried again after longer and longer
    pauses; the others go on.

    Args:
        options: for each of them.
        bound: the socket that they share.
        ready: called once when all of them answer.

    Raises:
        RunError: one ended before any was ready.
    """
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    places = [_start(options, bound) for _ in range(options.processes)]
    said = served = False
    try:
        while not stopping:
            time.sleep(_LOOK_SECONDS)
            states = [place.ready.is_set() for place in places]
            served = served or any(states)
            if not said and all(states):
                said = True
                ready()
            for place in places:
                _look_after(place, options, bound, served)
    finally:
        _stop(places, options)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(options: ServerOptions, bound: socket.socket) -> _Place:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_serve, args=(options, bound, ready, os.getpid()), name="tellapart-serve")
    process.start()
    return _Place(process, ready)


def _look_after(place: _Place, options: ServerOptions, bound: socket.socket, served: bool) -> None:
    """Replace a process that has ended.

    Raises:
        RunError: it ended before any server was ready.
    """
    now = time.monotonic()
    if place.process is None:
        if now >= place.next_start:
            fresh = _start(options, bound)
            place.process, place.ready = fresh.process, fresh.ready
        return
    if place.process.is_alive():
        return
    code, was_ready = place.process.exitcode, place.ready.is_set()
    if not served:
        raise RunError(f"A server process ended with code {code} before it was ready; its error is above.")
    _forget(place.process, options)
    place.pause = _PAUSE_SECONDS if was_ready else min(2 * place.pause, _LONGEST_PAUSE_SECONDS)
    place.process, place.next_start = None, now + place.pause
    state = "" if was_ready else " before it was ready; its error is above"
    logger.error("A server process ended with code %s%s. The next one starts in %g s.", code, state, place.pause)


def _serve(options: ServerOptions, bound: socket.socket, ready: Event, parent: int) -> None:
    """Be one of the servers."""
    _end_with(parent)
    from tellapart.serving.app import make_app
    from tellapart.serving.http_server import Server

    keep_memory_flat()
    try:
        Server(make_app(options), options, ready=ready.set).run([bound])
    except TellapartError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


def _end_with(parent: int) -> None:
    """Have this process told to stop when its parent is gone, even by SIGKILL: nobody else would end it.

    Linux sends the signal at once. Everywhere an orphan sees that it has another parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _stop(places: list[_Place], options: ServerOptions) -> None:
    """Let the servers finish what they accepted; kill what does not end."""
    running = [place.process for place in places if place.process is not None]
    for process in running:
        process.terminate()
    until = time.monotonic() + options.stop_seconds + 2
    for process in running:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            logger.error("The server process %s did not end in time and is killed.", process.pid)
            process.kill()
            process.join(_KILLED_SECONDS)


def _forget(process: SpawnProcess, options: ServerOptions) -> None:
    """Take a dead process out of the gauges that all share."""
    if options.metrics_folder is not None and process.pid is not None:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid, str(options.metrics_folder))  # type: ignore[no-untyped-call]
