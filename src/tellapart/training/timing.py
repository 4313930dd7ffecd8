"""Measures steps before training: which precision is faster, and how many epochs fit a time.

Knows nothing about photos on disk or checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.data.batches import TrainingBatches
from tellapart.models.forward import Forward
from tellapart.settings import Stage
from tellapart.training.environment import accelerators, cpu_features

_WARM_UP = 2
"""Steps that come first, uncounted: they compile."""
_TIMED, _UNSTEADY = 8, 2
"""Steps of a measurement, and how many of them come before batches are made as fast as they are used."""
_SECONDS_TO_TIME, _FEWEST_TIMED = 1.5, 5
"""Slow steps are steady too: no more of them than these seconds, but a few. With the warm-up, ten of MobileNetV2 at
224 px took longer than an epoch of 280 photos."""
_WORTHWHILE = 0.9
"""bfloat16 must take at most this share of float32's time: below that it costs accuracy for nothing."""

_CLEAR = 0.5
"""A convolution that takes less of float32's time makes whole steps faster by more than a tenth: on an EPYC with
avx512_bf16 it took 0.30 to 0.38 of it, and whole steps 0.54 to 0.67. To time both takes seven seconds."""


@dataclass(frozen=True)
class Precision:
    """The chosen precision and the measurement behind it.

    Attributes:
        name: "float32" or "mixed_bfloat16".
        milliseconds_per_image: of a training step in each precision that was timed.
        reason: why this one.
        compile_seconds: that its first step takes longer than others, where steps were timed.
        timed_px: side of the pictures of those steps; 0 where none were timed.
    """

    name: str
    milliseconds_per_image: dict[str, float]
    reason: str
    compile_seconds: float = 0.0
    timed_px: int = 0


def choose_precision(wanted: str, make_model: Callable[[str], keras.Model], batches: TrainingBatches) -> Precision:
    """Choose float32 or mixed bfloat16 by timing a few steps of each.

    Only a processor with bfloat16 instructions, or a GPU, can gain: elsewhere nothing is measured. Where one
    convolution is no faster, or faster by far, whole steps are not timed: building them takes seconds.
    """
    if wanted != "auto":
        return Precision(wanted, {}, "set in the recipe")
    if accelerators() and keras.backend.backend() == "jax":
        return precision_on_device(wanted, batches.image_px)
    if not accelerators() and not {"avx512_bf16", "amx_bf16"} & set(cpu_features()):
        return Precision("float32", {}, "the processor has no bfloat16 instructions")
    # At half the side, which is what the second convolution of the reference network sees, with 32 and 64 channels.
    float32_ms, bfloat16_ms = _convolution_milliseconds(batches.image_px // 2)
    reason = f"a convolution takes {bfloat16_ms:.1f} ms in bfloat16 and {float32_ms:.1f} ms in float32"
    if bfloat16_ms > _WORTHWHILE * float32_ms:
        return Precision("float32", {}, reason)
    if bfloat16_ms < _CLEAR * float32_ms:
        return Precision("mixed_bfloat16", {}, reason)
    # The convolution does not settle it: build both networks and time their steps.
    models = {name: make_model(name) for name in ("float32", "mixed_bfloat16")}
    first = {name: _fitted(model, batches, _WARM_UP) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(2):  # in turn: other work on the machine slows both alike
        for name, model in models.items():
            seconds[name] += _fitted(model, batches, _TIMED)[_UNSTEADY:]
    times = {name: 1000 * float(np.median(step_seconds)) / batches.batch_size for name, step_seconds in seconds.items()}
    name, reason = "float32", "mixed_bfloat16 is not faster by a tenth"
    if times["mixed_bfloat16"] < _WORTHWHILE * times["float32"]:
        name, reason = "mixed_bfloat16", "faster by measurement"
    return Precision(name, times, reason, sum(first[name]), batches.image_px)


def precision_on_device(wanted: str, image_px: int) -> Precision:
    """Choose on an accelerator under JAX, for pictures of `image_px`, by compiled convolutions.

    To compile whole steps in both precisions takes longer than many a training there.
    """
    from tellapart.training.on_device import convolution_milliseconds

    if wanted != "auto":
        return Precision(wanted, {}, "set in the recipe")
    times = convolution_milliseconds(image_px // 2)
    bfloat16_ms, float32_ms = times["bfloat16"], times["float32"]
    name = "mixed_bfloat16" if bfloat16_ms <= _WORTHWHILE * float32_ms else "float32"
    return Precision(
        name, {}, f"a convolution takes {bfloat16_ms:.2f} ms in bfloat16 and {float32_ms:.2f} ms in float32"
    )


def _convolution_milliseconds(image_px: int) -> tuple[float, float]:
    """Return the shortest time of a 3×3 convolution of 32 pictures, 32 to 64 channels, in float32 and bfloat16."""
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(32, image_px, image_px, 32)), rng.normal(size=(3, 3, 32, 64))
    operands_by_name = {name: [keras.ops.convert_to_tensor(part, name) for part in (images, kernel)] for name in times}
    for _ in range(_WARM_UP + 4):  # in turn: other work on the machine slows both alike
        for name, operands in operands_by_name.items():
            start = time.perf_counter()
            # Reading one value waits for the result: some backends return before it is there.
            float(keras.ops.conv(*operands, padding="same")[0, 0, 0, 0])
            times[name].append(1000 * (time.perf_counter() - start))
    float32_ms, bfloat16_ms = (min(milliseconds[_WARM_UP:]) for milliseconds in times.values())
    return float32_ms, bfloat16_ms


@dataclass(frozen=True)
class StepTime:
    """What training costs at one picture size.

    Attributes:
        per_image: seconds for one picture, batch making included: the median of a few steps.
        compiling: seconds that the first step takes longer than others.
    """

    per_image: float
    compiling: float


def step_time(model: keras.Model, batches: TrainingBatches) -> StepTime:
    """Time a few training steps. They change the model: see `tellapart.training.network.unchanged`."""
    first, times = _fitted(model, batches, _WARM_UP), _fitted(model, batches, _TIMED)[_UNSTEADY:]
    usual = float(np.median(times))
    return StepTime(usual / batches.batch_size, max(sum(first) - _WARM_UP * usual, 0.0))


class _Few(keras.utils.PyDataset):
    """A few batches of many, made by as many threads."""

    def __init__(self, batches: TrainingBatches, steps: int) -> None:
        super().__init__(workers=batches.workers, use_multiprocessing=False, max_queue_size=batches.max_queue_size)
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        return self._batches[index % len(self._batches)]


class _Clock(keras.callbacks.Callback):
    """Notes when each step is over, with its loss known."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # Reading the loss waits for the step. Otherwise only its dispatch would be timed.
        float((logs or {})["loss"])
        self.times.append(time.perf_counter())
        if self.times[-1] - self.times[0] > _SECONDS_TO_TIME and len(self.times) > _FEWEST_TIMED:
            self.model.stop_training = True


def _fitted(model: keras.Model, batches: TrainingBatches, steps: int) -> list[float]:
    """Return the seconds of each step, as training does them: `train_on_batch` takes up to 10 ms more."""
    clock = _Clock()
    model.fit(_Few(batches, steps), epochs=1, shuffle=False, verbose=0, callbacks=[clock])
    return [float(seconds) for seconds in np.diff(clock.times)]


def seconds_per_prediction(forward: Forward, images: NDArray[np.uint8], rounds: int = 3) -> float:
    """Return the median time of naming pictures, per picture; `images` is (num_images, height, width, 3) uint8."""
    times = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        # The forward pass is a generator, so it runs only while somebody iterates.
        for _ in forward([images]):
            pass
        times.append(time.perf_counter() - start)
    # The first round compiles, and compares runtimes.
    return float(np.median(times[1:])) / len(images)


@dataclass(frozen=True)
class Deadline:
    """When a run must be over, and what was measured to keep to it.

    Attributes:
        at: by `time.time`.
        forward: seconds that a photo takes through the network as it is saved.
        precision: of training, where it was measured already.
    """

    at: float
    forward: float
    precision: Precision | None = None


@dataclass(frozen=True)
class Budget:
    """A time to keep to, and what the parts of a run cost.

    Attributes:
        deadline: when everything must be done, by `time.time`.
        epoch_seconds: seconds for an epoch at each picture size, validation aside.
        compile_seconds: seconds before the first step at each picture size that has not been trained at yet.
        validation_seconds: seconds for one validation.
        final_seconds: seconds for everything after training.
        validate_every: epochs between two validations.
        compiled_px: picture size for which the network that was timed has its step compiled; None: for none.
        in_whole_epochs: whether no epoch may be of a part of the photos.
    """

    deadline: float
    epoch_seconds: dict[int, float]
    compile_seconds: dict[int, float]
    validation_seconds: float
    final_seconds: float
    validate_every: int
    compiled_px: int | None = None
    in_whole_epochs: bool = False

    @property
    def training_ends(self) -> float:
        """When the last epoch must be over, by `time.time`."""
        return self.deadline - self.final_seconds

    def learn(self, image_px: int, seconds: float, share: float = 1.0) -> None:
        """Take the measured mean `seconds` of an epoch of a share of the photos, validations included, for the next."""
        # From now on the step of this size is compiled.
        self.compile_seconds.pop(image_px, None)
        # `epochs_that_fit` adds the validations itself.
        self.epoch_seconds[image_px] = (seconds - self.validation_seconds / self.validate_every) / share

    def epochs_that_fit(self, stages: Sequence[Stage], start: float) -> float:
        """Return how many epochs fit, when the share `start` of the schedule is done; below 0 when it is too late."""
        seconds, epoch, validation = self._left(stages, start)
        return seconds / (epoch + validation)

    def share_that_fits(self, stages: Sequence[Stage], start: float, epochs: int) -> float:
        """Return of how much of the photos so many epochs fit, each with its share of a validation."""
        seconds, epoch, validation = self._left(stages, start)
        return (seconds / epochs - validation) / epoch

    def _left(self, stages: Sequence[Stage], start: float) -> tuple[float, float, float]:
        """Return the seconds that are left, those of a mean epoch of what is left, and its part of a validation."""
        seconds = self.training_ends - time.time()
        total, edge, cost = sum(stage.share for stage in stages), 0.0, 0.0
        for stage in stages:
            # The part of the stage that is still ahead; of a stage that is over, nothing.
            low, edge = max(edge, start), edge + stage.share / total
            if edge > start + 1e-9:
                seconds -= self.compile_seconds.get(stage.image_px, 0.0)
            cost += max(edge - low, 0.0) * self.epoch_seconds[stage.image_px]
        return seconds, cost / (1 - start), self.validation_seconds / self.validate_every
