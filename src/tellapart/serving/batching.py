"""Dynamic batching: what many callers ask for at the same time is worked on together.

Owns threads, a bounded queue and deadlines. Knows nothing about HTTP, bundles or images: what is done with an item is
its worker's business.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from tellapart.serving.options import BatchOptions

logger = logging.getLogger(__name__)

_STOP_SECONDS = 1.0
_NICENESS = 10  # about a tenth of the scheduler's weight of a normal thread
_NEWS = 0.1
"""Weight of a new batch in the pace."""
_QUICK_SECONDS = 0.01
"""An item that takes no longer, at the pace of the last ones, may be worked on in the event loop, which it blocks."""
_SOON_SECONDS = 0.002
"""Another caller's item that comes so soon after one that blocked the event loop has probably waited for it."""
_CROWD_SECONDS = 1.0
"""Two callers at once: for so long nothing more is worked on in the event loop."""


class Worker(Protocol):
    """What is done with items. Items of calls that share a worker may share a batch.

    Attributes:
        most: items in a batch beyond which it is no faster, only later.
    """

    @property
    def most(self) -> int: ...  # noqa: D102

    def prepare(self, item: Any) -> Any:
        """Make an item ready; for images, decode it. Runs in any thread."""

    def run(self, prepared: list[Any], thread: int, alone: bool) -> list[Any]:
        """Return an answer for each; `alone`: no other thread has work, all processors may be used."""

    def done(self, seconds: Seconds, num_items: int) -> None:
        """Hear of a batch that is done."""


class QueueFullError(Exception):
    """As many items wait as may, or the wait is as long as it may be."""


class DeadlineError(Exception):
    """The answer would come too late."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long a batch took: until a thread took it, to make it ready, and in the network."""

    queue: float
    decode: float
    network: float


class Call:
    """What one caller asked for: items, and a future for their answers.

    Attributes:
        answers: in the order of the items.
        queue: seconds until the first item was taken.
        decode: seconds that making its items ready took.
        network: seconds of the batches that its items were in.
        pace: seconds that each item was expected to take when it came.
    """

    __slots__ = (
        "answers", "arrived", "deadline", "decode", "future", "items", "left", "network", "pace", "queue", "timer",
        "worker",
    )  # fmt: skip

    # Whoever takes an item from the queue, or gives it up, sets it to None under the batcher's lock.
    def __init__(
        self, worker: Worker, items: Sequence[Any], future: asyncio.Future[list[Any]], deadline: float
    ) -> None:
        self.worker = worker
        self.items: list[Any] = list(items)
        self.answers: list[Any] = [None] * len(self.items)
        self.future = future
        self.arrived = time.perf_counter()
        self.deadline = self.arrived + deadline
        self.left = len(self.items)
        self.pace = 0.0
        self.queue = -1.0
        self.decode = self.network = 0.0
        self.timer: asyncio.TimerHandle | None = None


Entry = tuple[Call, int]


class Batcher:
    """Threads that work on calls; made and used in one event loop.

    Args:
        options: how many threads, how many items.
        name: of the threads.
        in_background: whether they give way to other threads.

    Example:
        >>> batcher = Batcher(BatchOptions())
        >>> batcher.start()  # inside the event loop
        >>> call = batcher.submit(worker, [first, second])
        >>> answers = await call.future
    """

    def __init__(self, options: BatchOptions, name: str = "batch", *, in_background: bool = False) -> None:
        self.options = options
        self._name, self._in_background = name, in_background
        self.num_threads = options.num_threads
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._waiting = 0
        self._busy = 0  # threads that work on a batch
        # Weak keys: the pace of a replaced version must not keep its networks in memory.
        self._paces: WeakKeyDictionary[Worker, float] = WeakKeyDictionary()  # seconds that a thread takes for an item
        self._ahead = 0.0  # seconds of work for one thread in what waits
        # Guards the counts above and the items of all calls. It is never held while a worker runs, or threads would
        # wait for each other's networks. Futures need no lock: only the event loop touches them.
        self._lock = threading.Lock()
        # Only the event loop touches these three.
        self._last_caller: object = None
        self._freed = self._crowded = -math.inf  # when the event loop was last free again; when two callers were seen
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Items that no thread has taken yet and that somebody still wants."""
        return self._waiting

    def start(self) -> None:
        """Start the threads; their answers go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for number in range(self.num_threads):
            thread = threading.Thread(target=self._serve, args=(number,), name=f"{self._name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Let the threads finish what is in the queue, and end; give up on one that does not in a call's time.

        They are daemons: one that hangs in a library does not keep the process.
        """
        # One end mark for each thread, behind everything that was accepted.
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + self.options.deadline_ms / 1000 + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                logger.error("The thread %s did not end; it is left alone.", thread.name)
        self._threads.clear()

    def submit(self, worker: Worker, items: Sequence[Any], caller: object = None) -> Call:
        """Put items into the queue.

        A call with more items than may wait is taken when nothing else waits: it is worked on in pieces. A single item
        of a lone caller is worked on at once, in the event loop: to wake a thread for it, and the event loop for its
        answer, took 0.1 to 0.9 ms of 4 (docs/experiments.md, 2026-11-29).

        Args:
            worker: what is done with them.
            items: what it is done with.
            caller: equal for calls of one client, which asks for one thing at a time; None: a thread does the work.

        Raises:
            QueueFullError: there is no place for them.
        """
        loop = self._loop
        if loop is None:
            raise RuntimeError("The batcher was not started.")
        with self._lock:
            # With an empty queue any call is accepted: one larger than the queue would be refused for ever otherwise.
            if self._waiting and (self._waiting + len(items) > self.options.max_queue or self._is_slow()):
                raise QueueFullError(f"{self._waiting} images wait already, for about {1000 * self._wait():.0f} ms")
            call = Call(worker, items, loop.create_future(), self.options.deadline_ms / 1000)
            # Stored in the call, because the pace changes: exactly what is added to the work ahead must come off again.
            call.pace = self._paces.get(worker, 0.0)
            is_lone = caller is not None and self._is_lone(caller, call.arrived)
            here = is_lone and len(items) == 1 and 0 < call.pace < _QUICK_SECONDS and not self.options.max_wait_ms
            # Counted before the queue has it: a thread that takes it at once would else count below zero.
            if here:
                self._busy += 1
            else:
                self._enter(call, len(items))
        if here:
            self._work_here(call)
            return call
        call.timer = loop.call_later(self.options.deadline_ms / 1000, self._expire, call)
        # One entry per item, so that free threads can share a call with many items.
        for index in range(len(call.items)):
            self._queue.put((call, index))
        return call

    def _wait(self) -> float:
        """Return the seconds until what waits now is done, at the pace of the last batches."""
        return self._ahead / self.num_threads

    def _is_slow(self) -> bool:
        return 0 < self.options.max_queue_ms < 1000 * self._wait()

    def _enter(self, call: Call, num_items: int) -> None:
        """Count items that wait, or with a negative number that no longer do; under the lock."""
        # Reset to 0 whenever nothing waits: the sum of floats would drift otherwise.
        self._waiting += num_items
        self._ahead = self._ahead + num_items * call.pace if self._waiting else 0.0

    def abandon(self, call: Call) -> None:
        """Forget a call whose caller has left: its places are free at once, and nothing more is done for it."""
        self._give_up(call)
        call.future.cancel()

    def _expire(self, call: Call) -> None:
        if not call.future.done():
            self._give_up(call)
            call.future.set_exception(DeadlineError(f"no answer within {self.options.deadline_ms:g} ms"))

    def _give_up(self, call: Call) -> None:
        if call.timer is not None:
            call.timer.cancel()
        with self._lock:
            for index, item in enumerate(call.items):
                # None: a thread has taken it, or it was given up. Whoever sets it frees the place, so it is freed once.
                if item is not None:
                    call.items[index] = None
                    self._enter(call, -1)

    def _serve(self, thread: int) -> None:
        """Work until the end of the queue; what goes wrong costs one batch."""
        if self._in_background:
            step_back()
        while (first := self._queue.get()) is not None:
            # The end mark may come in the middle of a batch: the entries before it are still answered.
            entries, is_end = self._drain(first)
            if taken := self._take(entries):
                self._work_on(taken, thread)
            if is_end:
                return

    def _drain(self, first: Entry) -> tuple[list[Entry], bool]:
        """Return what to do together, and whether the end was reached."""
        entries, options = [first], self.options
        # The limit of the first entry's worker; `_work_on` separates entries of other workers.
        most = min(options.max_batch_size, first[0].worker.most)
        until = time.perf_counter() + options.max_wait_ms / 1000
        while len(entries) < most:
            # Each thread takes its share: while one answers its callers, another has something to do.
            share = (self._queue.qsize() + len(entries)) / self.num_threads
            if not options.max_wait_ms and len(entries) >= share:
                break
            try:
                seconds_left = until - time.perf_counter()
                entry = self._queue.get(timeout=seconds_left) if seconds_left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if entry is None:
                return entries, True
            entries.append(entry)
        return entries, False

    def _take(self, entries: list[Entry]) -> list[tuple[Call, int, Any]]:
        """Free the places of these entries; leave out those that nobody waits for."""
        now, taken = time.perf_counter(), []
        with self._lock:
            for call, index in entries:
                item = call.items[index]
                if item is None:
                    continue
                call.items[index] = None
                self._enter(call, -1)
                # Do no work for a call that is past its deadline; its timer tells the caller.
                if now < call.deadline:
                    taken.append((call, index, item))
                    if call.queue < 0:
                        call.queue = now - call.arrived
            # Under the same lock as the items: two busy threads must not both believe that they are alone.
            self._busy += bool(taken)
        return taken

    def _work_on(self, taken: list[tuple[Call, int, Any]], thread: int) -> None:
        finished: list[tuple[Call, BaseException | None]] = []
        # A batch may hold items of several models; a network runs on its own items only.
        try:
            by_worker: dict[int, list[tuple[Call, int, Any]]] = {}
            for entry in taken:
                by_worker.setdefault(id(entry[0].worker), []).append(entry)
            for group in by_worker.values():
                finished += self._work_on_group(group, thread)
        finally:
            with self._lock:
                self._busy -= 1
            if self._loop is not None and finished:
                # Futures are the event loop's. One hop for the batch: each wakes the loop through a socket.
                self._loop.call_soon_threadsafe(self._deliver, finished)

    def _is_lone(self, caller: object, now: float) -> bool:
        """Whether nobody else has asked for a while; under the lock."""
        others = self._waiting or self._busy or (caller != self._last_caller and now < self._freed + _SOON_SECONDS)
        if others:
            self._crowded = now
        self._last_caller = caller
        return now > self._crowded + _CROWD_SECONDS

    def _work_here(self, call: Call) -> None:
        """Work on a call's only item in the event loop, by the first thread's network: no thread has work."""
        item, call.items[0], call.queue = call.items[0], None, 0.0
        try:
            finished = self._work_on_group([(call, 0, item)], 0)
        finally:
            with self._lock:
                self._busy -= 1
        self._freed = time.perf_counter()
        if self._freed > call.deadline:  # no timer could tell
            self._expire(call)
        self._deliver(finished)

    def _work_on_group(
        self, group: list[tuple[Call, int, Any]], thread: int
    ) -> list[tuple[Call, BaseException | None]]:
        # Prepare the items one by one, charging the time to their calls; then run the network once for all of them.
        worker = group[0][0].worker
        began = at = time.perf_counter()
        try:
            prepared = []
            for call, _, item in group:
                prepared.append(worker.prepare(item))
                now = time.perf_counter()
                call.decode += now - at
                at = now
            # Read without the lock: a wrong guess costs a little time, a lock here would cost it every time.
            alone = self._busy == 1 and self._queue.empty()
            answers = worker.run(prepared, thread, alone)
        except Exception as error:  # the edge of the server: it costs this batch and nothing else
            logger.exception("A batch of %d failed.", len(group))
            return [(call, error) for call in {id(call): call for call, _, _ in group}.values()]
        ended = time.perf_counter()
        first = min(call.arrived for call, _, _ in group)
        worker.done(Seconds(began - first, at - began, ended - at), len(group))
        finished: list[tuple[Call, BaseException | None]] = []
        counted: set[int] = set()
        with self._lock:
            # Each worker has its own pace: how long one model takes says nothing about another.
            pace = (ended - began) / len(group)
            before = self._paces.get(worker, pace)
            self._paces[worker] = before + _NEWS * (pace - before)
            for (call, index, _), answer in zip(group, answers, strict=True):
                call.answers[index] = answer
                call.left -= 1
                if id(call) not in counted:  # count the batch once for a call with several items in it
                    counted.add(id(call))
                    call.network += ended - at
                if call.left == 0:
                    finished.append((call, None))
        return finished

    def _deliver(self, finished: list[tuple[Call, BaseException | None]]) -> None:
        """Hand answers to their callers; in the event loop."""
        for call, error in finished:
            # The deadline may have passed, or the client may have left, while the network was running.
            if call.future.done():
                continue
            if error is not None:
                self._give_up(call)
                call.future.set_exception(error)
            else:
                if call.timer is not None:
                    call.timer.cancel()
                call.future.set_result(call.answers)


def step_back() -> None:
    """Let the calling thread run only when others need no processor; elsewhere than on Linux do nothing.

    There a priority belongs to a thread and not to a process (setpriority(2), "C library/kernel differences").
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
