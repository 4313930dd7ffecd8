"""What the server counts and times: Prometheus metrics, and live numbers for the page.

Knows nothing about HTTP, bundles or images. Names of models come from bundles, never from clients: the number of series
does not grow with what is asked for.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_MODEL = ("model", "version")
WINDOW_SECONDS = 10.0
# Only reached above 5,000 requests a second. When the window was the last 50,000 requests instead of ten seconds, it
# made a server grow by 5 MB.
_MOST = 50_000


class Telemetry:
    """All metrics of one server process.

    Attributes:
        answering: requests that are being answered by this process.

    Args:
        folder: where several processes keep their counts, or None for a single one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        # Not the library's global registry, which accepts each name once: tests run two servers in one process.
        self.registry = own = CollectorRegistry()
        counter, gauge = partial(Counter, registry=own), partial(Gauge, registry=own)
        histogram = partial(Histogram, registry=own)
        self.requests = counter(
            "tellapart_requests", "Requests that named a model, by HTTP status.", (*_MODEL, "status")
        )
        self.images = counter("tellapart_images", "Images that went through the network.", _MODEL)
        self.errors = counter("tellapart_errors", "Requests that were refused or failed.", ("kind",))
        self.unreadable = counter("tellapart_unreadable_images", "Images that could not be decoded.", _MODEL)
        # "live" leaves out processes that `mark_process_dead` was called for (processes.py).
        self.queue = gauge("tellapart_queue_length", "Images that wait.", multiprocess_mode="livesum")
        self.in_flight = gauge("tellapart_in_flight", "Requests that are being answered.", multiprocess_mode="livesum")
        self.batch_size = histogram("tellapart_batch_size", "Images in one run of the network.", _MODEL, buckets=_SIZES)
        by_stage = "By stage: queue, decode and network of a batch, whole of an answered request."
        self.seconds = histogram("tellapart_seconds", by_stage, (*_MODEL, "stage"), buckets=_SECONDS)
        self.abstentions = counter("tellapart_abstentions", "Images on which the model abstained.", _MODEL)
        self.unknown = counter("tellapart_unknown_images", "Images that are none of the known classes.", _MODEL)
        self.quality_warnings = counter(
            "tellapart_quality_warnings",
            "Images worse than those that the accuracy was measured on.",
            (*_MODEL, "measure"),
        )
        self.feedback = counter("tellapart_feedback", "Verdicts of users.", ("model", "verdict"))
        kept, seen = (
            "Predictions for the request store: stored, or lost.",
            "Images for a challenger in shadow: predicted, or dropped.",
        )
        self.stored = counter("tellapart_stored_predictions", kept, ("outcome",))
        self.shadows = counter("tellapart_shadow_images", seen, ("outcome",))
        self.swaps = counter("tellapart_swaps", "Bundles that took over from another one.", ("model",))
        self.refused = counter("tellapart_refused_bundles", "Bundles that were not loaded.")
        self.info = gauge(
            "tellapart_model_info",
            "1 for each version that is served.",
            (*_MODEL, "runtime"),
            multiprocess_mode="livemax",
        )
        self.answering = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_MOST)
        self._refused: deque[float] = deque(maxlen=_MOST)

    def expose(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        if self._folder is None:
            return generate_latest(self.registry)
        # Each process writes its counts to files in the folder; the one that is asked adds up all of them.
        shared = CollectorRegistry()
        MultiProcessCollector(shared, str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(shared)

    def enter(self) -> None:
        """Note that a request is being answered."""
        self.answering += 1
        self.in_flight.inc()

    def leave(self) -> None:
        """Note that it is no longer."""
        self.answering -= 1
        self.in_flight.dec()

    def answered(self, seconds: float) -> None:
        """Note for the page that a request about images was answered."""
        now = time.monotonic()
        self._recent.append((now, seconds))
        self._forget(now)

    def turned_away(self) -> None:
        """Note for the page that a request was refused because there was too much to do."""
        now = time.monotonic()
        self._refused.append(now)
        self._forget(now)

    def refused_per_second(self) -> float:
        """Return how many were turned away in a second, of the last ten seconds."""
        self._forget(time.monotonic())
        return len(self._refused) / WINDOW_SECONDS

    def recent(self) -> tuple[float, float | None, float | None]:
        """Return the answered requests per second and the 50th and 99th percentile of their milliseconds.

        Of the last ten seconds; the percentiles are None when none was answered.
        """
        self._forget(time.monotonic())
        if not self._recent:
            return 0.0, None, None
        p50, p99 = np.percentile([seconds for _, seconds in self._recent], (50, 99)) * 1000
        return len(self._recent) / WINDOW_SECONDS, float(p50), float(p99)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - WINDOW_SECONDS:
            self._recent.popleft()
        while self._refused and self._refused[0] < now - WINDOW_SECONDS:
            self._refused.popleft()


class ModelCounts:
    """The metrics of one version, looked up once: the lookup costs more than the count."""

    def __init__(self, telemetry: Telemetry, model: str, version: str) -> None:
        self._telemetry, self._names = telemetry, (model, version)
        self.images = telemetry.images.labels(*self._names)
        self.unreadable = telemetry.unreadable.labels(*self._names)
        self.batch_size = telemetry.batch_size.labels(*self._names)
        self.abstentions = telemetry.abstentions.labels(*self._names)
        self.unknown = telemetry.unknown.labels(*self._names)
        self.queue, self.decode, self.network, self.whole = (
            telemetry.seconds.labels(*self._names, stage) for stage in ("queue", "decode", "network", "whole")
        )
        self._requests: dict[int, Counter] = {}

    def request(self, status: int) -> None:
        """Count a request by its status."""
        if status not in self._requests:
            self._requests[status] = self._telemetry.requests.labels(*self._names, str(status))
        self._requests[status].inc()

    def quality_warning(self, measure: str) -> None:
        """Count an image of lower quality than was measured."""
        self._telemetry.quality_warnings.labels(*self._names, measure).inc()
