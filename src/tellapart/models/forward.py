"""What a network says of many pictures, from the fastest runtime that agrees with Keras. Knows nothing about photos.

OpenVINO takes 4.4 ms for a picture of 224 px through MobileNetV2 on two cores, where Keras on TensorFlow takes 11.3,
and in float32 both give the same to 2e-6 of the largest value (docs/experiments.md). To convert a network takes
seconds.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.signal_stack import signal_stack_kept

logger = logging.getLogger(__name__)

Outputs = list[NDArray[np.float32]]

_AT_ONCE = 8
"""Pictures in a request: each processor works on one of its own."""
_TOLERANCE = 1e-4
"""Of the largest value of an output, between OpenVINO and Keras; more, and Keras is asked for all."""
_WORTHWHILE_PIXELS = 400 * 224 * 224
"""Fewer are through Keras before the network is converted."""
_DEEP = 60
"""Layers; a shallow network of small pictures is as fast in Keras."""
_LARGE_PX = 128
"""The convnet takes 15.1 ms a picture of 224 px in Keras and 9.6 in OpenVINO, and 1.15 and 0.97 of 64 px."""


class Forward:
    """A network's forward pass.

    Attributes:
        runtime: "openvino" or "keras".

    Args:
        model: from (num_images, image_px, image_px, 3) uint8 to one output or several.
        is_converted: whether another runtime may answer, where there is one: see `pays`.
    """

    def __init__(self, model: keras.Model, *, is_converted: bool) -> None:
        self._model = model
        # With the weights that the network has now: what is converted does not follow it when they are changed.
        self._compiled = _compiled(model) if is_converted and _can_be_faster(model) else None
        self._is_proved = False

    @property
    def runtime(self) -> str:
        """Which runtime answers."""
        return "openvino" if self._compiled is not None else "keras"

    def __call__(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[Outputs]:
        """Yield the outputs for each batch, each (batch, …) float32, in the order of the model's.

        The first pictures go through Keras as well: a runtime that does not agree is not asked again.
        """
        for images in batches:
            # Eight pictures through both, once. From then on one runtime answers for the whole data set.
            if self._compiled is not None and not self._is_proved:
                self._is_proved = self._agrees(images[:_AT_ONCE])
                if not self._is_proved:
                    self._compiled = None
            yield self._by_keras(images) if self._compiled is None else self._by_openvino(images)

    def _by_keras(self, images: NDArray[np.uint8]) -> Outputs:
        outputs = self._model.predict_on_batch(images)
        return [np.asarray(part, np.float32) for part in (outputs if isinstance(outputs, list | tuple) else [outputs])]

    def _by_openvino(self, images: NDArray[np.uint8]) -> Outputs:
        import openvino

        # Several requests at a time: one after the other took 5.3 ms a photo where the queue takes 4.4
        # (docs/experiments.md).
        queue = openvino.AsyncInferQueue(self._compiled)
        outputs_at: dict[int, Outputs] = {}

        def keep(request: Any, start: int) -> None:
            # Copies: the request that comes next writes into the same tensors.
            outputs_at[start] = [np.array(request.get_output_tensor(i).data, np.float32) for i in range(num_outputs)]

        num_outputs = len(self._model.outputs)
        queue.set_callback(keep)
        for start in range(0, len(images), _AT_ONCE):
            queue.start_async([images[start : start + _AT_ONCE]], start)
        queue.wait_all()
        # Requests end in any order; their starts put them back into that of the pictures.
        return [np.concatenate([outputs_at[start][i] for start in sorted(outputs_at)]) for i in range(num_outputs)]

    def _agrees(self, images: NDArray[np.uint8]) -> bool:
        pairs = zip(self._by_keras(images), self._by_openvino(images), strict=True)
        return all(float(np.abs(a - b).max()) <= _TOLERANCE * float(np.abs(a).max()) for a, b in pairs)


def pays(num_images: int, image_px: int) -> bool:
    """Return whether so many pictures take longer through Keras than it takes to convert the network."""
    return num_images * image_px**2 >= _WORTHWHILE_PIXELS


def _can_be_faster(model: keras.Model) -> bool:
    if keras.backend.backend() != "tensorflow" or importlib.util.find_spec("openvino") is None or _has_gpu():
        return False
    return _depth(model) >= _DEEP or (model.input_shape[1] or 0) >= _LARGE_PX


def _depth(model: keras.Model) -> int:
    return sum(_depth(layer) if isinstance(layer, keras.Model) else 1 for layer in model.layers)


def _has_gpu() -> bool:
    return any(not device.startswith("cpu") for device in keras.distribution.list_devices())


def _compiled(model: keras.Model) -> Any:
    import openvino
    import tensorflow as tf

    # Any number of pictures: the last request of a data set is shorter.
    shape = (None, *model.input_shape[1:])
    traced = tf.function(lambda image: model(image, training=False), input_signature=[tf.TensorSpec(shape, tf.uint8)])
    try:
        converted = openvino.convert_model(traced.get_concrete_function())
    except Exception as error:  # noqa: BLE001  # an operation that OpenVINO does not know; its errors have no base
        logger.info("%s is not converted for OpenVINO: %s", model.name, error)
        return None
    # float32, whatever the processor offers: in bfloat16 features differ by up to 0.31 of the largest
    # (docs/experiments.md). Pinned threads of two processes may end on the same processors.
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    with signal_stack_kept():
        return openvino.Core().compile_model(converted, "CPU", settings)
