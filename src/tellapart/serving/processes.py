"""Several server processes on one socket. Knows nothing about HTTP or models."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from types import FrameType

from tellapart.errors import RunError, TellapartError
from tellapart.serving.memory import keep_memory_flat
from tellapart.serving.options import ServerOptions

_LOOK_SECONDS = 0.1
_PAUSE_SECONDS = 1.0


@dataclass
class _Child:
    process: SpawnProcess
    ready: Event
    began: float


def run_processes(options: ServerOptions, bound: socket.socket, *, ready: Callable[[], None]) -> None:
    """Run `options.processes` servers until SIGTERM or SIGINT; one that dies is replaced.

    Args:
        options: for each of them.
        bound: the socket that they share.
        ready: called once when all of them answer.

    Raises:
        RunError: one ended before it was ready.
    """
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    children = [_start(options, bound) for _ in range(options.processes)]
    said = False
    try:
        while not stopping:
            time.sleep(_LOOK_SECONDS)
            if not said and all(child.ready.is_set() for child in children):
                said = True
                ready()
            _replace_dead(children, options, bound)
    finally:
        for child in children:
            child.process.terminate()
        _wait(children, options)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(options: ServerOptions, bound: socket.socket) -> _Child:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_serve, args=(options, bound, ready), name="tellapart-serve")
    process.start()
    return _Child(process, ready, time.monotonic())


def _serve(options: ServerOptions, bound: socket.socket, ready: Event) -> None:
    """Be one of the servers."""
    from tellapart.serving.app import make_app
    from tellapart.serving.connection import Server

    keep_memory_flat()
    try:
        Server(make_app(options), options, ready=ready.set).run([bound])
    except TellapartError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


def _replace_dead(children: list[_Child], options: ServerOptions, bound: socket.socket) -> None:
    for number, child in enumerate(children):
        if child.process.is_alive():
            continue
        if not child.ready.is_set():
            raise RunError(
                f"A server process ended with code {child.process.exitcode} before it was ready; its error is above."
            )
        _forget(child, options)
        time.sleep(max(0.0, _PAUSE_SECONDS - (time.monotonic() - child.began)))
        children[number] = _start(options, bound)


def _wait(children: list[_Child], options: ServerOptions) -> None:
    """Wait for the children to finish what they accepted; end what does not."""
    until = time.monotonic() + options.drain_seconds + options.batches.deadline_ms / 1000 + 10
    for child in children:
        child.process.join(max(0.0, until - time.monotonic()))
        if child.process.is_alive():
            child.process.kill()
            child.process.join()


def _forget(child: _Child, options: ServerOptions) -> None:
    """Take a dead process out of the gauges that all share."""
    if options.metrics_folder is not None and child.process.pid is not None:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(child.process.pid, str(options.metrics_folder))  # type: ignore[no-untyped-call]
