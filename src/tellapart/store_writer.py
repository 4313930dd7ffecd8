"""Writes what a server answers into a request store, in batches, from a thread: off the path of requests."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from tellapart.databases import reason_of
from tellapart.request_store import RequestStore, ShadowPrediction, StoredPrediction

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 500
_LONGEST_PAUSE = 30.0
_REFUSED = (DataError, IntegrityError, ProgrammingError)
"""What a database says of a row that it will never take; all else may be over in a moment."""


class StoreWriter:
    """Writes what a server answers into a store, from a thread. `put` never waits and never raises.

    Attributes:
        num_stored: predictions that are in the database.
        num_lost: predictions that are not: too many were waiting, the server ended, or the database refused them.
        failure: why the last write failed; "": it did not.

    Args:
        store: where to.
        max_waiting: predictions that are kept while the database cannot be written; beyond, new ones are lost.
        every_seconds: one transaction for all of this time.
        prepare: makes of a prediction what is written, in the thread: what takes too long for a request.
        count: called with ("stored" or "lost", how many).
    """

    def __init__(
        self,
        store: RequestStore,
        *,
        max_waiting: int = 20_000,
        every_seconds: float = 0.5,
        prepare: Callable[[StoredPrediction], StoredPrediction] = lambda prediction: prediction,
        count: Callable[[str, int], object] = lambda what, number: None,
    ) -> None:
        self.num_stored, self.num_lost, self.failure = 0, 0, ""
        self._store, self._max, self._every = store, max_waiting, every_seconds
        self._prepare, self._count = prepare, count
        self._num_prepared = 0  # of those that wait, from the left
        self._waiting: deque[StoredPrediction | ShadowPrediction] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def num_waiting(self) -> int:
        """Predictions that are not written yet."""
        return len(self._waiting)

    def put(self, prediction: StoredPrediction | ShadowPrediction) -> bool:
        """Take a prediction, and return whether there was room for it."""
        # A deque's append is atomic: no lock on the path of a request.
        if len(self._waiting) >= self._max:
            self._lose(1)
            return False
        self._waiting.append(prediction)
        return True

    def start(self) -> None:
        """Begin to write."""
        # A daemon: a database that does not answer must not keep the process alive.
        self._thread = threading.Thread(target=self._keep_writing, name="store", daemon=True)
        self._thread.start()

    def close(self, patience_seconds: float = 5.0) -> None:
        """Write what is waiting, for a limited time; the rest is lost, and counted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(patience_seconds)
        self._lose(len(self._waiting))

    def _lose(self, number: int) -> None:
        self.num_lost += number
        self._count("lost", number)

    def _keep_writing(self) -> None:
        pause = self._every
        while not self._stop.wait(pause):
            # After a failure ever longer pauses: a database that comes back must not be met by a storm.
            pause = self._every if self._write_all() else min(2 * pause, _LONGEST_PAUSE)
        self._write_all()

    def _prepared_at(self, number: int) -> StoredPrediction | ShadowPrediction:
        """Return a prediction that waits, prepared once, however often its batch has to be written."""
        if number >= self._num_prepared:
            waiting = self._waiting[number]
            if isinstance(waiting, StoredPrediction):
                # In its own place: a photo as it came is not kept in memory beside the small one until the batch is
                # written.
                self._waiting[number] = self._prepare(waiting)
            self._num_prepared += 1
        return self._waiting[number]

    def _add(self, batch: Sequence[StoredPrediction | ShadowPrediction]) -> None:
        # Two transactions: where the second one fails the whole batch comes again, and what is there already stays as
        # it is.
        self._store.add([one for one in batch if isinstance(one, StoredPrediction)])
        self._store.add_shadows([one for one in batch if isinstance(one, ShadowPrediction)])

    def _is_taken(self, prediction: StoredPrediction | ShadowPrediction) -> bool:
        """Store one prediction, and return whether the database takes it."""
        try:
            self._add([prediction])
        except _REFUSED as error:
            name = prediction.id if isinstance(prediction, StoredPrediction) else prediction.prediction_id
            logger.warning("The prediction %s cannot be stored: %s.", name, reason_of(error))
            return False
        return True

    def _write_all(self) -> bool:
        """Write all that is waiting; return whether it worked."""
        while self._waiting:
            # Taken out only once it is stored; this thread alone takes from the left.
            batch = [self._prepared_at(number) for number in range(min(len(self._waiting), _ROWS_AT_ONCE))]
            lost = 0
            try:
                try:
                    self._add(batch)
                except _REFUSED:
                    # A row that the database does not take must not hold up all that come after it.
                    lost = sum(not self._is_taken(prediction) for prediction in batch)
            except SQLAlchemyError as error:
                if not self.failure:  # once, not twice a second
                    logger.warning("The request store %s cannot be written: %s.", self._store.shown, reason_of(error))
                self.failure = reason_of(error)
                return False
            for _ in batch:
                self._waiting.popleft()
            self._num_prepared -= len(batch)
            self.num_stored += len(batch) - lost
            self._count("stored", len(batch) - lost)
            if lost:
                self._lose(lost)
        if self.failure:
            logger.info("The request store %s can be written again.", self._store.shown)
            self.failure = ""
        return True
