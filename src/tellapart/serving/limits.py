"""What one client may send, and how fast. Knows nothing about images or models."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tellapart.serving.options import Limits
from tellapart.serving.refusals import RefusalError, busy

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_MOST_CLIENTS = 10_000


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


class Held:
    """The bytes of all bodies that are in memory: many clients together must not fill it."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    def add(self, count: int) -> None:
        """Take `count` bytes more.

        Raises:
            RefusalError: there is no place for them.
        """
        if self.bytes + count > self.most:
            raise busy(f"The server holds {self.bytes:,} bytes of requests; at most {self.most:,} fit. Try again soon.")
        self.bytes += count

    def free(self, count: int) -> None:
        """Give bytes back."""
        self.bytes -= count


class Body:
    """The body of one request, counted while it is in memory.

    Attributes:
        held: bytes of it that are counted.
    """

    def __init__(self, limits: Limits, held: Held) -> None:
        self._limits, self._ledger, self.held = limits, held, 0

    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Return the whole body.

        Raises:
            RefusalError: it is too large or too slow, or the server is full.
            ClientLeftError: the client closed the connection.
        """
        limits = self._limits
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limits.max_body_bytes:
            raise _too_large(int(declared[:20]), limits.max_body_bytes)
        if (encoding := headers.get(b"content-encoding", b"identity").lower()) not in (b"identity", b""):
            raise RefusalError(415, f"The body is encoded as {encoding.decode('latin-1')!r}. Expected it as it is.")
        try:
            async with asyncio.timeout(limits.body_seconds):
                return await self._read(receive)
        except TimeoutError:
            message = f"The body did not arrive within {limits.body_seconds:g} seconds."
            raise RefusalError(408, message, {"Connection": "close"}) from None

    async def _read(self, receive: Receive) -> bytes:
        chunks = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            if chunk := message.get("body", b""):
                if self.held + len(chunk) > self._limits.max_body_bytes:
                    raise _too_large(None, self._limits.max_body_bytes)
                self._ledger.add(len(chunk))
                self.held += len(chunk)
                chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def free(self) -> None:
        """Count it no longer."""
        self._ledger.free(self.held)
        self.held = 0


def _too_large(declared: int | None, most: int) -> RefusalError:
    came = f"declares {declared:,} bytes" if declared is not None else f"is larger than {most:,} bytes"
    return RefusalError(413, f"The body {came}; at most {most:,} are taken. Send fewer or smaller images.")


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
        tokens, at = self._buckets.pop(client, (self._most, now))
        tokens = min(self._most, tokens + (now - at) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return wait
