"""Runs the model of a bundle: ONNX Runtime, OpenVINO, LiteRT, TensorFlow. Knows nothing about photos or HTTP.

A predictor maps (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Bundle
from tellapart.errors import BundleError, TellapartError, nearest

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Runtime:
    """A way to run an artefact.

    Attributes:
        artefact: which format of the bundle it opens.
        package: that must be installed.
        reduced: whether it computes in less than float32.
        opens: (file, threads) → predictor.
        opens_several: (file, callers) → as many predictors, on one processor each, to be called at the same time; None:
            it is the same as to open it several times.
    """

    artefact: str
    package: str
    reduced: bool
    opens: Callable[[Path, int], Predictor]
    opens_several: Callable[[Path, int], list[Predictor]] | None = None

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None


def _onnxruntime(path: Path, threads: int) -> Predictor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(session.run(["probabilities"], {name: images})[0], np.float32)

    return predict


def _openvino(precision: str) -> Callable[[Path, int], Predictor]:
    def opens(path: Path, threads: int) -> Predictor:
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        return _openvino_request(_openvino_model(path, precision, settings))

    return opens


def _openvino_streams(precision: str) -> Callable[[Path, int], list[Predictor]]:
    """One model with a stream for each caller: models of one thread each may all be put on the same processor."""

    def opens(path: Path, callers: int) -> list[Predictor]:
        model = _openvino_model(path, precision, {"NUM_STREAMS": callers, "INFERENCE_NUM_THREADS": callers})
        return [_openvino_request(model) for _ in range(callers)]

    return opens


def _openvino_model(path: Path, precision: str, settings: dict[str, Any]) -> Any:
    import openvino

    core = openvino.Core()
    # Pinned threads are faster, but those of several processes would all be put on the same processors.
    is_alone = settings["INFERENCE_NUM_THREADS"] >= (os.cpu_count() or 1)
    common = {"INFERENCE_PRECISION_HINT": precision, "ENABLE_CPU_PINNING": is_alone}
    return core.compile_model(core.read_model(path), "CPU", common | settings)


def _openvino_request(model: Any) -> Predictor:
    request, output = model.create_infer_request(), model.output("probabilities")

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        request.infer([images], share_inputs=True)
        return np.array(request.get_tensor(output).data, np.float32)

    return predict


def _litert(path: Path, threads: int) -> Predictor:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    runner = interpreter.get_signature_runner("serving_default")
    given = next(iter(runner.get_input_details().values()))["index"]
    output = runner.get_output_details()["probabilities"]["index"]
    state = {"count": 0}

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if state["count"] != len(images):
            interpreter.resize_tensor_input(given, images.shape)
            interpreter.allocate_tensors()
            state["count"] = len(images)
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(output), np.float32)

    return predict


def _tensorflow(path: Path, threads: int) -> Predictor:
    import tensorflow as tf

    del threads  # TensorFlow's threads are the process's
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    (name,) = served.structured_input_signature[1]

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(served(**{name: tf.constant(images)})["probabilities"], np.float32)

    return predict


def _keras(path: Path, threads: int) -> Predictor:
    import keras

    del threads  # the backend's threads are the process's
    model = keras.saving.load_model(path, compile=False)
    return lambda images: np.asarray(model.predict_on_batch(images), np.float32)


RUNTIMES: dict[str, Runtime] = {
    "openvino-bf16": Runtime("onnx", "openvino", True, _openvino("bf16"), _openvino_streams("bf16")),
    "openvino-f32": Runtime("onnx", "openvino", False, _openvino("f32"), _openvino_streams("f32")),
    "onnxruntime": Runtime("onnx", "onnxruntime", False, _onnxruntime),
    "openvino-ir": Runtime("openvino", "openvino", False, _openvino("f32"), _openvino_streams("f32")),
    "litert": Runtime("litert", "ai_edge_litert", False, _litert),
    "tensorflow": Runtime("saved_model", "tensorflow", False, _tensorflow),
    "keras": Runtime("keras", "keras", False, _keras),
}
"""Every way to run a bundle, those first that are mostly the fastest: a choice that takes too long stops early."""

FRAMEWORKS = frozenset({"tensorflow", "keras"})
"""Runtimes that are proved and measured, and taken only by name: they are what a bundle does without."""


def usable(bundle: Bundle) -> list[str]:
    """Return the runtimes that are installed, whose artefact is there and passed the parity gate when it was made."""
    names = []
    for name, runtime in RUNTIMES.items():
        artefact = bundle.record.artefacts.get(runtime.artefact)
        if artefact is not None and runtime.installed:
            proof = artefact.proofs.get(name)
            if proof is not None and proof.passed:
                names.append(name)
    return names


def open_runtime(bundle: Bundle, name: str, *, threads: int | None = None) -> Predictor:
    """Open the bundle's model in a runtime.

    Args:
        bundle: which.
        name: one of `RUNTIMES`.
        threads: for one call; None: all processors.

    Raises:
        BundleError: there is no such runtime, it is not installed, its artefact is missing or was refused.
    """
    runtime, path = _checked(bundle, name)
    return runtime.opens(path, threads or os.cpu_count() or 1)


def open_several(bundle: Bundle, name: str, callers: int) -> list[Predictor]:
    """Open the bundle's model so that each of `callers` threads has a predictor of its own, on one processor.

    Raises:
        BundleError: as `open_runtime`.
    """
    runtime, path = _checked(bundle, name)
    if runtime.opens_several is not None:
        return runtime.opens_several(path, callers)
    return [runtime.opens(path, 1) for _ in range(callers)]


def _checked(bundle: Bundle, name: str) -> tuple[Runtime, Path]:
    """Return a runtime and its artefact in the bundle, or say why it cannot be opened."""
    if name not in RUNTIMES:
        raise BundleError(
            f"There is no runtime {name!r}.{nearest(name, RUNTIMES)} Expected one of {', '.join(RUNTIMES)}."
        )
    runtime = RUNTIMES[name]
    if not runtime.installed:
        raise BundleError(f"The runtime {name} needs the package {runtime.package}, which is not installed.")
    if runtime.artefact not in bundle.record.artefacts:
        raise BundleError(
            f"{bundle.folder} has no {runtime.artefact} model for {name}. Export with --format {runtime.artefact}."
        )
    proof = bundle.record.artefacts[runtime.artefact].proofs.get(name)
    if proof is not None and not proof.passed:
        raise BundleError(f"{name} was refused when {bundle.folder} was made: {proof.reason}.")
    return runtime, bundle.path(runtime.artefact)


def answers(
    runtime: Runtime, path: Path, batches: Iterable[NDArray[np.uint8]], *, threads: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Open an artefact and yield what it says of each batch.

    Raises:
        BundleError: it cannot be opened or run.
    """
    try:
        predict = runtime.opens(path, threads or os.cpu_count() or 1)
        for batch in batches:
            yield predict(batch)
    except TellapartError:  # a photo that is gone is no fault of the runtime
        raise
    except Exception as error:  # each runtime has errors of its own, with no common base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path.name} does not run in {runtime.package}: {first}") from error


def check_golden(bundle: Bundle, predict: Predictor, *, reduced: bool) -> str:
    """Run the golden photos from their files and return what is wrong; "" when all is as it was."""
    from tellapart.bundles.parity import parity
    from tellapart.data.decode import decode_square
    from tellapart.data.image_file import read_file

    names = list(bundle.record.golden)
    if not names:
        return ""
    record: Any = bundle.record
    pictures = np.stack([
        decode_square(read_file(bundle.folder / name), record.image_px, max_pixels=record.max_pixels) for name in names
    ])  # fmt: skip
    expected = np.array([record.golden[name] for name in names], np.float32)
    proof = parity(expected, np.concatenate([predict(picture[None]) for picture in pictures]), None, reduced=reduced)
    return "" if proof.passed else proof.reason
