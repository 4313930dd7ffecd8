"""What one client may send, and how fast. Knows nothing about images or models."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Any

from tellapart.serving.errors import ApiError, busy
from tellapart.serving.options import Limits

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_MOST_CLIENTS = 10_000  # an IPv6 client has more addresses than there is memory for
SMALL_BYTES = 1024 * 1024
"""Requests up to here are small: a photo as phones send it on is."""


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class BodyBudget:
    """The bytes of requests that are in memory, bodies and what they are parsed to: many clients must not fill it.

    A quarter is kept for small requests: large bodies that come slowly shut nobody out.
    """

    # Needs no lock: only the event loop changes it. Other threads hand their changes to the loop (`Body.end`).
    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    def add(self, count: int, *, of: int = 0) -> None:
        """Take `count` bytes more for a request that has `of` bytes already.

        Raises:
            ApiError: there is no place for them (503), or never will be (413).
        """
        # The size of the whole request so far decides, not that of this piece: a large body also arrives in small
        # pieces. 413 tells a client to give up and 503 to try again, so what can never fit must not get a 503.
        most = self.most if of + count <= SMALL_BYTES else self.most * 3 // 4
        if of + count > most:
            raise ApiError(
                413, f"The request takes up to {of + count:,} bytes of memory to read; at most {most:,} may be taken. "
                "Send fewer or smaller images, or the bytes of files and not lists of numbers; tellapart serve "
                "--max-held-mb allows more.",
            )  # fmt: skip
        if self.bytes + count > most:
            raise busy(f"The server holds {self.bytes:,} bytes of requests; at most {most:,} fit. Try again soon.")
        self.bytes += count

    def free(self, count: int) -> None:
        """Give bytes back."""
        self.bytes -= count


class Body:
    """The body of one request, counted while it is in memory.

    Attributes:
        held: bytes that are counted for it.
        data: what was read, until it is taken.
    """

    def __init__(self, limits: Limits, held: BodyBudget) -> None:
        self._limits, self._ledger, self.held = limits, held, 0
        self.data = b""
        self._work: Future | None = None

    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> None:
        """Read the whole body; `take` returns it.

        Raises:
            ApiError: it is too large or too slow, or the server is full.
            ClientLeftError: the client closed the connection.
        """
        limits = self._limits
        # Refuse a body that declares too many bytes before reading any of it. At most 20 digits go to int().
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limits.max_body_bytes:
            raise _too_large(int(declared[:20]), limits.max_body_bytes)
        # Compressed bodies are refused: 32 MB of gzip can expand to 30 GB.
        if (encoding := headers.get(b"content-encoding", b"identity").lower()) not in (b"identity", b""):
            raise ApiError(415, f"The body is encoded as {encoding.decode('latin-1')!r}. Expected it as it is.")
        try:
            async with asyncio.timeout(limits.body_seconds):
                await self._read(receive)
        except TimeoutError:
            # Close the connection, or a client that sends a byte now and then could hold it indefinitely.
            message = f"The body did not arrive within {limits.body_seconds:g} seconds."
            raise ApiError(408, message, {"Connection": "close"}) from None

    async def _read(self, receive: Receive) -> None:
        stream = io.BytesIO()  # grows in place and gives its own bytes: pieces that are joined are in memory twice
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            if chunk := message.get("body", b""):
                if self.held + len(chunk) > self._limits.max_body_bytes:
                    raise _too_large(None, self._limits.max_body_bytes)
                self.add(len(chunk))
                # Most bodies arrive in one piece, which is taken without a copy.
                if not message.get("more_body", False) and not stream.tell():
                    self.data = chunk
                    return
                stream.write(chunk)
            if not message.get("more_body", False):
                self.data = stream.getvalue()
                return

    def take(self) -> bytes:
        """Return the body and forget it: whoever takes it decides how long it stays in memory. It stays counted."""
        data, self.data = self.data, b""
        return data

    def __len__(self) -> int:
        return len(self.data)

    def add(self, count: int) -> None:
        """Count bytes more, for what the body is turned into.

        Raises:
            ApiError: there is no place for them.
        """
        self._ledger.add(count, of=self.held)
        self.held += count

    def free(self, count: int) -> None:
        """Count `count` bytes less."""
        self._ledger.free(count)
        self.held -= count

    def busy_until(self, work: Future) -> None:
        """Stay counted until `work`, in another thread, is done with it, even if the request ends before."""
        self._work = work

    def end(self) -> None:
        """Forget it, at the end of its request; in the event loop."""
        self.data = b""
        # If a parser thread is still at work, its memory is in use although the client has left: free it when that
        # ends.
        held, self.held = self.held, 0
        if self._work is None or self._work.done():
            self._ledger.free(held)
            return
        loop = asyncio.get_running_loop()

        def free(_: Future) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody counts any more
                loop.call_soon_threadsafe(self._ledger.free, held)

        self._work.add_done_callback(free)


def _too_large(declared: int | None, most: int) -> ApiError:
    came = f"declares {declared:,} bytes" if declared is not None else f"is larger than {most:,} bytes"
    return ApiError(413, f"The body {came}; at most {most:,} are taken. Send fewer or smaller images.")


class RateLimit:
    """A token bucket for each client address; it holds the requests of one second.

    Args:
        rate: requests per second; 0: no limit.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, max(1.0, rate)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """Take a token; return 0, or the seconds until there is one."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        # Removed and inserted again, which keeps the dict in order of use: the oldest address is forgotten first.
        tokens, at = self._buckets.pop(client, (self._most, now))
        tokens = min(self._most, tokens + (now - at) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return wait
