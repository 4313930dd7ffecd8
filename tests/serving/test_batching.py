"""The batcher with a worker whose every step the test decides."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from starlette.requests import Request

from tellapart.serving import batching
from tellapart.serving.batching import Batcher, DeadlineError, QueueFullError, Seconds
from tellapart.serving.model_version import Image
from tellapart.serving.options import BatchOptions, ServerOptions
from tellapart.serving.service import _SHADOW_BYTES, Service, _connection
from tellapart.serving.telemetry import Telemetry


class Doubler:
    """Doubles numbers; notes every batch; waits where it is told to."""

    most = 1000

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.alone: list[bool] = []
        self.seconds: list[Seconds] = []
        self.gate = threading.Event()
        self.gate.set()

    def prepare(self, item: int) -> int:
        return item

    def run(self, prepared: list[int], thread: int, alone: bool) -> list[int]:
        self.batches.append(prepared)
        self.alone.append(alone)
        assert self.gate.wait(10)
        if 13 in prepared:
            raise ArithmeticError("thirteen")
        return [2 * each for each in prepared]

    def done(self, seconds: Seconds, num_items: int) -> None:
        self.seconds.append(seconds)


def with_batcher(
    work: Callable[[Batcher, Any], Coroutine[Any, Any, None]], worker: Doubler | None = None, **options: Any
) -> Doubler:
    worker = worker or Doubler()

    async def main() -> None:
        batcher = Batcher(BatchOptions(**({"threads": 1} | options)))
        batcher.start()
        try:
            await work(batcher, worker)
        finally:
            worker.gate.set()
            batcher.stop()

    asyncio.run(main())
    return worker


async def held(batcher: Batcher, worker: Doubler) -> asyncio.Future:
    """Keep the only thread busy with the number 0 until the gate opens."""
    worker.gate.clear()
    before = len(worker.batches)
    first = batcher.submit(worker, [0]).future
    while len(worker.batches) == before:
        await asyncio.sleep(0.001)
    return first


def test_what_waits_is_worked_on_together_and_answers_find_their_callers():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        first = await held(batcher, worker)
        calls = [batcher.submit(worker, [number, 100 + number]) for number in range(1, 9)]
        assert batcher.waiting == 16
        worker.gate.set()
        assert await first == [0]
        assert [await call.future for call in calls] == [[2 * n, 200 + 2 * n] for n in range(1, 9)]
        assert batcher.waiting == 0

    worker = with_batcher(work, max_batch_size=10)
    assert [len(batch) for batch in worker.batches] == [1, 10, 6]
    assert worker.alone == [True, False, True]


def test_two_free_threads_share_what_came_at_once():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        call = batcher.submit(worker, list(range(20, 28)))
        assert await call.future == [2 * n for n in range(20, 28)]
        assert call.queue >= 0
        assert call.network > 0

    worker = with_batcher(work, threads=2)
    assert max(len(batch) for batch in worker.batches) <= 4


def test_a_free_thread_waits_for_more_only_when_told():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        one = batcher.submit(worker, [1])
        await asyncio.sleep(0.02)
        two = batcher.submit(worker, [2])
        await asyncio.gather(one.future, two.future)

    assert with_batcher(work).batches == [[1], [2]]
    assert with_batcher(work, max_wait_ms=2000, max_batch_size=2).batches == [[1, 2]]


def test_a_queue_that_takes_too_long_refuses_though_it_has_places():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        first = await held(batcher, worker)
        await asyncio.sleep(0.1)  # an item takes 0.1 s at least
        worker.gate.set()
        await first
        first = await held(batcher, worker)
        taken = [batcher.submit(worker, [number]) for number in (1, 2, 3)]  # 0, 0.1 and 0.2 s to wait
        with pytest.raises(QueueFullError, match=r"3 images wait already, for about [3-9]\d\d ms"):
            batcher.submit(worker, [4])
        worker.gate.set()
        assert [await call.future for call in taken] == [[2], [4], [6]]
        for number in range(60):  # quick ones: the pace is forgotten
            await batcher.submit(worker, [number + 20]).future
        await held(batcher, worker)
        for number in range(20):
            batcher.submit(worker, [number + 20])

    with_batcher(work, max_queue_ms=250, max_batch_size=1)


def test_a_full_queue_refuses_at_once_and_a_client_that_leaves_frees_its_place():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        first = await held(batcher, worker)
        waiting = [batcher.submit(worker, [number]) for number in (1, 2, 3)]
        began = time.perf_counter()
        with pytest.raises(QueueFullError, match="3 images wait already"):
            batcher.submit(worker, [4])
        assert time.perf_counter() - began < 0.01
        batcher.abandon(waiting[1])
        last = batcher.submit(worker, [5])
        worker.gate.set()
        assert await asyncio.gather(first, waiting[0].future, waiting[2].future, last.future) == [[0], [2], [6], [10]]
        assert waiting[1].future.cancelled()

    worker = with_batcher(work, max_queue=3)
    assert not any(2 in batch for batch in worker.batches), "nothing is done for whom has left"


def test_a_call_larger_than_the_queue_is_worked_on_in_pieces():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        assert await batcher.submit(worker, list(range(100, 150))).future == list(range(200, 300, 2))

    worker = with_batcher(work, max_queue=8, max_batch_size=16)
    assert [len(batch) for batch in worker.batches] == [16, 16, 16, 2]


def test_after_the_deadline_there_is_an_error_and_no_work():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        first = await held(batcher, worker)
        late = batcher.submit(worker, [7])
        for call in (first, late.future):
            with pytest.raises(DeadlineError, match="no answer within 50 ms"):
                await call
        assert batcher.waiting == 0
        worker.gate.set()
        assert await batcher.submit(worker, [8]).future == [16]

    assert with_batcher(work, deadline_ms=50).batches == [[0], [8]]


def test_a_failing_batch_fails_its_callers_and_nobody_else(caplog: pytest.LogCaptureFixture):
    async def work(batcher: Batcher, worker: Doubler) -> None:
        with pytest.raises(ArithmeticError, match="thirteen"):
            await batcher.submit(worker, [13, 14, 15]).future
        assert batcher.waiting == 0
        assert await batcher.submit(worker, [4]).future == [8]

    with_batcher(work, max_batch_size=2)
    assert "A batch of 2 failed" in caplog.text


def test_different_workers_do_not_share_a_run():
    async def work(batcher: Batcher, worker: Doubler) -> None:
        other = Doubler()
        first = await held(batcher, worker)
        calls = [batcher.submit(each, [number]) for number, each in enumerate((worker, other, worker, other), 1)]
        worker.gate.set()
        assert await asyncio.gather(first, *(call.future for call in calls)) == [[0], [2], [4], [6], [8]]
        assert other.batches == [[2, 4]]

    assert with_batcher(work).batches == [[0], [1, 3]]


def test_stopping_finishes_what_was_accepted():
    answers: list[list[int]] = []

    async def main() -> None:
        batcher, worker = Batcher(BatchOptions(threads=2, max_batch_size=2)), Doubler()
        batcher.start()
        calls = [batcher.submit(worker, [number]) for number in range(20, 60)]
        batcher.stop()
        answers.extend([await call.future for call in calls])

    asyncio.run(main())
    assert answers == [[2 * number] for number in range(20, 60)]


def test_shadows_take_so_many_bytes_and_no_more_however_the_images_come():
    """Images of tensor protocols are arrays, whose length is their height."""
    futures: list[asyncio.Future[list[Any]]] = []

    def submit(worker: object, items: list[Image]) -> SimpleNamespace:
        futures.append(asyncio.get_running_loop().create_future())
        return SimpleNamespace(future=futures[-1])

    async def work() -> None:
        log, telemetry = Mock(), Telemetry()
        service = Service(ServerOptions(()), Mock(), Mock(), Mock(), Mock(), Mock(submit=submit), telemetry, {}, log)
        context = SimpleNamespace(id="r", test=Mock(), shadowed_by=Mock(is_large=lambda image: False))
        half = _SHADOW_BYTES // 2 // 3
        for data in (np.zeros((1, half, 3), np.uint8), bytes(3 * half), b"one too many"):
            service._shadow(context, log, [Image(data)])
        assert len(futures) == 2
        futures[0].set_result(["an answer"])
        await asyncio.sleep(0)
        service._shadow(context, log, [Image(b"there is room again")])
        assert len(futures) == 3
        assert b'tellapart_shadow_images_total{outcome="dropped"} 1.0' in telemetry.expose()
        log.record_shadow.assert_called_once_with(context.test, context.shadowed_by, ["r.0"], ["an answer"])

    asyncio.run(work())


class Noting(Doubler):
    """Notes which thread did the work, and may take its time."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.seconds_to_prepare = 0.0

    def prepare(self, item: int) -> int:
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds_to_prepare)
        return item


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer times: beside other tests a thread may be kept waiting for as long as the real ones."""
    monkeypatch.setattr(batching, "_QUICK_SECONDS", 0.2)
    monkeypatch.setattr(batching, "_SOON_SECONDS", 0.2)


async def ask(batcher: Batcher, worker: Noting, item: int, caller: object) -> bool:
    """Have a number doubled; return whether the event loop did it."""
    assert await batcher.submit(worker, [item], caller).future == [2 * item]
    return worker.threads[-1] == threading.get_ident()


def test_a_lone_callers_item_is_worked_on_in_the_event_loop_once_it_is_known_to_be_quick(patient: None):
    async def work(batcher: Batcher, worker: Noting) -> None:
        assert not await ask(batcher, worker, 1, "a"), "nobody knows yet how long it takes"
        assert [await ask(batcher, worker, number, "a") for number in range(2, 12)] == [True] * 10
        assert not await ask(batcher, worker, 1, None), "a call that names no caller"
        with pytest.raises(ArithmeticError):
            await batcher.submit(worker, [13], "a").future
        assert worker.threads[-1] == threading.get_ident()
        assert await ask(batcher, worker, 3, "a"), "a failure leaves the batcher as it was"

    with_batcher(work, Noting(), threads=2)


def test_several_callers_at_once_get_threads_for_a_while(patient: None):
    async def work(batcher: Batcher, worker: Noting) -> None:
        await ask(batcher, worker, 1, "a")
        assert await ask(batcher, worker, 2, "a")
        assert not await ask(batcher, worker, 3, "b"), "it came while the event loop was busy with the other"
        assert not await ask(batcher, worker, 4, "b")
        await asyncio.sleep(1.1)
        assert await ask(batcher, worker, 5, "b")
        await asyncio.sleep(0.3)
        assert await ask(batcher, worker, 6, "a"), "another caller, but not at once"
        calls = [batcher.submit(worker, [number], "a") for number in (1, 2)]
        assert [await call.future for call in calls] == [[2], [4]]
        await asyncio.sleep(1.1)
        # A thread is busy with what has no caller: the processors are not the caller's alone.
        worker.seconds_to_prepare = 0.05
        other = batcher.submit(worker, [7])
        await asyncio.sleep(0.01)
        assert not await ask(batcher, worker, 8, "a")
        assert await other.future == [14]

    with_batcher(work, Noting(), threads=2)


def test_what_is_slow_never_holds_up_the_event_loop():
    async def work(batcher: Batcher, worker: Noting) -> None:
        worker.seconds_to_prepare = 0.02
        assert [await ask(batcher, worker, number, "a") for number in range(3)] == [False] * 3

    with_batcher(work, Noting(), threads=1)


def test_an_answer_of_the_event_loop_that_is_late_is_an_error_too(patient: None):
    async def work(batcher: Batcher, worker: Noting) -> None:
        await ask(batcher, worker, 1, "a")
        worker.seconds_to_prepare = 1.2
        with pytest.raises(DeadlineError):
            await batcher.submit(worker, [2], "a").future
        assert worker.threads[-1] == threading.get_ident()

    with_batcher(work, Noting(), threads=1, deadline_ms=1000.0)


@pytest.mark.parametrize(
    ("client", "caller"),
    [(("10.0.0.1", 4711), ("10.0.0.1", 4711)), (("10.0.0.1", 0), None), (None, None)],
    ids=["connection", "told by a proxy", "socket file"],
)
def test_a_caller_is_a_connection(client: tuple[str, int] | None, caller: tuple[str, int] | None):
    assert _connection(Request({"type": "http", "client": client})) == caller
