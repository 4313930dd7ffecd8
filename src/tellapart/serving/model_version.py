"""One version of a model, ready to answer: its networks in memory, and what is done with an image.

Knows nothing about HTTP, queues or other versions. Needs no file of its bundle once it is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Bundle, open_bundle
from tellapart.bundles.predictor import BundleClassifier, DecodedImage, Explain, choose, explain_bundle
from tellapart.bundles.runtimes import RUNTIMES, Outputs, Predictor, open_several
from tellapart.data.decode import DecodingCost, decode_square, decode_within, decoding_cost
from tellapart.data.image_file import load_formats
from tellapart.errors import BundleError, DecodeError
from tellapart.explain.overlay import overlay
from tellapart.memory import give_back
from tellapart.serving.batching import Seconds
from tellapart.serving.options import BatchOptions
from tellapart.serving.telemetry import ModelCounts, Telemetry
from tellapart.unknown import decide

logger = logging.getLogger(__name__)

OVERLAY_PX = 1024
"""Longest side of an overlay."""
LARGE_PIXELS = 16_000_000
"""Which take more than a tenth of a second: as long as nobody should wait for the picture of another."""
_QUICK_BYTES, _QUICK_PIXELS = 128 * 1024, 500_000
"""Of a picture whose decoding holds nobody up for long: at 704 px 1 ms as a JPEG, 11 as a WebP, on a busy machine."""
_WARM_UP_SECONDS = 2.0
_PIXELS_AT_ONCE = 2**18  # five pictures at 224 px
"""Of all pictures in one run of the network: with more of them its memory grows and its speed does not."""
_WORTH_DOUBLING = 0.95
"""Share of the time of a picture, below which a device is given batches twice as large."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a request.

    Attributes:
        data: the bytes of a file, or (height, width, 3) uint8 RGB.
        with_quality: also measure its quality; it costs about half as much as decoding.
    """

    data: bytes | NDArray[np.uint8]
    with_quality: bool = False
    _costs: dict[tuple[int, int], DecodingCost | None] = field(default_factory=dict, init=False, compare=False)

    def cost(self, image_px: int, max_pixels: int) -> DecodingCost | None:
        """Return what decoding takes, as `decoding_cost`; an array is in memory already, and takes nothing."""
        if isinstance(self.data, np.ndarray):
            return DecodingCost(0, 0)
        # Kept, since it is asked for three times on the way: whether the image is large, whether it is quick, and when
        # its turn comes.
        wanted = image_px, max_pixels
        if wanted not in self._costs:
            self._costs[wanted] = decoding_cost(self.data, image_px, max_pixels=max_pixels)
        return self._costs[wanted]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says of one image.

    Attributes:
        row: (num_classes,) float32; None: it could not be read.
        quality_warnings: measures of quality in which it is worse than what was measured.
        error: why there is no row.
        unknown: whether it is none of the known classes.
        similarity: that this was decided by; None: the model cannot tell.
        embedding: (num_features,) float32, what the network saw; None: its bundle has none.
        quality: measure → value; empty: it was not measured.
    """

    row: NDArray[np.float32] | None
    quality_warnings: tuple[str, ...] = ()
    error: str = ""
    unknown: bool = False
    similarity: float | None = None
    embedding: NDArray[np.float32] | None = None
    quality: Mapping[str, float] = field(default_factory=dict)


class DecodeBudget:
    """The memory in which pictures are decoded, of all threads and versions together.

    Small pictures are decoded in parallel as long as they fit; a large one has a thread of its own, and is alone.

    Attributes:
        alone: held while a large picture is decoded.

    Args:
        most: bytes for small pictures. One that takes more than half of it, or over `LARGE_PIXELS`, is large.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._changed = threading.Condition()
        self.alone = threading.Lock()

    def is_large(self, cost: DecodingCost | None) -> bool:
        """Return whether a picture is large; None: nobody knows what it takes."""
        return cost is None or cost.bytes > self.most // 2 or cost.pixels > LARGE_PIXELS

    @contextmanager
    def small(self, size: int) -> Iterator[None]:
        """Wait until a small picture fits, and keep its place."""
        size = min(size, self.most)  # what can never fit would wait for ever
        # The condition is held only while counting: decoding itself runs in parallel.
        with self._changed:
            self._changed.wait_for(lambda: self.bytes + size <= self.most)
            self.bytes += size
        try:
            yield
        finally:
            with self._changed:
                self.bytes -= size
                self._changed.notify_all()  # wake all: a smaller picture may fit where the first one does not


class PredictorPool:
    """A model in memory, once for each thread and once for a thread that works alone.

    Args:
        per_thread: one each, on one processor.
        together: on all processors; None where there is one thread.
        most: pictures in one run; more are cut into several.
        open_one: opens one more, on one processor.
    """

    def __init__(
        self,
        per_thread: tuple[Predictor, ...],
        together: Predictor | None,
        most: int,
        open_one: Callable[[], Predictor],
    ) -> None:
        self._per_thread, self._together, self.most = per_thread, together, most
        self._open_one, self._in_background = open_one, threading.Lock()
        self._background: Predictor | None = None
        # Held while the shared network runs: a predictor reuses its output memory, so two calls at once would mix their
        # answers.
        self._free = threading.Lock()
        self._sizes: tuple[int, ...] = ()

    def warm_up(self, picture: NDArray[np.uint8], max_batch_size: int) -> None:
        """Run each network on batches of all sizes, or of powers of two if that takes too long.

        A size that is new takes several times longer, and memory for good, a megabyte each: other sizes than these are
        filled up from now on, so that a server does not grow while it works.
        """
        # `_sizes` stays empty until the end, so that each size runs as it is and is not padded to another.
        until = time.perf_counter() + _WARM_UP_SECONDS
        largest = min(max_batch_size, self.most)
        powers = {largest, *(2**power for power in range(largest.bit_length()) if 2**power <= largest)}
        warmed = []
        for size in [*sorted(powers, reverse=True), *sorted(set(range(1, largest + 1)) - powers)]:
            if size not in powers and time.perf_counter() > until:
                break
            for _ in range(2):  # ONNX Runtime lays out its memory anew when a size comes a second time
                for thread in range(len(self._per_thread)):
                    self.outputs([picture] * size, thread, False)
                self.outputs([picture] * size, 0, True)
            warmed.append(size)
        self._sizes = tuple(sorted(warmed))

    def outputs(self, squares: list[NDArray[np.uint8]], thread: int, alone: bool) -> Outputs:
        """Map pictures (image_px, image_px, 3) uint8 to probabilities and embeddings.

        A thread that works alone takes the network that has all processors, if no other has it.
        """
        if len(squares) > self.most:
            parts = [squares[start : start + self.most] for start in range(0, len(squares), self.most)]
            return _joined([self.outputs(part, thread, False) for part in parts])
        # Pad to the next warmed size with copies of a picture; the extra rows are dropped.
        size = next((size for size in self._sizes if size >= len(squares)), len(squares))
        if size > len(squares):
            rows, embeddings = self.outputs(squares + squares[:1] * (size - len(squares)), thread, alone)
            return Outputs(rows[: len(squares)], None if embeddings is None else embeddings[: len(squares)])
        batch = squares[0][None] if size == 1 else np.stack(squares)
        if self._together is None:  # the only network: of the thread, and of the heat maps' one
            with self._free:
                return self._per_thread[thread](batch)
        # Non-blocking: if another thread has just taken the shared network, this thread's own is free.
        if alone and self._free.acquire(blocking=False):
            try:
                return self._together(batch)
            finally:
                self._free.release()
        return self._per_thread[thread](batch)

    def of_one(self, square: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map one picture to its row, in a thread that has no network of its own."""
        with self._free:
            rows = (self._together or self._per_thread[0])(square[None]).probabilities
        return np.asarray(rows[0], np.float32)

    def in_background(self, square: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map one picture to its row on one processor, in a thread that gives way to others.

        By a network that this thread opens at first: a runtime's threads have the priority of the thread that made
        them, and those of the other networks would take the processors from somebody who waits.
        """
        with self._in_background:
            if self._background is None:
                self._background = self._open_one()
            return np.array(self._background(square[None]).probabilities[0], np.float32)


def _joined(parts: list[Outputs]) -> Outputs:
    """Return the outputs of several runs as those of one."""
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Outputs(
        np.concatenate([part.probabilities for part in parts]), np.concatenate(embeddings) if embeddings else None
    )


class LargeImages:
    """The batcher's worker for pictures that are too large for the threads that predict: decodes them."""

    most = 1

    def __init__(self, decode: Callable[..., DecodedImage], budget: DecodeBudget) -> None:
        self._decode, self._budget = decode, budget

    def prepare(self, item: Image) -> DecodedImage:
        """Decode an image, with no other large one in memory."""
        with self._budget.alone:
            return decode_safely(self._decode, item)

    def run(self, prepared: list[DecodedImage], thread: int, alone: bool) -> list[DecodedImage]:
        """Leave the network to others."""
        give_back()  # return the memory of decoding to the system; no prediction waits for this thread
        return prepared

    def done(self, seconds: Seconds, num_items: int) -> None:
        """Count nothing: they are counted with the batch that they join."""


class Shadow:
    """The batcher's worker for images that another version has answered already. One for each call.

    A version must not hold it: the two would be a cycle, and a version that was replaced would keep its networks in
    memory until the collector runs.

    Args:
        served: the version that sees them too.
    """

    most = 1

    def __init__(self, served: ModelVersion) -> None:
        self._served = served

    def prepare(self, item: Image) -> DecodedImage:
        """Decode an image; its quality was measured for the answer."""
        return self._served.prepare(Image(item.data))

    def run(self, prepared: list[DecodedImage], thread: int, alone: bool) -> list[NDArray[np.float32] | None]:
        """Return probabilities, (num_classes,) each; None: it could not be read."""
        networks = self._served.networks
        return [None if image.square is None else networks.in_background(image.square) for image in prepared]

    def done(self, seconds: Seconds, num_items: int) -> None:
        """Count nothing: nobody was answered."""


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """A version that answers. The batcher's worker for predictions.

    Attributes:
        bundle: what it was made from.
        runtime: that runs it.
        card: text of the model card.
        counts: its metrics.
        networks: the model in memory.
        explainer: None: its bundle explains nothing.
        decode: decodes an image.
        max_pixels: that it may declare.
        budget: memory to do it in.
        number: 1 for the first version of this name that was loaded, 2 for the next.
        large: the worker for pictures that `is_large`; what it answers is taken by `prepare` as it is.
    """

    bundle: Bundle
    runtime: str
    card: str
    counts: ModelCounts
    networks: PredictorPool
    explainer: Explainer | None
    decode: Callable[..., DecodedImage]
    max_pixels: int
    budget: DecodeBudget
    number: int = 0
    large: LargeImages = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "large", LargeImages(self.decode, self.budget))

    @property
    def name(self) -> str:
        """Of the model."""
        return self.bundle.record.name

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits."""
        return self.bundle.version

    @property
    def most(self) -> int:
        """Pictures in one run of the network."""
        return self.networks.most

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return self.bundle.record.classes

    def is_large(self, item: Image) -> bool:
        """Return whether an image needs a thread of its own to be decoded."""
        return self.budget.is_large(self._cost(item))

    def is_quick(self, item: Image | DecodedImage) -> bool:
        """Return whether an image is decoded in about 10 ms at most, without waiting for memory."""
        if isinstance(item, DecodedImage):  # a large one: its turn in the network need not be the next
            return False
        if isinstance(item.data, np.ndarray):
            return item.data.size <= 3 * _QUICK_PIXELS
        if len(item.data) > _QUICK_BYTES:
            return False
        cost = self._cost(item)
        # Where somebody else decodes, `prepare` might wait for the memory.
        return cost is not None and cost.pixels <= _QUICK_PIXELS and not self.budget.bytes

    def _cost(self, item: Image) -> DecodingCost | None:
        return item.cost(self.bundle.record.image_px, self.max_pixels)

    def prepare(self, item: Image | DecodedImage) -> DecodedImage:
        """Decode an image; whatever is wrong with it costs the others nothing."""
        if isinstance(item, DecodedImage):
            return item
        cost = self._cost(item)
        with self.budget.small(cost.bytes if cost else 0):
            return decode_safely(self.decode, item)

    def run(self, prepared: list[DecodedImage], thread: int, alone: bool) -> list[Answer]:
        """Run the network once on all that could be read."""
        # Images that could not be decoded stay out of the batch and get their error below.
        squares = [image.square for image in prepared if image.square is not None]
        if not squares:
            return [Answer(None, (), image.error) for image in prepared]
        outputs = self.networks.outputs(squares, thread, alone)
        unknown = decide(self.bundle.detector, outputs.embeddings, len(squares))
        embeddings = [None] * len(squares) if outputs.embeddings is None else outputs.embeddings
        rows = iter(zip(outputs.probabilities, unknown, embeddings, strict=True))
        answers = []
        for image in prepared:
            if image.square is None:
                answers.append(Answer(None, (), image.error))
                continue
            # One sum checks all probabilities: NaN and infinity propagate into it.
            row, (is_unknown, similarity), embedding = next(rows)
            finite = math.isfinite(float(row.sum()))
            answers.append(
                Answer(row, image.quality_warnings, "", is_unknown, similarity, embedding, image.quality)
                if finite
                else Answer(None, (), "the model gave values that are not finite")
            )
        return answers

    def done(self, seconds: Seconds, num_items: int) -> None:
        """Count a batch."""
        counts = self.counts
        counts.batch_size.observe(num_items)
        counts.queue.observe(seconds.queue)
        counts.decode.observe(seconds.decode)
        counts.network.observe(seconds.network)


def decode_safely(decode: Callable[..., DecodedImage], item: Image) -> DecodedImage:
    """Decode an image, or say that a library failed on it: one image never costs the server."""
    try:
        return decode(item.data, item.with_quality)
    except Exception as error:  # noqa: BLE001  # as above
        logger.warning("An image could not be processed: %r", error)
        return DecodedImage(None, (), "cannot be processed")


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """An image to explain.

    Attributes:
        data: the bytes of a file.
        target: class number; None: the one that is predicted.
        as_png: an overlay; otherwise JSON.
    """

    data: bytes
    target: int | None
    as_png: bool


@dataclass(frozen=True, slots=True)
class ExplainResult:
    """What an explanation is, as the body of a response; or why there is none."""

    body: bytes
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Ready:
    target: int | None
    square: NDArray[np.uint8]
    picture: NDArray[np.uint8] | None


class Explainer:
    """The batcher's worker for explanations of one version."""

    most = 1
    """A heat map costs as much as a batch of predictions."""

    def __init__(self, bundle: Bundle, networks: PredictorPool, budget: DecodeBudget, max_pixels: int) -> None:
        self._bundle, self._networks, self._budget, self._max_pixels = bundle, networks, budget, max_pixels
        self.explain: Explain = explain_bundle(bundle)

    def prepare(self, item: ExplainRequest) -> _Ready | str:
        """Decode an image for the network and, for an overlay, for the eye."""
        image_px, max_pixels = self._bundle.record.image_px, self._max_pixels
        # The cost is not estimated here: any image takes the lock of large pictures and is decoded alone.
        try:
            with self._budget.alone:
                square = decode_square(item.data, image_px, max_pixels=max_pixels)
                return _Ready(
                    item.target,
                    square,
                    decode_within(item.data, OVERLAY_PX, max_pixels=max_pixels) if item.as_png else None,
                )
        except DecodeError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # as in decode_safely
            logger.warning("An image could not be processed: %r", error)
            return "cannot be processed"

    def run(self, prepared: list[_Ready | str], thread: int, alone: bool) -> list[ExplainResult]:
        """Explain one after the other."""
        return [ExplainResult(b"", item) if isinstance(item, str) else self._explained(item) for item in prepared]

    def _explained(self, ready: _Ready) -> ExplainResult:
        row = self._networks.of_one(ready.square)
        target = int(row.argmax()) if ready.target is None else ready.target
        heat = self.explain(ready.square[None], np.array([target], np.int64))[0]
        if ready.picture is not None:
            # OpenCV expects blue, green, red, so the channels are reversed.
            ok, png = cv2.imencode(".png", overlay(ready.picture, heat)[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 3))
            return ExplainResult(png.tobytes()) if ok else ExplainResult(b"", "cannot be written as PNG")
        rows = np.round(heat.astype(np.float64), 3).tolist()
        record = self._bundle.record
        values = {
            "label": record.classes[target], "probability": float(row[target]), "heat": rows, "method": record.explains,
        }  # fmt: skip
        return ExplainResult(json.dumps(values).encode())

    def done(self, seconds: Seconds, num_items: int) -> None:
        """Count nothing: explanations are no predictions."""


def open_served(
    folder: Path,
    *,
    runtime: str | None,
    batches: BatchOptions,
    budget: DecodeBudget,
    telemetry: Telemetry,
    max_pixels: int | None = None,
    name: str | None = None,
) -> ModelVersion:
    """Load a bundle, check it and warm it up.

    Args:
        folder: the bundle.
        runtime: None: the fastest here.
        batches: how many threads will call it (each gets a network that runs on one processor), and the largest batch.
        budget: memory to decode in.
        telemetry: where it counts.
        max_pixels: images that declare more are refused; the bundle's limit holds where it is lower.
        name: that it is served under; None: the bundle's.

    Raises:
        BundleError: the bundle is damaged, or no runtime gives the reference images' probabilities.
    """
    bundle, threads = open_bundle(folder), batches.num_threads
    if name is not None:
        # Versions of one model may have been exported under the names of their runs.
        bundle = replace(bundle, record=bundle.record.model_copy(update={"name": name}))
    runtime, together = choose(bundle, runtime, threads=threads)
    several = threads > 1
    per_thread = tuple(open_several(bundle, runtime, threads)) if several else (together,)
    networks = PredictorPool(
        per_thread,
        together if several else None,
        _most_at_once(runtime, together, bundle.record.image_px, batches.max_batch_size),
        lambda: open_several(bundle, runtime, 1)[0],
    )
    classifier = BundleClassifier(bundle, runtime, together)
    # A server may be stricter than the run, never more lenient: the model was not measured on larger images.
    classifier.max_pixels = min(classifier.max_pixels, max_pixels or classifier.max_pixels)
    served = ModelVersion(
        bundle=bundle,
        runtime=runtime,
        card=(folder / "card.md").read_text("utf-8", "replace"),
        counts=ModelCounts(telemetry, bundle.record.name, bundle.version),
        networks=networks,
        explainer=Explainer(bundle, networks, budget, classifier.max_pixels) if bundle.explain_path else None,
        decode=classifier.decode,
        max_pixels=classifier.max_pixels,
        budget=budget,
    )
    # Before the version is published: neither the first request nor the first after a swap may be slow.
    _warm_up(served, batches.max_batch_size)
    # A new bundle may have replaced the folder while files were being read, which would mix the two.
    if open_version(folder) != bundle.version:
        raise BundleError(f"{folder} changed while it was loaded.")
    return served


def _most_at_once(runtime: str, predict: Predictor, image_px: int, max_batch_size: int) -> int:
    """Return how many pictures one run of the network should have: of a device of its own that is measured.

    Doubled as long as a picture takes a twentieth less time than in half as large a batch.
    """
    if not RUNTIMES[runtime].is_accelerated:
        return max(1, _PIXELS_AT_ONCE // image_px**2)
    most, fastest = 1, float("inf")
    for size in (2**power for power in range(max_batch_size.bit_length()) if 2**power <= max_batch_size):
        batch, laps = np.zeros((size, image_px, image_px, 3), np.uint8), []
        for _ in range(5):
            start = time.perf_counter()
            predict(batch)
            laps.append((time.perf_counter() - start) / size)
        if min(laps) > _WORTH_DOUBLING * fastest:
            break
        most, fastest = size, min(laps)
    return most


def open_version(folder: Path) -> str | None:
    """Return the version that a folder claims to be now, unchecked; None: it is no bundle."""
    try:
        return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()[:12]
    except OSError:
        return None


def _warm_up(served: ModelVersion, max_batch_size: int) -> None:
    """Do what the first requests would do, so that they are as fast as the others and need no memory for good."""
    load_formats()  # Pillow's format readers, which the first unusual file would load otherwise
    picture = np.zeros((served.bundle.record.image_px, served.bundle.record.image_px, 3), np.uint8)
    served.networks.warm_up(picture, max_batch_size)
    served.run([DecodedImage(picture, ())] * max_batch_size, 0, True)  # the cosines of unknown photos take memory too
    if served.explainer is not None:
        served.explainer.explain(picture[None], np.zeros(1, np.int64))
