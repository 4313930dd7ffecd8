"""Runs the model of a bundle: ONNX Runtime, OpenVINO, LiteRT, TensorFlow. Knows nothing about photos or HTTP.

A predictor maps (num_images, image_px, image_px, 3) uint8 to `Outputs`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Artefact, Bundle
from tellapart.bundles.parity import EXACT, REDUCED, Tolerance, parity
from tellapart.errors import BundleError, TellapartError, nearest
from tellapart.signal_stack import signal_stack_kept


class Outputs(NamedTuple):
    """What a model gives for a batch.

    Attributes:
        probabilities: (num_images, num_classes) float32.
        embeddings: (num_images, num_features) float32, what its last layer sees; None: the artefact has no such output.
    """

    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None


# For one thread at a time: OpenVINO's requests and LiteRT's interpreters hold the tensors of the call that is under
# way. Several threads get one each (`open_several`).
Predictor = Callable[[NDArray[np.uint8]], Outputs]


@dataclass(frozen=True)
class Runtime:
    """A way to run artefacts of one format.

    Attributes:
        format: of the artefacts that it opens.
        precisions: of their weights.
        package: that must be installed.
        tolerance: how far what it says may be from the Keras model (`tolerance_of` other weights).
        opens: (file, threads) → predictor.
        opens_several: (file, callers) → as many predictors, on one processor each, to be called at the same time; None:
            it is the same as to open it several times.
        distribution: that must have brought the package, where several do; "": any.
        proved_as: the runtime whose proof counts for this one, which is not there when most bundles are made: the same
            file in the same arithmetic on another device. Reference images are compared wherever it is opened.
        is_accelerated: whether it runs on a device of its own, where large batches are faster.
    """

    format: str
    precisions: tuple[str, ...]
    package: str
    tolerance: Tolerance
    opens: Callable[[Path, int], Predictor]
    opens_several: Callable[[Path, int], list[Predictor]] | None = None
    distribution: str = ""
    proved_as: str = ""
    is_accelerated: bool = False

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        if importlib.util.find_spec(self.package) is None:
            return False
        if self.distribution:
            try:
                importlib.metadata.distribution(self.distribution)
            except importlib.metadata.PackageNotFoundError:
                return False
        return True

    def runs(self, artefact: Artefact) -> bool:
        """Whether it opens an artefact."""
        return artefact.format == self.format and artefact.precision in self.precisions

    def tolerance_of(self, artefact: Artefact) -> Tolerance:
        """Return how far what it says may be from what the bundle says of its reference images."""
        # Runtimes round smaller weights back in ways of their own.
        return self.tolerance if artefact.precision == _FLOAT[0] else REDUCED


def _onnxruntime_int8(path: Path, threads: int) -> Predictor:
    return _onnxruntime(path, threads, integers=True)


def _onnxruntime(path: Path, threads: int, *, integers: bool = False) -> Predictor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors only
    # Idle threads spin for the next picture, and where two networks answer in turns those of one take the processors
    # from the other: 12 to 17 ms a picture instead of 6 to 7 (docs/experiments.md). Alone nothing is lost without it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not integers:
        # Weights alone are int8: make floats of them once, when the file is opened, not for every picture.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return _session_predictor(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


def _onnxruntime_cuda(path: Path, threads: int) -> Predictor:
    import onnxruntime

    del threads  # the arithmetic is the device's
    provider, session = "CUDAExecutionProvider", None
    if provider in onnxruntime.get_available_providers():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()  # of CUDA and cuDNN, from their packages
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # as on a processor, above
        # Without TF32 it is the float32 that was proved. The exhaustive search, the default, is made again for each new
        # batch size, while a request waits.
        settings = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        onnxruntime.set_default_logger_severity(4)  # what it cannot load is said below
        session = onnxruntime.InferenceSession(path, options, providers=[(provider, settings), "CPUExecutionProvider"])
        onnxruntime.set_default_logger_severity(2)  # its default
    # Where CUDA or a device is missing it takes the processor, and only its log says so.
    if session is None or provider not in session.get_providers():
        raise BundleError(
            "ONNX Runtime can't use CUDA here: it found no GPU, or no CUDA and cuDNN of its version. "
            "`tellapart doctor` names the GPU; onnxruntime-gpu[cuda,cudnn] brings the libraries."
        )
    return _session_predictor(session)


def _onnxruntime_cuda_shared(path: Path, callers: int) -> list[Predictor]:
    """One session for all: it may be called from several threads, and its weights lie on the device once."""
    return [_onnxruntime_cuda(path, 1)] * callers


def _session_predictor(session: Any) -> Predictor:
    input_name = session.get_inputs()[0].name
    output_names = [output for output in _OUTPUTS if output in {node.name for node in session.get_outputs()}]

    def predict(images: NDArray[np.uint8]) -> Outputs:
        return _outputs(session.run(output_names, {input_name: images}))

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


def _openvino_one_by_one(path: Path, threads: int) -> Predictor:
    """Open an int8 graph for one picture at a time, whatever comes: of a free batch size it can crash on AMX."""
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    return _each_alone(_openvino_request(_openvino_model(path, "f32", settings, batch=1)))


def _openvino_one_by_one_streams(path: Path, callers: int) -> list[Predictor]:
    settings = {"NUM_STREAMS": callers, "INFERENCE_NUM_THREADS": callers}
    model = _openvino_model(path, "f32", settings, batch=1)
    return [_each_alone(_openvino_request(model)) for _ in range(callers)]


def _each_alone(predict: Predictor) -> Predictor:
    """Return a predictor that hands on one picture at a time."""

    def predict_all(images: NDArray[np.uint8]) -> Outputs:
        parts = [predict(images[at : at + 1]) for at in range(len(images))]
        embeddings = [part.embeddings for part in parts if part.embeddings is not None]
        return Outputs(
            np.concatenate([part.probabilities for part in parts]), np.concatenate(embeddings) if embeddings else None
        )

    return predict_all


def _openvino_model(path: Path, precision: str, settings: dict[str, Any], *, batch: int | None = None) -> Any:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if batch is not None:
        model.reshape([batch, *list(model.inputs[0].partial_shape)[1:]])
    # Pinning helps a single process (265 requests/s, 247 without), but OpenVINO pins several processes to the same
    # processors: two of them did 139 requests/s with pinning and 275 without.
    is_alone = settings["INFERENCE_NUM_THREADS"] >= (os.cpu_count() or 1)
    common = {"INFERENCE_PRECISION_HINT": precision, "ENABLE_CPU_PINNING": is_alone}
    with signal_stack_kept():
        return core.compile_model(model, "CPU", common | settings)


def _openvino_request(model: Any) -> Predictor:
    from openvino import Tensor

    request = model.create_infer_request()
    output_names = {name for output in model.outputs for name in output.get_names()}
    outputs = [model.output(name) for name in _OUTPUTS if name in output_names]

    def predict(images: NDArray[np.uint8]) -> Outputs:
        # NumPy's memory is read directly, which OpenVINO refuses where it may not be written or is not in one piece. A
        # tensor and not an array: what OpenVINO does in Python to make one takes 0.1 ms.
        if not (images.flags.writeable and images.flags.c_contiguous):
            images = np.array(images, order="C")
        found = request.infer(Tensor(images, shared_memory=True), share_inputs=True, share_outputs=True)
        # Copy: the next call overwrites these tensors.
        return _outputs([np.array(found[output], np.float32) for output in outputs])

    return predict


def _litert(path: Path, threads: int) -> Predictor:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    runner = interpreter.get_signature_runner("serving_default")
    input_index = next(iter(runner.get_input_details().values()))["index"]
    details = runner.get_output_details()
    output_indices = [details[name]["index"] for name in _OUTPUTS if name in details]
    state = {"count": 0}

    def predict(images: NDArray[np.uint8]) -> Outputs:
        if state["count"] != len(images):
            # The interpreter's memory fits one batch size; allocate again only when the size changes.
            interpreter.resize_tensor_input(input_index, images.shape)
            interpreter.allocate_tensors()
            state["count"] = len(images)
        interpreter.set_tensor(input_index, images)
        interpreter.invoke()
        return _outputs([interpreter.get_tensor(index) for index in output_indices])

    return predict


def _litert_one_by_one(path: Path, threads: int) -> Predictor:
    return _each_alone(_litert(path, threads))


def _tensorflow(path: Path, threads: int) -> Predictor:
    import tensorflow as tf

    del threads  # TensorFlow's threads are the process's
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    (input_name,) = signature.structured_input_signature[1]

    def predict(images: NDArray[np.uint8]) -> Outputs:
        outputs = signature(**{input_name: tf.constant(images)})
        return _outputs([outputs[output] for output in _OUTPUTS if output in outputs])

    return predict


def _keras(path: Path, threads: int) -> Predictor:
    import keras

    del threads  # the backend's threads are the process's
    model = keras.saving.load_model(path, compile=False)
    return lambda images: _outputs([model.predict_on_batch(images)])


# Probabilities first: `_outputs` takes them by place.
_OUTPUTS = "probabilities", "embedding"
"""Of an artefact, by name; bundles of other makers may lack the second."""


def _outputs(tensors: Sequence[Any]) -> Outputs:
    """Return what an artefact gave for `_OUTPUTS`, or for the first of them alone."""
    probabilities, *rest = (np.asarray(tensor, np.float32) for tensor in tensors)
    return Outputs(probabilities, rest[0] if rest else None)


_FLOAT = "float32", "float16", "int8-weights"
"""Precisions of weights that are computed with in float32, in bfloat16, or as LiteRT chooses."""
_INT8 = ("int8",)

RUNTIMES: dict[str, Runtime] = {
    "onnxruntime-cuda": Runtime(
        "onnx", _FLOAT, "onnxruntime", EXACT, _onnxruntime_cuda, _onnxruntime_cuda_shared,
        distribution="onnxruntime-gpu", proved_as="onnxruntime", is_accelerated=True,
    ),
    "openvino-bf16": Runtime("onnx", _FLOAT, "openvino", REDUCED, _openvino("bf16"), _openvino_streams("bf16")),
    "openvino-f32": Runtime("onnx", _FLOAT, "openvino", EXACT, _openvino("f32"), _openvino_streams("f32")),
    "onnxruntime": Runtime("onnx", _FLOAT, "onnxruntime", EXACT, _onnxruntime),
    "openvino-ir": Runtime("openvino", _FLOAT[:1], "openvino", EXACT, _openvino("f32"), _openvino_streams("f32")),
    "litert": Runtime("litert", _FLOAT, "ai_edge_litert", EXACT, _litert),
    "openvino-int8": Runtime("onnx", _INT8, "openvino", REDUCED, _openvino_one_by_one, _openvino_one_by_one_streams),
    "onnxruntime-int8": Runtime("onnx", _INT8, "onnxruntime", REDUCED, _onnxruntime_int8),
    "litert-int8": Runtime("litert", _INT8, "ai_edge_litert", REDUCED, _litert_one_by_one),
    "tensorflow": Runtime("saved_model", _FLOAT[:1], "tensorflow", EXACT, _tensorflow),
    "keras": Runtime("keras", _FLOAT[:1], "keras", EXACT, _keras),
}  # fmt: skip
"""Every way to run a bundle, those first that are mostly the fastest: a choice that takes too long stops early."""

FRAMEWORKS = frozenset({"tensorflow", "keras"})
"""Runtimes that are proved and measured, and taken only by name: they are what a bundle does without."""


def usable(bundle: Bundle) -> list[str]:
    """Return the runtimes that are installed, whose artefact is there and passed the parity gate when it was made."""
    return [
        name
        for name, runtime in RUNTIMES.items()
        if runtime.installed
        and (artefact := artefact_for(bundle, runtime)) is not None
        and (proof := artefact.proofs.get(runtime.proved_as or name)) is not None
        and proof.passed
    ]


def artefact_for(bundle: Bundle, runtime: Runtime) -> Artefact | None:
    """Return the first artefact of a bundle that a runtime opens; None: there is none."""
    return next(filter(runtime.runs, bundle.record.artefacts), None)


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
        needed = runtime.distribution or runtime.package
        raise BundleError(f"The runtime {name} needs the package {needed}, which is not installed.")
    artefact = artefact_for(bundle, runtime)
    if artefact is None:
        raise BundleError(
            f"{bundle.folder} has no {runtime.format} model for {name}. Export with --format {runtime.format}."
        )
    proof = artefact.proofs.get(runtime.proved_as or name)
    if proof is not None and not proof.passed:
        raise BundleError(f"{name} was refused when {bundle.folder} was made: {proof.reason}.")
    return runtime, bundle.path(artefact)


def answers(
    runtime: Runtime, path: Path, batches: Iterable[NDArray[np.uint8]], *, threads: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Open an artefact and yield its probabilities for each batch.

    Raises:
        BundleError: it cannot be opened or run.
    """
    try:
        predict = runtime.opens(path, threads or os.cpu_count() or 1)
        for batch in batches:
            yield predict(batch).probabilities
    except TellapartError:  # a photo that is gone is no fault of the runtime
        raise
    except Exception as error:  # each runtime has errors of its own, with no common base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path.name} does not run in {runtime.package}: {first}") from error


def reference_pictures(bundle: Bundle) -> NDArray[np.uint8]:
    """Return the reference images as the network sees them: (num_images, image_px, image_px, 3) uint8."""
    from tellapart.data.decode import decode_square
    from tellapart.data.image_file import read_file

    record = bundle.record
    return np.array([
        decode_square(read_file(bundle.folder / name), record.image_px, max_pixels=record.max_pixels)
        for name in record.reference_images
    ], np.uint8)  # fmt: skip


def check_reference_images(bundle: Bundle, predict: Predictor, name: str) -> str:
    """Run the reference images from their files in a runtime and return what is wrong; "" when all is as it was."""
    record = bundle.record
    if not record.reference_images:
        return ""
    pictures, expected = reference_pictures(bundle), np.array(list(record.reference_images.values()), np.float32)
    probabilities = np.concatenate([predict(picture[None]).probabilities for picture in pictures])
    artefact = artefact_for(bundle, RUNTIMES[name])
    assert artefact is not None  # `predict` is of it
    # Without the margin: a handful of images says nothing about accuracy.
    tolerance = replace(RUNTIMES[name].tolerance_of(artefact), margin=None)
    proof = parity(expected, probabilities, None, tolerance)
    return "" if proof.passed else proof.reason
