"""Several server processes on one socket. Knows nothing about HTTP or models, nor how processes are kept running."""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, MutableSequence
from multiprocessing.sharedctypes import RawArray
from multiprocessing.synchronize import Event
from types import FrameType

from tellapart.errors import RunError, TellapartError
from tellapart.memory import keep_memory_flat
from tellapart.serving.options import ServerOptions
from tellapart.supervisor import Child, Supervisor

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_MOST_STARTS = 256
"""Processes of which connections are counted, replaced ones included."""
_EARLY = "before it was ready; its error is above"


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
    # Two seconds more than a server's own limit, so that one that hangs can first log why and kill itself.
    counts = RawArray(ctypes.c_int, [-1] * _MOST_STARTS)
    servers = Supervisor(
        _serve, (options, bound, counts), name="tellapart-serve", stop_seconds=options.stop_seconds + 2
    )

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:  # a second signal: a server that is asked twice drops what it is doing
            servers.terminate()
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    announced = served = False
    try:
        servers.start(options.processes)
        while not stopping:
            time.sleep(_POLL_SECONDS)
            served = served or servers.num_ready > 0
            if not announced and servers.num_ready == options.processes:
                announced = True
                ready()
            for ended in servers.poll():
                # If a process ends before any was ready, the cause is most likely a bundle or an option: do not retry.
                if not served:
                    raise RunError(f"A server process ended with code {ended.code} {_EARLY}.")
                if ended.number < _MOST_STARTS:
                    counts[ended.number] = -1
                _note_end(ended, servers.replace(ended), options)
    finally:
        servers.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _note_end(ended: Child, pause_seconds: float, options: ServerOptions) -> None:
    """Log that a server has ended, and take it out of the gauges that all share."""
    if options.metrics_folder is not None:
        from prometheus_client.multiprocess import mark_process_dead

        # Removes the files of its live gauges, or its requests would count as in flight for ever.
        mark_process_dead(ended.process.pid, str(options.metrics_folder))  # type: ignore[no-untyped-call]
    state = "" if ended.ready.is_set() else f" {_EARLY}"
    logger.error(
        "A server process ended with code %s%s. The next one starts in %g s.", ended.code, state, pause_seconds
    )


def _serve(
    number: int, ready: Event, options: ServerOptions, bound: socket.socket, counts: MutableSequence[int]
) -> None:
    """Be one of the servers."""
    from tellapart.serving.app import make_app
    from tellapart.serving.http_server import ConnectionBalancer, Server

    keep_memory_flat()  # before make_app, because loading a network starts threads
    try:
        # Ctrl-C reaches the whole group: with the parent's SIGTERM it would be the second signal, which drops requests.
        app = make_app(options)
        balancer = ConnectionBalancer(counts, number) if number < _MOST_STARTS else None
        Server(app, options, ready=ready.set, signals=(signal.SIGTERM,), balancer=balancer).run([bound])
    except TellapartError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
