"""What the protocols share: finding the model, reading the body, waiting for answers.

Knows the parts of the server, and no protocol.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from tellapart.serving.batching import Batcher, Call, DeadlineError, QueueFullError, Worker
from tellapart.serving.gate import Visit, visit_of
from tellapart.serving.limits import ClientLeftError, Receive
from tellapart.serving.models import Models, UnknownModelError
from tellapart.serving.options import ServerOptions
from tellapart.serving.refusals import RefusalError, busy
from tellapart.serving.served import Answer, Image, Served
from tellapart.serving.telemetry import Telemetry

_PATIENCE_SECONDS = 0.01
"""Answers mostly come sooner; only then is it worth a task to notice that the client has left."""
_SMALL_JSON = 64 * 1024


@dataclass
class Service:
    """The parts of a server.

    Attributes:
        options: what it was told.
        models: what it serves.
        batcher: that works.
        telemetry: what it counts.
        draining: whether it was told to stop.
    """

    options: ServerOptions
    models: Models
    batcher: Batcher
    telemetry: Telemetry
    draining: bool = False
    _one_large_json: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    def find(self, visit: Visit, name: str | None, version: str | None) -> Served:
        """Return the version that a request names, and note it.

        Raises:
            RefusalError: there is none (404).
        """
        try:
            served = self.models.find(name, version)
        except UnknownModelError as error:
            raise RefusalError(404, str(error)) from None
        visit.counts, visit.model = served.counts, (served.name, served.version)
        return served

    async def ask(self, request: Request, worker: Worker, items: Sequence[Any]) -> Call:
        """Have items worked on and wait for the answers.

        Raises:
            RefusalError: the queue is full (503) or the deadline passed (504).
            ClientLeftError: nobody waits any more.
        """
        visit_of(request.scope).images = len(items)
        try:
            call = self.batcher.submit(worker, items)
        except QueueFullError as error:
            raise busy(f"The server is busy: {error}. Try again in a second.") from None
        watch = _Watch(self.batcher, call, request.receive)
        try:
            await call.future
        except DeadlineError as error:
            raise RefusalError(504, f"The server is slow: {error}. Send fewer images at once, or try later.") from None
        except asyncio.CancelledError:
            if watch.left:
                raise ClientLeftError from None
            self.batcher.abandon(call)
            raise
        finally:
            watch.end()
        return call

    async def predict(self, request: Request, served: Served, images: Sequence[Image]) -> tuple[list[Answer], Call]:
        """Have images named, and count what came of them."""
        call = await self.ask(request, served, images)
        answers: list[Answer] = call.answers
        readable = sum(answer.row is not None for answer in answers)
        served.counts.images.inc(readable)
        if readable < len(answers):
            served.counts.unreadable.inc(len(answers) - readable)
        return answers, call

    async def body(self, request: Request) -> bytes:
        """Return the body of a request, within the limits."""
        visit = visit_of(request.scope)
        return await visit.body.read(visit.headers, request.receive)

    async def json_of(self, data: bytes) -> Any:
        """Parse JSON; what is large in a thread, one at a time: it takes up to thirty times its size in memory.

        Raises:
            RefusalError: it is not valid (400).
        """
        if len(data) <= _SMALL_JSON:
            return parse_json(data)
        return await self.aside(parse_json, data)

    async def aside(self, work: Any, *arguments: Any) -> Any:
        """Do what would hold up other requests in a thread, one at a time."""
        async with self._one_large_json:
            return await asyncio.to_thread(work, *arguments)


class _Watch:
    """Notices that a client leaves while its call is worked on, and abandons the call."""

    __slots__ = ("_batcher", "_call", "_receive", "_task", "_timer", "left")

    def __init__(self, batcher: Batcher, call: Call, receive: Receive) -> None:
        self._batcher, self._call, self._receive = batcher, call, receive
        self._task: asyncio.Task[None] | None = None
        self.left = False
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        message = await self._receive()  # the body is read: nothing else can come
        if message["type"] == "http.disconnect" and not self._call.future.done():
            self.left = True
            self._batcher.abandon(self._call)

    def end(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


def parse_json(data: bytes) -> Any:
    """Parse strict JSON.

    Raises:
        RefusalError: it is not valid, nested too deeply, or holds NaN or infinity.
    """
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise RefusalError(400, f"The body is not valid JSON: {what}.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def query_of(request: Request, known: Sequence[str]) -> dict[str, str]:
    """Return the parameters after the "?".

    Raises:
        RefusalError: one is not known or comes twice (400).
    """
    query = request.scope["query_string"]
    return dict(_parsed(query, tuple(known))) if query else {}


@lru_cache(256)
def _parsed(query: bytes, known: tuple[str, ...]) -> dict[str, str]:
    """Parse a query string; the same ones come again and again."""
    values: dict[str, str] = {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise RefusalError(400, f"The parameters cannot be read: {error}.") from None
    for name, value in pairs:
        if name not in known or name in values:
            state = "comes twice" if name in values else "is not known"
            raise RefusalError(400, f"The parameter {name!r:.80} {state}. Expected any of: {', '.join(known)}.")
        values[name] = value
    return values


def since(visit: Visit) -> float:
    """Return the seconds since a request arrived."""
    return time.perf_counter() - visit.began
