"""What the protocols share: finding the model, reading the body, waiting for answers.

Knows the parts of the server, and no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from tellapart.bundles.predictor import abstains
from tellapart.memory import give_back
from tellapart.monitoring.ab_test import SPLIT
from tellapart.serving.batching import Batcher, Call, DeadlineError, QueueFullError, Worker, step_back
from tellapart.serving.errors import ApiError, busy
from tellapart.serving.json_body import parse_json, parsing_bytes, utf8
from tellapart.serving.limits import Body, ClientLeftError, Receive
from tellapart.serving.middleware import RequestContext, context_of
from tellapart.serving.model_version import Answer, ExplainRequest, ExplainResult, Image, ModelVersion, Shadow
from tellapart.serving.models import Models, UnknownModelError
from tellapart.serving.options import ServerOptions
from tellapart.serving.prediction_log import PredictionLog
from tellapart.serving.telemetry import Telemetry

_PATIENCE_SECONDS = 0.01
"""Answers mostly come sooner; only then is it worth a task to notice that the client has left."""
_SMALL_JSON = 64 * 1024
_SHADOW_BYTES = 64 * 1024 * 1024
"""Of images that wait for a challenger; beyond, it does not see them."""

T = TypeVar("T")


@dataclass
class Service:
    """The parts of a server.

    Attributes:
        options: what it was told.
        models: what it serves.
        batcher: that works on predictions.
        large: that decodes pictures too large for it, one at a time.
        heat_maps: that works on explanations: a prediction never waits for one.
        shadows: that has a challenger see what the champion has answered, when there is nothing else to do.
        telemetry: what it counts.
        pages: what is answered as it is, by path.
        prediction_log: of what was answered; None: nothing is kept.
        draining: whether it was told to stop.
    """

    options: ServerOptions
    models: Models
    batcher: Batcher
    large: Batcher
    heat_maps: Batcher
    shadows: Batcher
    telemetry: Telemetry
    pages: Mapping[str, Response]
    prediction_log: PredictionLog | None = None
    draining: bool = False
    _shadow_bytes: int = 0
    _parser: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "parse", initializer=step_back))

    def find(
        self, request: Request, name: str | None, version: str | None, *, to_predict: bool = False
    ) -> ModelVersion:
        """Return a version of a model, and note that the request is about it.

        Args:
            request: its context is told.
            name: None: the first model.
            version: None: the champion or the last one; where it is to predict and is in an A/B test as champion, the
                one that is the subject's.
            to_predict: whether images are to be classified.

        Raises:
            ApiError: there is none (404).
        """
        try:
            served = self.models.find(name, version)
        except UnknownModelError as error:
            raise ApiError(404, str(error)) from None
        context = context_of(request)
        # Whoever names a version gets it, and is no part of a test.
        if to_predict and version is None and (tested := self.models.challenger(served)) is not None:
            # Also for those whom the champion answers: they are the other side of the comparison.
            context.test, challenger = tested
            if context.test.takes(context.subject):
                if context.test.mode == SPLIT:
                    served = challenger
                else:
                    context.shadowed_by = challenger
        context.counts, context.model = served.counts, (served.name, served.version)
        return served

    def find_in_path(self, request: Request, *, to_predict: bool = False) -> ModelVersion:
        """Return the version that the path of a request names, as `find` does; its number may be left out.

        Raises:
            ApiError: there is none (404).
        """
        path = request.path_params
        return self.find(request, path["model"], path.get("version"), to_predict=to_predict)

    @property
    def waiting(self) -> int:
        """Images that no thread has taken yet."""
        return self.batcher.waiting + self.large.waiting + self.heat_maps.waiting

    def start(self) -> None:
        """Start the threads; in the event loop that they answer to."""
        for batcher in (self.batcher, self.large, self.heat_maps, self.shadows):
            batcher.start()
        if self.prediction_log is not None:
            self.prediction_log.start()

    def stop(self) -> None:
        """Let the threads finish what was accepted, for a limited time."""
        # This blocks the event loop, which is fine here: uvicorn has already waited for the requests.
        for batcher in (self.large, self.batcher, self.heat_maps, self.shadows):
            batcher.stop()
        self._parser.shutdown(wait=False, cancel_futures=True)
        # After the batchers: what they have just answered is to be kept too.
        if self.prediction_log is not None:
            self.prediction_log.close()

    async def _ask(
        self, request: Request, batcher: Batcher, worker: Worker, items: Sequence[Any], caller: object = None
    ) -> Call:
        """Have items worked on and wait for the answers; `caller` as `Batcher.submit` takes it.

        Raises:
            ApiError: the queue is full (503) or the deadline passed (504).
            ClientLeftError: nobody waits any more.
        """
        try:
            call = batcher.submit(worker, items, caller)
        except QueueFullError as error:
            raise busy(f"The server is busy: {error}. Try again in a second.") from None
        # Set here and below, not when somebody asks for it: with several processes only one of them is asked, and the
        # others' last values are added to its own.
        self.telemetry.queue.set(self.waiting)
        if call.future.done() and not call.future.exception():  # it was worked on at once
            return call
        watch = _Watch(batcher, call, request.receive)
        try:
            await call.future
        except DeadlineError as error:
            raise ApiError(504, f"The server is slow: {error}. Send fewer images at once, or try later.") from None
        except asyncio.CancelledError:
            # Either the watch has abandoned the call, or the request itself was cancelled because the server ends; then
            # the call still holds places in the queue.
            if watch.left:
                raise ClientLeftError from None
            batcher.abandon(call)
            raise
        finally:
            watch.end()
            self.telemetry.queue.set(self.waiting)
        return call

    async def predict(
        self, request: Request, served: ModelVersion, images: Sequence[Image]
    ) -> tuple[list[Answer], Call]:
        """Have images named, and count what came of them."""
        try:
            return await self._predict(request, served, images)
        except (asyncio.CancelledError, ClientLeftError):
            raise
        except Exception as error:
            # A version that fails more often than the other one loses its A/B test; too much to do is nobody's failure.
            is_busy = isinstance(error, ApiError) and error.status == 503
            if not is_busy and self.prediction_log is not None and context_of(request).test is not None:
                self.prediction_log.record_failure(context_of(request), served, len(images))
            raise

    async def _predict(
        self, request: Request, served: ModelVersion, images: Sequence[Image]
    ) -> tuple[list[Answer], Call]:
        context_of(request).images = len(images)
        items: list[Any] = list(images)
        # Large pictures are decoded first, in their own thread; then all images go through the network in one call, in
        # the order of the request.
        large = [number for number, image in enumerate(images) if served.is_large(image)]
        if large:
            decoded = await self._ask(request, self.large, served.large, [images[number] for number in large])
            for number, picture in zip(large, decoded.answers, strict=True):
                items[number] = picture
        caller = _connection(request) if len(items) == 1 and served.is_quick(items[0]) else None
        call = await self._ask(request, self.batcher, served, items, caller)
        answers: list[Answer] = call.answers
        # Counted here, because every protocol goes through this function.
        readable = [answer.row for answer in answers if answer.row is not None]
        served.counts.images.inc(len(readable))
        if len(readable) < len(answers):
            served.counts.unreadable.inc(len(answers) - len(readable))
        if abstained := sum(abstains(served.bundle, row) for row in readable):
            served.counts.abstentions.inc(abstained)
        if unknown := sum(answer.unknown for answer in answers):
            served.counts.unknown.inc(unknown)
        if self.prediction_log is not None:
            self.prediction_log.record(context_of(request), served, images, answers)
            # With a store only: nobody else would learn what a challenger says.
            self._shadow(context_of(request), self.prediction_log, images)
        return answers, call

    def _shadow(self, context: RequestContext, prediction_log: PredictionLog, images: Sequence[Image]) -> None:
        """Have the challenger see the same images when nobody waits; never waits and never fails."""
        test, challenger = context.test, context.shadowed_by
        if test is None or challenger is None:
            return
        # A large picture would take the memory of one that somebody waits for.
        numbers = [number for number, image in enumerate(images) if not challenger.is_large(image)]
        # The request is answered, so its bytes are in nobody's budget any more.
        size = sum(_num_bytes(images[number].data) for number in numbers)
        try:
            if self._shadow_bytes + size > _SHADOW_BYTES:
                raise QueueFullError
            call = self.shadows.submit(Shadow(challenger), [images[number] for number in numbers])
        except QueueFullError:
            self.telemetry.shadows.labels("dropped").inc(len(numbers))
            return
        self._shadow_bytes += size
        ids = [f"{context.id}.{number}" for number in numbers]

        def keep(future: asyncio.Future[list[Any]]) -> None:
            # In the event loop, as where it is added: the number needs no lock.
            self._shadow_bytes -= size
            if future.cancelled() or future.exception() is not None:
                self.telemetry.shadows.labels("dropped").inc(len(ids))
                return
            self.telemetry.shadows.labels("predicted").inc(len(ids))
            prediction_log.record_shadow(test, challenger, ids, future.result())

        call.future.add_done_callback(keep)

    async def predict_all(
        self, request: Request, served: ModelVersion, images: Sequence[Image], where: str
    ) -> NDArray[np.float32]:
        """Return the probabilities of images, (num_images, num_classes); `where` they stand in the request.

        Raises:
            ApiError: one cannot be read (422).
        """
        answers, _ = await self.predict(request, served, images)
        rows = [answer.row for answer in answers if answer.row is not None]
        for number, answer in enumerate(answers):
            if answer.row is None:
                raise ApiError(422, f"{where}[{number}] {answer.error}.")
        return np.stack(rows)

    async def explain(self, request: Request, served: ModelVersion, question: ExplainRequest) -> ExplainResult:
        """Have one image explained by a version that can."""
        assert served.explainer is not None
        context_of(request).images = 1
        call = await self._ask(request, self.heat_maps, served.explainer, [question])
        explanation: ExplainResult = call.answers[0]
        return explanation

    async def body(self, request: Request) -> Body:
        """Read the body of a request, within the limits, and return it."""
        context = context_of(request)
        await context.body.read(context.headers, request.receive)
        return context.body

    async def parsed(self, body: Body, convert: Callable[[Any, memoryview], T], json_bytes: int | None = None) -> T:
        """Turn a JSON body into what it holds; a large one in a thread, one at a time.

        The memory that this can take is counted until it is done, whether or not the client still waits.

        Args:
            body: that was read; it is taken.
            convert: (the JSON's value, the bytes behind the JSON) → what is returned, which is no larger than the body.
            json_bytes: how much of the body is JSON; None: all.

        Raises:
            ApiError: it is not valid JSON (400), takes more memory than there is (413, 503), or what `convert`
                raises.
        """
        # Parsing a small body takes less time than handing it to a thread.
        if len(body) <= _SMALL_JSON:
            return _parse(body, convert, json_bytes)
        most = self.options.limits.max_held_bytes
        if json_bytes is None:  # its text takes the place of the body
            size = parsing_bytes(body.data, most)
        else:  # the body stays until what is behind the JSON has been copied
            size = len(body) + parsing_bytes(body.data[:json_bytes], most)
        body.add(size)
        # Not a semaphore around asyncio.to_thread: a caller that is cancelled would let the next one in too early.
        work = self._parser.submit(_parse, body, convert, json_bytes)
        self._parser.submit(give_back)  # by then the parsed lists are gone; their pages go back to the system
        body.busy_until(work)
        try:
            return await asyncio.wrap_future(work)
        finally:
            # The work of a cancelled request goes on; `Body.end` frees the bytes when it is done.
            if work.done():
                body.free(size)


def _parse(body: Body, convert: Callable[[Any, memoryview], T], json_bytes: int | None) -> T:
    # No local name for the body: it would keep the body in memory while its text is parsed.
    if json_bytes is None:
        return convert(parse_json(utf8(body.take())), memoryview(b""))
    data = memoryview(body.take())
    return convert(parse_json(utf8(data[:json_bytes])), data[json_bytes:])


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


def _connection(request: Request) -> tuple[str, int] | None:
    """Return address and port of the connection, which has one request at a time; None: nobody knows them."""
    client = request.client
    # uvicorn puts the address that a proxy tells in their place, with the port 0: many connections may share it.
    return (client.host, client.port) if client is not None and client.port else None


def _num_bytes(data: bytes | NDArray[np.uint8]) -> int:
    """Return what an image takes as it came; the length of an array is its height."""
    return len(data) if isinstance(data, bytes) else int(data.nbytes)
