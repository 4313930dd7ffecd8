"""Sockets and processes around the application: time-outs for slow clients, draining. Knows no protocol above HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableSequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tellapart.errors import InputError
from tellapart.serving.options import Limits, ServerOptions

_MAX_HEADER_BYTES = 32 * 1024
_KEEP_ALIVE_SECONDS = 75
_LEFT_OVER_SECONDS = 10.0
_LAST_WORDS_SECONDS = 0.3
_GIVE_WAY_SECONDS, _MOST_GIVE_WAY_SECONDS = 0.0002, 0.002
"""In the first one another process that waits is woken and takes a connection; one that works takes longer."""

logger = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and not yet listened on.

    Raises:
        InputError: the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    # A server that has just stopped leaves connections in TIME_WAIT, which would block its port for a minute.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The server cannot listen on {host}:{port}: {reason}. Expected a free --port and a --host of this machine."
        ) from error
    bound.set_inheritable(True)
    return bound


def address(bound: socket.socket, host: str) -> str:
    """Return the URL under which a bound socket is reached."""
    bare = host.strip("[]")
    name = f"[{bare}]" if ":" in bare else bare
    return f"http://{name}:{bound.getsockname()[1]}"


class ConnectionBalancer:
    """Spreads connections over the processes that share a socket, so that none takes all of them.

    Who is woken first takes whatever waits: of eight connections at once, one of two processes sometimes got all, and
    half of the processors had nothing to do for as long as clients stayed.

    Args:
        counts: connections by the number of the process, in memory that all share; -1: it does not run.
        number: of this process.
    """

    def __init__(self, counts: MutableSequence[int], number: int) -> None:
        self._counts, self._number = counts, number
        self.note(0)

    def accepted(self) -> None:
        """Count one more; the fewer another process has, the longer let it take the next one."""
        mine = self._counts[self._number] + 1
        self.note(mine)
        ahead = mine - 1 - min(count for count in self._counts[:] if count >= 0)
        if ahead > 0:
            # The event loop sleeps: it would take the next one otherwise.
            time.sleep(min(_GIVE_WAY_SECONDS * 2.0 ** min(ahead - 1, 10), _MOST_GIVE_WAY_SECONDS))

    def note(self, num_connections: int) -> None:
        """Say how many there are."""
        self._counts[self._number] = num_connections


class Server(uvicorn.Server):
    """A uvicorn server that says that it stops before it does, and ends with exit code 0.

    Args:
        app: made by `tellapart.serving.app.make_app`.
        options: the same.
        ready: called when it listens.
        signals: that ask it to stop.
        balancer: None: no other process shares its socket.
    """

    def __init__(
        self,
        app: Starlette,
        options: ServerOptions,
        *,
        ready: Callable[[], None] = lambda: None,
        signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT),
        balancer: ConnectionBalancer | None = None,
    ) -> None:
        self._app, self._options, self._ready, self._signals = app, options, ready, signals
        self._end_of_notice = 0.0
        # Every accepted request gets an answer or a 504 by its deadline; uvicorn must not cancel it earlier.
        grace = options.batches.deadline_ms / 1000 + 5
        # uvicorn's own log and Server header are off: the middleware writes both the log and the headers.
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=_protocol(options.limits, balancer),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(grace),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is loaded stays: later collections need not look through it
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to the signals, and do not raise them again in the end, as uvicorn does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in self._signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; on a second signal stop now."""
        # Draining only fails readiness; `on_tick` closes the listener later. Until the load balancer notices, it still
        # sends requests, and these must be answered.
        service = self._app.state.service
        if service.draining:
            self.should_exit = self.force_exit = True
            return
        service.draining = True
        self._end_of_notice = time.monotonic() + self._options.drain_seconds
        # A thread, since the event loop may be what hangs; a daemon, so that it does not delay a server that ends in
        # time.
        last = threading.Timer(self._options.stop_seconds, _end_now)
        last.daemon = True
        last.start()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop listening: some time after readiness was withdrawn."""
        stop = await super().on_tick(counter)
        return stop or (self._app.state.service.draining and time.monotonic() >= self._end_of_notice)


def _end_now() -> None:
    """End a process in which something hangs that Python would wait for without end, such as a disk that is gone."""
    logger.error("The server did not end in time: something hangs. It is killed.")
    time.sleep(_LAST_WORDS_SECONDS)  # the log is written by another thread
    os.kill(os.getpid(), signal.SIGKILL)


def _protocol(limits: Limits, between: ConnectionBalancer | None) -> type[HttpToolsProtocol]:
    """Return a protocol with these limits: uvicorn makes one per connection and knows no such argument."""

    class Bounded(Connection):
        bounds, balancer = limits, between

    return Bounded


class Connection(HttpToolsProtocol):
    """A connection that waits for headers, and for a body that nobody reads, for a limited time."""

    # uvicorn has no such limits and promises nothing about its protocol classes. Used here of HttpToolsProtocol: the
    # methods that are extended below, `connections`, `transport`, `loop`, and of its `cycle` `more_body` and
    # `response_complete`. tests/serving/test_http_server.py names each, so that an upgrade which changes one fails.
    bounds = Limits()
    balancer: ConnectionBalancer | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # Here, while connections are accepted one after the other: `connection_made` is called when all of them are.
        if self.balancer is not None:
            self.balancer.accepted()

    def connection_made(self, transport: Any) -> None:
        """Wait for headers; refuse a connection too many."""
        super().connection_made(transport)
        # uvicorn starts its keep-alive timer after the first answer: without this one a silent client could stay for
        # ever.
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.bounds.max_connections:
            transport.close()
            return
        self._wait(self.bounds.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._wait(None)
        super().connection_lost(exc)
        if self.balancer is not None:
            self.balancer.note(len(self.connections))

    def on_message_begin(self) -> None:
        """Wait for the rest of the headers."""
        super().on_message_begin()
        self._header_bytes = 0
        self._wait(self.bounds.header_seconds)

    def on_url(self, url: bytes) -> None:
        """Count a piece of the path."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)  # ": " and the line end

    def on_headers_complete(self) -> None:
        """Wait no more: bodies have a time of their own."""
        self._wait(None)
        # After `_refuse` the parser still processes the bytes that it has: without this test the application would be
        # called for a request that was refused.
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Give a client that was refused a while to end its body, which is thrown away."""
        # On a connection that stays open, the next request begins only after the rest of this body.
        unread = self.cycle is not None and self.cycle.more_body
        super().on_response_complete()
        if unread:
            self._wait(_LEFT_OVER_SECONDS, self.transport.close)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body, unless the connection is closed already."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait no more for a body that nobody reads."""
        self._wait(None)
        if not self.transport.is_closing():
            super().on_message_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def _wait(self, seconds: float | None, then: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, then or self._too_slow)

    def _too_slow(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            # Never write into an answer that is being sent: the client would take this for a part of its body.
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
