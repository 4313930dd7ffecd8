"""Names pictures with a bundle, without Keras. Knows nothing about tables, HTTP or the command line."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from tellapart.blas import one_blas_thread
from tellapart.bundles.bundle import Bundle, open_bundle
from tellapart.bundles.runtimes import (
    FRAMEWORKS,
    RUNTIMES,
    Outputs,
    Predictor,
    artefact_for,
    check_reference_images,
    open_runtime,
    open_several,
    usable,
)
from tellapart.data.decode import decode_square, resize
from tellapart.data.image_file import read_file
from tellapart.data.quality import decode_and_measure, quality_of
from tellapart.errors import BundleError, DecodeError
from tellapart.explain.overlay import to_heat
from tellapart.records import Prediction, Progress, no_progress
from tellapart.unknown import UnknownDetector, decide

BATCH_SIZE = 32
_FEW = 4
_MANY = 1000
"""Images from which on it is worth opening a network for each thread."""
_MOST_BYTES = 256_000_000
"""Of the files of these networks: each may keep its weights for itself."""
_IN_FLIGHT = 512
"""Images that are decoded and wait, about: 77 MB at 224 px."""
Explain = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.float32]]
_CHOICE_SECONDS = 2.0


@dataclass(frozen=True)
class DecodedImage:
    """A picture as the network takes it, and what its file says of its quality.

    Attributes:
        square: (image_px, image_px, 3) uint8; None: it could not be read.
        quality_warnings: measures of quality in which it is worse than what was measured.
        error: why it could not be read.
        quality: measure → value; empty: it was not measured.
    """

    square: NDArray[np.uint8] | None
    quality_warnings: tuple[str, ...]
    error: str = ""
    quality: Mapping[str, float] = field(default_factory=dict)


class BundleClassifier:
    """A bundle, ready to name pictures.

    Example:
        >>> classifier = tellapart.load("bundles/pets")
        >>> classifier.predict(["cat.jpg"])[0].label
        'cat'
    """

    def __init__(self, bundle: Bundle, runtime: str, predict: Predictor) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.classes = list(bundle.record.classes)
        self.image_px = bundle.record.image_px
        self.max_pixels = bundle.record.max_pixels
        self._predict = predict
        self._predictors: list[Predictor] | None = None

    @property
    def identity(self) -> str:
        """What tells this model from others."""
        return self.bundle.version

    @property
    def detector(self) -> UnknownDetector | None:
        """Of photos of no known class; None where the bundle has none."""
        return self.bundle.detector

    def probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32."""
        return self.outputs(pictures).probabilities

    def outputs(self, pictures: NDArray[np.uint8]) -> Outputs:
        """Map (num_images, image_px, image_px, 3) uint8 to probabilities and embeddings."""
        parts = [
            self._predict(np.ascontiguousarray(pictures[start : start + BATCH_SIZE]))
            for start in range(0, len(pictures), BATCH_SIZE)
        ]
        embeddings = [part.embeddings for part in parts if part.embeddings is not None]
        return Outputs(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate(embeddings) if len(embeddings) == len(parts) else None,
        )

    def predict(
        self,
        images: Sequence[str | os.PathLike[str] | bytes | NDArray[np.uint8]],
        *,
        top_k: int = 3,
        progress: Progress = no_progress,
    ) -> list[Prediction]:
        """Name each image; one that cannot be read gets an error and costs the others nothing.

        Args:
            images: files, the bytes of files, or pictures as (height, width, 3) uint8 RGB arrays of any size.
            top_k: how many classes to list.
            progress: called with ("predicting", done, total).

        Returns:
            One `Prediction` per image, in their order.
        """
        results: list[Prediction] = []
        for prediction in self.stream(images, top_k=top_k):
            results.append(prediction)
            if len(results) % BATCH_SIZE == 0 or len(results) == len(images):
                progress("predicting", len(results), len(images))
        return results

    def stream(
        self,
        images: Sequence[str | os.PathLike[str] | bytes | NDArray[np.uint8]],
        *,
        top_k: int = 3,
        with_quality: bool = True,
    ) -> Iterator[Prediction]:
        """Yield what `predict` returns, one after the other, in memory that does not grow with their number.

        Pictures are decoded by all processors while the ones before them are in the network.

        Args:
            images: as `predict` takes them.
            top_k: how many classes to list.
            with_quality: also measure each photo's quality; it costs about as much as decoding.
        """
        if len(images) <= _FEW:  # threads would cost more than they save
            decoded = [self.decode(image, with_quality) for image in images]
            yield from self._named(decoded, _outputs_of(decoded, self._predict), images, 0, top_k)
            return
        threads = os.cpu_count() or 1
        # Smaller batches where there are many processors: each may have one in memory.
        size = min(BATCH_SIZE, max(_FEW, _IN_FLIGHT // threads), math.ceil(len(images) / threads))
        free: SimpleQueue[Predictor] = SimpleQueue()
        for predict in self._several(len(images), threads):
            free.put(predict)

        def work(start: int) -> tuple[list[DecodedImage], Outputs | None]:
            decoded = [self.decode(image, with_quality) for image in images[start : start + size]]
            predict = free.get()
            try:
                return decoded, _outputs_of(decoded, predict)
            finally:
                free.put(predict)

        # One more than processors: while a thread waits for Python's lock, another one has its processor.
        threads += 1
        # A batch for each thread, and two more that are done or wait: never more than these are in memory.
        waiting: deque[tuple[int, Future[tuple[list[DecodedImage], Outputs | None]]]] = deque()
        with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
            try:
                for start in range(0, len(images), size):
                    waiting.append((start, pool.submit(work, start)))
                    if len(waiting) == threads + 2:
                        first, done = waiting.popleft()
                        yield from self._named(*done.result(), images, first, top_k)
                while waiting:
                    first, done = waiting.popleft()
                    yield from self._named(*done.result(), images, first, top_k)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _several(self, num_images: int, threads: int) -> list[Predictor]:
        """Return what the threads of a stream ask: a network of its own for each, where there are enough images."""
        artefact = artefact_for(self.bundle, RUNTIMES[self.runtime])
        size = artefact.bytes if artefact else 0
        if num_images < _MANY or threads == 1 or threads * size > _MOST_BYTES:
            return [self._predict]
        # One network on all processors would wait for threads that decode. Opened once: it takes up to a second.
        if self._predictors is None:
            self._predictors = open_several(self.bundle, self.runtime, threads)
        return self._predictors

    def decode(
        self, image: str | os.PathLike[str] | bytes | NDArray[np.uint8], with_quality: bool = True
    ) -> DecodedImage:
        """Decode one image and measure its quality."""
        try:
            if isinstance(image, np.ndarray):
                if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                    return DecodedImage(None, (), f"is {image.dtype} {image.shape}; expected uint8 (height, width, 3)")
                # Resize an array exactly as a decoded file, as in training: the network must see the same pixels.
                quality = quality_of(image).to_dict() if with_quality else None
                square = resize(np.ascontiguousarray(image), self.image_px)
            else:
                data = bytes(image) if isinstance(image, (bytes, bytearray, memoryview)) else read_file(image)
                if with_quality:
                    square, measured = decode_and_measure(data, self.image_px, max_pixels=self.max_pixels)
                    quality = measured.to_dict()
                else:
                    square, quality = decode_square(data, self.image_px, max_pixels=self.max_pixels), None
        except DecodeError as error:
            return DecodedImage(None, (), str(error))
        if quality is None:
            return DecodedImage(square, ())
        return DecodedImage(square, tuple(self.bundle.quality_warnings(quality)), quality=quality)

    def _named(
        self, decoded: list[DecodedImage], outputs: Outputs | None, images: Sequence, start: int, top_k: int
    ) -> Iterator[Prediction]:
        """Yield what the network says of decoded images, of which `start` is the number of the first."""
        row_of = {
            index: row for row, index in enumerate(i for i, image in enumerate(decoded) if image.square is not None)
        }
        unknown = decide(self.bundle.detector, outputs.embeddings if outputs else None, len(row_of))
        for index, image in enumerate(decoded):
            source = images[start + index]
            path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"image {start + index}"
            if outputs is None or index not in row_of:
                yield Prediction(path, None, float("nan"), (), image.error)
                continue
            row, warnings, embeddings = row_of[index], image.quality_warnings, outputs.embeddings
            embedding = None if embeddings is None else embeddings[row]
            prediction = to_prediction(self.bundle, path, outputs.probabilities[row], top_k, warnings, embedding)
            is_unknown, similarity = unknown[row]
            yield (
                prediction
                if prediction.label is None
                else replace(prediction, unknown=is_unknown, similarity=similarity)
            )


def _outputs_of(decoded: Sequence[DecodedImage], predict: Predictor) -> Outputs | None:
    """Return what a network gives for those images that could be read; None: there are none."""
    squares = [image.square for image in decoded if image.square is not None]
    return predict(np.stack(squares)) if squares else None


def to_prediction(
    bundle: Bundle,
    path: str,
    row: NDArray[np.float32],
    top_k: int,
    quality_warnings: tuple[str, ...] = (),
    embedding: NDArray[np.float32] | None = None,
) -> Prediction:
    """Return what a row of probabilities says; without a threshold the first class alone is the prediction set."""
    # One sort serves the classes, the set and the abstention: 0.07 instead of 0.15 ms. Lists, because Python iterates
    # over them faster than over arrays.
    values, classes, threshold = row.tolist(), bundle.record.classes, bundle.record.threshold
    if not math.isfinite(sum(values)):
        return Prediction(path, None, float("nan"), (), "the model gave probabilities that are not finite")
    # Stable: equal probabilities keep the order of the classes on every machine.
    order: list[int] = np.argsort(-row, kind="stable").tolist()
    top = tuple([(classes[i], values[i]) for i in order[:top_k]])
    if threshold is None:
        return Prediction(path, *top[0], top, "", False, quality_warnings, (top[0][0],), embedding)
    prediction_set = tuple([classes[i] for i in order if values[i] >= threshold])
    return Prediction(path, *top[0], top, "", len(prediction_set) != 1, quality_warnings, prediction_set, embedding)


def abstains(bundle: Bundle, row: NDArray[np.float32]) -> bool:
    """Return whether a model abstains, as `to_prediction` has it, from a row of probabilities (num_classes,)."""
    threshold = bundle.record.threshold
    return threshold is not None and int(np.count_nonzero(row >= threshold)) != 1


def open_classifier(
    folder: str | os.PathLike[str], *, runtime: str | None = None, threads: int | None = None
) -> BundleClassifier:
    """Open a bundle for prediction, without Keras or TensorFlow.

    Args:
        folder: the bundle.
        runtime: one of `tellapart.bundles.runtimes.RUNTIMES`; None: the fastest here of those
            that give the reference images' probabilities.
        threads: for one call; None: all processors.

    Raises:
        BundleError: the bundle is damaged, or no runtime gives the probabilities that it should.
    """
    bundle = open_bundle(folder)
    return BundleClassifier(bundle, *choose(bundle, runtime, threads=threads))


def choose(bundle: Bundle, runtime: str | None, *, threads: int | None = None) -> tuple[str, Predictor]:
    """Open the runtime that was named, or the fastest one here, if it gives the reference images' probabilities.

    Raises:
        BundleError: it does not, or there is none.
    """
    if runtime is None:
        return _fastest(bundle, threads=threads)
    predict = open_runtime(bundle, runtime, threads=threads)
    if wrong := check_reference_images(bundle, predict, runtime):
        raise BundleError(
            f"{runtime} does not give the reference images' probabilities of {bundle.folder} here: {wrong}."
        )
    return runtime, predict


def _fastest(bundle: Bundle, *, threads: int | None = None) -> tuple[str, Predictor]:
    """Return the runtime that is fastest on one picture here, of those that give the reference images' probabilities.

    Takes about `_CHOICE_SECONDS` at most.

    Raises:
        BundleError: there is none.
    """
    began, refused = time.perf_counter(), []
    times: dict[str, tuple[float, Predictor]] = {}
    picture = np.random.default_rng(0).integers(0, 256, (1, *(bundle.record.image_px,) * 2, 3), np.uint8)
    names = [name for name in usable(bundle) if name not in FRAMEWORKS]
    # `RUNTIMES` lists the usually fastest ones first, so if time runs out only slow ones remain untried.
    for name in names:
        if times and time.perf_counter() - began > _CHOICE_SECONDS:
            break
        try:
            predict = open_runtime(bundle, name, threads=threads)
            wrong = check_reference_images(bundle, predict, name)
        except Exception as error:
            if not RUNTIMES[name].is_accelerated:
                raise
            wrong = str(error)  # a device that is not there, or that others have filled: the processor serves
        if wrong:
            refused.append(f"{name}: {wrong}")
            continue
        laps = []
        for _ in range(12):
            start = time.perf_counter()
            predict(picture)
            laps.append(time.perf_counter() - start)
        # Drop the first two calls, in which runtimes allocate memory.
        times[name] = (float(np.median(laps[2:])), predict)
    if not times:
        reasons = "; ".join(refused) or f"none of {', '.join(RUNTIMES)} is installed or passed when the bundle was made"
        raise BundleError(f"No runtime can run {bundle.folder} here: {reasons}.")
    best = min(times, key=lambda name: times[name][0])
    return best, times[best][1]


def explain_bundle(bundle: Bundle, *, threads: int = 1) -> Explain:
    """Return a function (pictures, class numbers) → heat maps (num_images, height, width) float32 in [0, 1].

    Raises:
        BundleError: the bundle holds no explanation graph.
    """
    import onnxruntime

    if bundle.explain_path is None:
        raise BundleError(f"{bundle.folder} holds no explanation graph: its network has no feature maps that it knows.")
    options = onnxruntime.SessionOptions()
    # One thread unless more are asked for: a server explains beside its predictions, and must not take their
    # processors.
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(bundle.explain_path, options, providers=["CPUExecutionProvider"])

    def explain(pictures: NDArray[np.uint8], targets: NDArray[np.int64]) -> NDArray[np.float32]:
        (heat,) = session.run(["heat"], {"image": pictures, "target": targets.astype(np.int64)})
        return to_heat(heat, pictures)  # the graph returns values before ReLU and scaling

    return explain
