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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Bundle, open_bundle
from tellapart.bundles.predictor import BundleClassifier, Explain, Seen, choose, explain_bundle
from tellapart.bundles.runtimes import Predictor, open_several
from tellapart.data.decode import decode, decode_square
from tellapart.errors import BundleError, DecodeError
from tellapart.explain.overlay import overlay
from tellapart.serving.batching import Seconds
from tellapart.serving.telemetry import ModelCounts, Telemetry

logger = logging.getLogger(__name__)

OVERLAY_PX = 1024
"""Longest side of an overlay."""
_WARM_UP_SECONDS = 1.0
_PIXELS_AT_ONCE = 2**18
"""Of all pictures in one run of the network: with more of them its memory grows and its speed does not."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a request.

    Attributes:
        data: the bytes of a file, or (height, width, 3) uint8 RGB.
        with_quality: also measure its quality; it costs about half as much as decoding.
    """

    data: bytes | bytearray | NDArray[np.uint8]
    with_quality: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the network says of one image.

    Attributes:
        row: (num_classes,) float32; None: it could not be read.
        outside: measures of quality in which it is worse than what was measured.
        error: why there is no row.
    """

    row: NDArray[np.float32] | None
    outside: tuple[str, ...] = ()
    error: str = ""


class Networks:
    """A model in memory, once for each thread and once for a thread that works alone.

    Args:
        each: one per thread, on one processor.
        together: on all processors; None where there is one thread.
        most: pictures in one run; more are cut into several.
    """

    def __init__(self, each: tuple[Predictor, ...], together: Predictor | None, most: int) -> None:
        self._each, self._together, self.most = each, together, most
        self._free = threading.Lock()

    def probabilities(self, squares: list[NDArray[np.uint8]], thread: int, alone: bool) -> NDArray[np.float32]:
        """Map pictures (image_px, image_px, 3) uint8 to (num_images, num_classes) float32.

        A thread that works alone takes the network that has all processors, if no other has it.
        """
        if len(squares) > self.most:
            parts = [squares[start : start + self.most] for start in range(0, len(squares), self.most)]
            return np.concatenate([self.probabilities(part, thread, False) for part in parts])
        batch = squares[0][None] if len(squares) == 1 else np.stack(squares)
        if alone and self._together is not None and self._free.acquire(blocking=False):
            try:
                return self._together(batch)
            finally:
                self._free.release()
        return self._each[thread](batch)


@dataclass(frozen=True, eq=False)
class Served:
    """A version that answers. The batcher's worker for predictions.

    Attributes:
        bundle: what it was made from.
        runtime: that runs it.
        card: text of the model card.
        counts: its metrics.
        networks: the model in memory.
        explainer: None: its bundle explains nothing.
        number: 1 for the first version of this name that was loaded, 2 for the next.
    """

    bundle: Bundle
    runtime: str
    card: str
    counts: ModelCounts
    networks: Networks
    explainer: Explainer | None
    see: Callable[..., Seen]
    number: int = 0

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

    def prepare(self, item: Image) -> Seen:
        """Decode an image; whatever is wrong with it costs the others nothing."""
        try:
            return self.see(item.data, item.with_quality)
        except Exception as error:  # noqa: BLE001  # a picture that a library chokes on is not the server's end
            logger.warning("An image could not be processed: %r", error)
            return Seen(None, (), "cannot be processed")

    def run(self, prepared: list[Seen], thread: int, alone: bool) -> list[Answer]:
        """Run the network once on all that could be read."""
        squares = [seen.square for seen in prepared if seen.square is not None]
        rows = iter(self.networks.probabilities(squares, thread, alone)) if squares else iter(())
        answers = []
        for seen in prepared:
            if seen.square is None:
                answers.append(Answer(None, (), seen.error))
                continue
            row = next(rows)
            finite = math.isfinite(float(row.sum()))
            answers.append(
                Answer(row, seen.outside) if finite else Answer(None, (), "the model gave values that are not finite")
            )
        return answers

    def done(self, seconds: Seconds, num_items: int) -> None:
        """Count a batch."""
        counts = self.counts
        counts.batch_size.observe(num_items)
        counts.queue.observe(seconds.queue)
        counts.decode.observe(seconds.decode)
        counts.network.observe(seconds.network)


@dataclass(frozen=True, slots=True)
class Question:
    """An image to explain.

    Attributes:
        data: the bytes of a file.
        target: class number; None: the one that is predicted.
        as_png: an overlay; otherwise JSON.
    """

    data: bytes | bytearray
    target: int | None
    as_png: bool


@dataclass(frozen=True, slots=True)
class Explanation:
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

    def __init__(self, bundle: Bundle, networks: Networks) -> None:
        self._bundle, self._networks = bundle, networks
        self.explain: Explain = explain_bundle(bundle)

    def prepare(self, item: Question) -> _Ready | str:
        """Decode an image for the network and, for an overlay, for the eye."""
        record = self._bundle.record
        try:
            square = decode_square(item.data, record.image_px, max_pixels=record.max_pixels)
            return _Ready(item.target, square, shown(item.data, record.max_pixels) if item.as_png else None)
        except DecodeError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # as in Served.prepare
            logger.warning("An image could not be processed: %r", error)
            return "cannot be processed"

    def run(self, prepared: list[_Ready | str], thread: int, alone: bool) -> list[Explanation]:
        """Explain one after the other."""
        return [
            Explanation(b"", each) if isinstance(each, str) else self._explained(each, thread, alone)
            for each in prepared
        ]

    def _explained(self, ready: _Ready, thread: int, alone: bool) -> Explanation:
        row = self._networks.probabilities([ready.square], thread, alone)[0]
        target = int(row.argmax()) if ready.target is None else ready.target
        heat = self.explain(ready.square[None], np.array([target], np.int64))[0]
        if ready.picture is not None:
            done, png = cv2.imencode(".png", overlay(ready.picture, heat)[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 3))
            return Explanation(png.tobytes()) if done else Explanation(b"", "cannot be written as PNG")
        rows = np.round(heat.astype(np.float64), 3).tolist()
        record = self._bundle.record
        values = {
            "label": record.classes[target], "probability": float(row[target]), "heat": rows, "method": record.explains,
        }  # fmt: skip
        return Explanation(json.dumps(values).encode())

    def done(self, seconds: Seconds, num_items: int) -> None:
        """Count nothing: explanations are no predictions."""


def shown(data: bytes | bytearray, max_pixels: int) -> NDArray[np.uint8]:
    """Return a picture at its own size, or shrunk until no side is longer than `OVERLAY_PX`."""
    picture = decode(data, max_pixels=max_pixels)
    longest = max(picture.shape[:2])
    if longest <= OVERLAY_PX:
        return picture
    height, width = (max(1, round(side * OVERLAY_PX / longest)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def open_served(
    folder: Path, *, runtime: str | None, threads: int, max_batch_size: int, telemetry: Telemetry
) -> Served:
    """Load a bundle, check it and warm it up.

    Args:
        folder: the bundle.
        runtime: None: the fastest here.
        threads: that will call it; each gets a network that runs on one processor.
        max_batch_size: the largest batch that will come.
        telemetry: where it counts.

    Raises:
        BundleError: the bundle is damaged, or no runtime gives the golden photos' probabilities.
    """
    bundle = open_bundle(folder)
    runtime, together = choose(bundle, runtime, threads=threads)
    several = threads > 1
    each = tuple(open_several(bundle, runtime, threads)) if several else (together,)
    networks = Networks(each, together if several else None, max(1, _PIXELS_AT_ONCE // bundle.record.image_px**2))
    served = Served(
        bundle=bundle,
        runtime=runtime,
        card=(folder / "card.md").read_text("utf-8", "replace"),
        counts=ModelCounts(telemetry, bundle.record.name, bundle.version),
        networks=networks,
        explainer=Explainer(bundle, networks) if bundle.explain_path else None,
        see=BundleClassifier(bundle, runtime, together).see,
    )
    _warm_up(served, threads, min(max_batch_size, networks.most))
    if open_version(folder) != bundle.version:
        raise BundleError(f"{folder} changed while it was loaded.")
    return served


def open_version(folder: Path) -> str | None:
    """Return the version that a folder claims to be now, unchecked; None: it is no bundle."""
    try:
        return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()[:12]
    except OSError:
        return None


def _warm_up(served: Served, threads: int, max_batch_size: int) -> None:
    """Run each network on batches of every size, for about a second: a size that is new takes several times longer."""
    until = time.perf_counter() + _WARM_UP_SECONDS
    picture = np.zeros((served.bundle.record.image_px, served.bundle.record.image_px, 3), np.uint8)
    served.networks.probabilities([picture], 0, True)
    powers = [2**power for power in range(max_batch_size.bit_length()) if 2**power <= max_batch_size]
    for size in [*powers, *sorted(set(range(1, max_batch_size + 1)) - set(powers))]:
        for thread in range(threads):
            served.networks.probabilities([picture] * size, thread, False)
        if time.perf_counter() > until:
            break
    if served.explainer is not None:
        served.explainer.explain(picture[None], np.zeros(1, np.int64))
