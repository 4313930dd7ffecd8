"""Keeps what was answered in the request store, off the path of requests. Knows no protocol and no SQL."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.predictor import abstains
from tellapart.data.decode import decode_within
from tellapart.databases import reason_of
from tellapart.errors import InputError
from tellapart.monitoring.ab_test import ABTest
from tellapart.serving.errors import ApiError
from tellapart.serving.model_version import Answer, Image, ModelVersion
from tellapart.serving.options import StoreOptions
from tellapart.serving.telemetry import Telemetry

if TYPE_CHECKING:
    from tellapart.request_store import StoredPrediction
    from tellapart.serving.middleware import RequestContext

logger = logging.getLogger(__name__)

PHOTO_PX = 512
"""Longer side of a photo that is kept: enough for a person to label it."""
_JPEG_QUALITY = 85
_PHOTO_BYTES = 64 * 1024 * 1024
"""Of photos that wait to be shrunk; beyond, predictions are kept without theirs."""
_EXPIRE_SECONDS = 3600.0


class PredictionLog:
    """What a server process keeps of its answers.

    Attributes:
        store: where they are kept.

    Args:
        options: where, and what.
        telemetry: where it counts.

    Raises:
        InputError: SQLAlchemy is not installed, or the database cannot be opened.
    """

    def __init__(self, options: StoreOptions, telemetry: Telemetry) -> None:
        try:
            from tellapart.request_store import RequestStore
            from tellapart.store_writer import StoreWriter
        except ImportError as error:
            raise InputError(
                "A request store needs SQLAlchemy and Alembic, which are not installed here. Install them: pip install "
                "'tellapart[store]'"
            ) from error
        self._options = options
        self.store = RequestStore(options.url)
        self._writer = StoreWriter(
            self.store,
            prepare=self._with_shrunk_photo,
            count=lambda outcome, number: telemetry.stored.labels(outcome).inc(number),
        )
        self._photo_bytes, self._lock = 0, threading.Lock()  # of the requests' thread and the writer's
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin to write, and to delete what is too old."""
        self._writer.start()
        # Each process of a server does so: to delete what another one has deleted costs nothing.
        if self._options.retention_days is not None:
            threading.Thread(target=self._keep_expiring, name="retention", daemon=True).start()

    def close(self) -> None:
        """Write what is waiting, for a limited time."""
        self._stop.set()
        self._writer.close()
        self.store.close()

    def record(
        self, context: RequestContext, served: ModelVersion, images: Sequence[Image], answers: Sequence[Answer]
    ) -> None:
        """Take the answers to a request; never waits and never fails."""
        # Not at the top: the server imports this module without the extra `store` too.
        from tellapart.request_store import StoredPrediction

        now, milliseconds = time.time(), 1000 * (time.perf_counter() - context.began)
        for number, (image, answer) in enumerate(zip(images, answers, strict=True)):
            best = None if answer.row is None else int(answer.row.argmax())
            photo = self._photo(served, image) if best is not None else None
            has_room = self._writer.put(
                StoredPrediction(
                    # The same form in `record_failure`, `add_feedback` and `Service._shadow`: by it feedback and
                    # shadows find their photo.
                    id=f"{context.id}.{number}",
                    at=now,
                    model=served.name,
                    version=served.version,
                    label=None if best is None else served.classes[best],
                    probability=None if best is None or answer.row is None else float(answer.row[best]),
                    probabilities=None if answer.row is None else answer.row.astype(np.float16),
                    # Half precision also cuts the row loose from its batch, which would stay in memory with it.
                    embedding=None if answer.embedding is None else answer.embedding.astype(np.float16),
                    is_unknown=answer.unknown,
                    abstains=answer.row is not None and abstains(served.bundle, answer.row),
                    similarity=answer.similarity,
                    quality=answer.quality,
                    milliseconds=milliseconds,
                    photo=photo,
                    test=None if context.test is None else context.test.id,
                    # Who asked is kept in a test alone, which cannot do without.
                    subject=None if context.test is None else context.subject,
                )
            )
            # The writer, who frees these bytes when it shrinks a photo, has not got this one.
            if photo is not None and not has_room:
                self._forget_photo(photo)

    def record_failure(self, context: RequestContext, served: ModelVersion, num_images: int) -> None:
        """Take that a request of an A/B test was not answered; never waits and never fails."""
        from tellapart.request_store import StoredPrediction

        now, milliseconds = time.time(), 1000 * (time.perf_counter() - context.began)
        for number in range(num_images):
            self._writer.put(
                StoredPrediction(
                    id=f"{context.id}.{number}", at=now, model=served.name, version=served.version,
                    milliseconds=milliseconds, test=None if context.test is None else context.test.id,
                    subject=context.subject,
                )
            )  # fmt: skip

    def record_shadow(
        self, test: ABTest, served: ModelVersion, ids: Sequence[str], rows: Sequence[NDArray[np.float32] | None]
    ) -> None:
        """Take what a challenger said of predictions that are kept, by their ids; never waits and never fails."""
        from tellapart.request_store import ShadowPrediction

        now = time.time()
        for id_, row in zip(ids, rows, strict=True):
            best = None if row is None else int(row.argmax())
            label = None if best is None else served.classes[best]
            probability = None if best is None or row is None else float(row[best])
            self._writer.put(ShadowPrediction(id_, test.id, now, label, probability))

    async def add_feedback(self, verdicts: Sequence[dict[str, Any]]) -> None:
        """Store verdicts as they came to the server, all or none.

        Raises:
            ApiError: the database cannot be written (503).
        """
        from sqlalchemy.exc import SQLAlchemyError

        from tellapart.request_store import Feedback

        feedback = [
            Feedback(f"{values['request_id']}.{values.get('image', 0)}", values["verdict"], values.get("label"))
            for values in verdicts
        ]
        try:
            await asyncio.to_thread(self.store.add_feedback, feedback)
        except SQLAlchemyError as error:
            logger.warning("A verdict could not be stored: %s.", reason_of(error))
            message = "The verdict cannot be stored: the database does not take it. Send it again later."
            raise ApiError(503, message, {"Retry-After": "60"}) from None

    def _photo(self, served: ModelVersion, image: Image) -> bytes | None:
        """Return the photo as it came, to be shrunk later; None: it is not to be kept, or too large."""
        # No large ones: those are decoded one at a time, and the writer's thread would decode them beside all others.
        if not self._options.keep_photos or isinstance(image.data, np.ndarray) or served.is_large(image):
            return None
        with self._lock:
            if self._photo_bytes + len(image.data) > _PHOTO_BYTES:
                return None
            self._photo_bytes += len(image.data)
        return image.data

    def _forget_photo(self, photo: bytes) -> None:
        with self._lock:
            self._photo_bytes -= len(photo)

    def _with_shrunk_photo(self, prediction: StoredPrediction) -> StoredPrediction:
        """Return what is written: a small JPEG without the rest of the file; in the writer's thread."""
        if prediction.photo is None:
            return prediction
        # Before anything that can fail: these bytes are let go in any case.
        self._forget_photo(prediction.photo)
        try:
            picture = decode_within(prediction.photo, PHOTO_PX)
            # Encoded anew, whatever its size: what else is in a file, such as the place, never gets into the store.
            _, encoded = cv2.imencode(".jpg", picture[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
        except Exception as error:  # noqa: BLE001  # one photo must not end the thread that stores all others
            logger.warning("A photo could not be shrunk, and is not kept: %r", error)
            return replace(prediction, photo=None)
        return replace(prediction, photo=encoded.tobytes())

    def _keep_expiring(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        assert self._options.retention_days is not None
        while True:
            try:
                self.store.expire(time.time() - 86400 * self._options.retention_days)
            except SQLAlchemyError as error:  # in an hour it may be there again
                logger.warning("The request store could not delete what is too old: %s.", reason_of(error))
            if self._stop.wait(_EXPIRE_SECONDS):
                return
