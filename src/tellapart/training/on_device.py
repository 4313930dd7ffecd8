"""Trains on an accelerator under JAX: photos lie in its memory, and many steps are one call. Knows no run folders.

What it does is what `keras.Model.fit` does with the same batches: the processor only draws what is random, some numbers
for each picture. A call runs `jax.lax.scan` over the steps with Keras' `stateless_call` and `stateless_apply`; while it
runs, the callbacks of the epoch before write their files.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.data.batches import CleanBatches, TrainingBatches
from tellapart.training.callbacks import EvaluatedWeights, normalisations
from tellapart.training.device_batches import draw, is_drawable, make, pack, unpack
from tellapart.training.distillation import loss_of
from tellapart.training.inputs import Inputs
from tellapart.training.schedule import PlannedRate

_CORES = os.cpu_count() or 1
_RESIDENT = 0.5
"""Share of the device's memory that photos may take; the network's activations need the rest."""
_BYTES_WHERE_UNKNOWN = 2 * 10**9
_PIXELS_AT_ONCE = 2**28
"""Of the training pictures in one call: a second or so, between two looks at the clock."""
_BYTES_AT_ONCE = 2**28
"""Of the pictures that are sent to the device ahead of a call, where they do not all fit."""


class State(NamedTuple):
    """The values of a model's variables, as Keras' stateless functions take them."""

    trainable: list[Any]
    non_trainable: list[Any]
    optimizer: list[Any]


class Metrics(NamedTuple):
    """Of steps, an entry for each, or sums over photos: the loss, how many were right, penalties on weights."""

    loss: Any
    right: Any
    penalty: Any


@dataclass(frozen=True)
class _Feed:
    """What one call gets: the steps `first` up to `last` of an epoch; `arguments` make pictures, targets and draws."""

    epoch: int
    first: int
    last: int
    batches: TrainingBatches
    arguments: Any

    @property
    def ends(self) -> bool:
        """Whether the epoch ends with it."""
        return self.last == len(self.batches)


@dataclass(frozen=True)
class _Called:
    """One call that may still be under way, and the validation after it, if there is one."""

    feed: _Feed
    state: State
    metrics: Metrics
    checked: tuple[State, list[Metrics]] | None


def keep_compiled(folder: Path) -> None:
    """Keep what XLA compiles in a folder, for later processes; JAX_COMPILATION_CACHE_DIR names another one."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX would keep only what took a second or more to compile, and choose the smallest entry by the file system.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def convolution_milliseconds(image_px: int, repeats: int = 32) -> dict[str, float]:
    """Return the shortest time of a 3×3 convolution, 64 to 64 channels, compiled, by the name of its precision.

    Many of them run in one call: a single one takes less than its call.
    """
    rng, shortest = np.random.default_rng(0), {}
    shape = (max(8, 2**17 // image_px**2), image_px, image_px, 64)
    images, kernel = rng.random(shape, np.float32) - 0.5, (rng.random((3, 3, 64, 64), np.float32) - 0.5) / 6
    convolve = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    convolve = partial(convolve, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jax.jit  # type: ignore[untyped-decorator]
    def chain(images: Any, kernel: Any) -> Any:
        return jax.lax.fori_loop(0, repeats, lambda _, x: convolve(x, kernel), images).sum()

    for name in ("float32", "bfloat16"):
        operands = jnp.asarray(images, name), jnp.asarray(kernel, name)
        chain(*operands).block_until_ready()  # compiles
        times = []
        for _ in range(4):
            start = time.perf_counter()
            chain(*operands).block_until_ready()
            times.append(1000 * (time.perf_counter() - start) / repeats)
        shortest[name] = min(times)
    return shortest


def peak_memory_mb() -> float | None:
    """Return the most memory of the device that has been in use, in MB (10^6 bytes); None where it is not known."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics["peak_bytes_in_use"] / 1e6 if "peak_bytes_in_use" in statistics else None


class OnDevice:
    """The steps of one model on one data set, compiled, and the photos on the device.

    Args:
        model: compiled, built for any picture size.
        rate: its learning rate.
        inputs: the photos, and the recipe.
        sizes: sides of the training pictures to come: their steps are compiled at once, while photos are read.
    """

    def __init__(self, model: keras.Model, rate: PlannedRate, inputs: Inputs, sizes: Sequence[int]) -> None:
        self.model = model
        self.rate = rate
        self.inputs = inputs
        loss = loss_of(inputs.recipe, inputs.num_classes)
        self._per_photo = getattr(loss, "call", loss)  # without the mean over the batch
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", _BYTES_WHERE_UNKNOWN)
        self._room = int(_RESIDENT * limit)
        # One thread: XLA times kernels on the device while it compiles, and two at once mislead each other. Four
        # functions took 31 and 64 s at once, and 12 one after the other (docs/experiments.md).
        self._compilers = ThreadPoolExecutor(1)
        self._compiled: dict[Any, Future[Any]] = {}
        self._sources: tuple[int, Any] | None = None
        self._targets = jax.device_put(inputs.training(16).targets)  # the same at any picture size
        # Steps first: they compile in the background while the photos below are read.
        for image_px in dict.fromkeys(sizes):
            batches = inputs.training(image_px)
            for first, last in self._calls(batches):
                self._steps(batches, last - first)
        self._clean = self._clean_pictures()
        self._parts = self._validation_parts()
        weights_only = self._values()._replace(optimizer=[])
        self._prepare = self._compile("prepare", self._prepared, self._values(), self._clean)
        if self._parts:
            self._validate = self._compile("validate", self._validated, weights_only, *self._parts[0]())

    def fit(
        self,
        image_px: int,
        *,
        first_epoch: int,
        last_epoch: int,
        share: float = 1.0,
        looks: Sequence[int],
        evaluated: EvaluatedWeights,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> None:
        """Train epochs, as `keras.Model.fit` does with these callbacks.

        Args:
            image_px: side of the training pictures.
            first_epoch: counted from 0.
            last_epoch: the first that is not trained.
            share: of the batches that an epoch has.
            looks: after which epochs, counted from 1, the validation photos are looked at.
            evaluated: gets the weights that were validated.
            callbacks: are called for epochs, and for the last step of each call.
        """
        watchers = keras.callbacks.CallbackList(list(callbacks), model=self.model)
        # From here on `state` is ahead of the model's variables, which `_report` sets to those of whole epochs only:
        # `train` relies on that when an epoch is given up.
        state, speed, totals = self._values(), self._speed(), np.zeros(2)
        self.model.stop_training = False
        watchers.on_train_begin()
        watchers.on_epoch_begin(first_epoch)
        waiting: deque[_Called] = deque()
        with ThreadPoolExecutor(1) as pool:
            for feed in _one_ahead(pool, self._feeds(image_px, first_epoch, last_epoch, share)):
                if self.model.stop_training:
                    break
                # JAX returns before the device is done, so the device works on this call while the callbacks below see
                # the previous one.
                state, metrics = self._steps(feed.batches, feed.last - feed.first).result()(
                    state, speed, *feed.arguments
                )
                is_validated = feed.ends and feed.epoch + 1 in looks and self._parts
                waiting.append(_Called(feed, state, metrics, self._check(state) if is_validated else None))
                if len(waiting) > 1:
                    self._report(waiting.popleft(), totals, last_epoch, evaluated, watchers)
        # After a stop, calls that were dispatched ahead are dropped: their epochs do not count.
        while waiting and not self.model.stop_training:
            self._report(waiting.popleft(), totals, last_epoch, evaluated, watchers)
        watchers.on_train_end()

    def seconds_per_image(self, image_px: int) -> float:
        """Return what a training picture costs, of one call; the model stays as it is."""
        feed = next(self._feeds(image_px, 0, 1))
        run = self._steps(feed.batches, feed.last - feed.first).result()
        state, speed, times = self._values(), self._speed(), []
        # Twice: the first call also sends the photos.
        for _ in range(2):
            start = time.perf_counter()
            jax.block_until_ready(run(state, speed, *feed.arguments()))
            times.append(time.perf_counter() - start)
        return min(times) / ((feed.last - feed.first) * feed.batches.batch_size)

    def _report(
        self, called: _Called, totals: NDArray[np.float64], last_epoch: int, evaluated: EvaluatedWeights, watchers: Any
    ) -> None:
        """Wait for a call, and let the callbacks see it."""
        feed, losses = called.feed, np.asarray(called.metrics.loss, np.float64)
        # The journal raises at the first loss that is not finite: tell it that step, not the last of the call.
        for step in np.flatnonzero(~np.isfinite(losses))[:1]:
            watchers.on_train_batch_end(feed.first + int(step), {"loss": float(losses[step])})
        # Running means over the epoch, as `keras.Model.fit` logs them.
        if not feed.first:
            totals[:] = 0
        totals += losses.sum() * feed.batches.batch_size, np.asarray(called.metrics.right).sum()
        loss, accuracy = (totals / (feed.last * feed.batches.batch_size)).tolist()
        watchers.on_train_batch_end(feed.last - 1, {"loss": loss})
        if not feed.ends:
            return
        logs = {"loss": loss, "accuracy": accuracy}
        if called.checked is not None:
            prepared, part_metrics = called.checked
            # Of one part only: penalties are on weights, which are the same in all parts.
            penalty = float(part_metrics[0].penalty)
            right, total = (sum(float(getattr(part, name)) for part in part_metrics) for name in ("right", "loss"))
            photos = self.inputs.num_validation
            logs |= {"val_loss": total / photos + penalty, "val_accuracy": right / photos}
            evaluated.weights = self._weights(prepared)
        # The checkpoint that the callbacks write reads the variables of the model: they must be this epoch's.
        self._assign(called.state)
        watchers.on_epoch_end(feed.epoch, logs)
        if feed.epoch + 1 < last_epoch:
            watchers.on_epoch_begin(feed.epoch + 1)

    def _check(self, state: State) -> tuple[State, list[Metrics]]:
        """Begin to validate what would be kept of a state."""
        prepared = self._prepare.result()(state, self._clean)
        return prepared, [self._validate.result()(prepared, *part()) for part in self._parts]

    # What is computed on the device

    def _trained(self, image_px: int, state: State, speed: Any, pictures: Any, targets: Any, draws: Any) -> Any:
        """Train some steps in turn: `draws` begin with the axis of steps; without them `pictures` and `targets` do."""

        def step(state: State, one: Any) -> tuple[State, Metrics]:
            images, rows = (unpack(one[0]), one[1]) if draws is None else make(pictures, targets, one, image_px)
            return self._stepped(state, images, rows)

        # Schedule and averaging are arguments of the compiled function: a new plan compiles nothing.
        with self.rate.given(speed[:3]), _replaced([self.model.optimizer], "ema_momentum", speed[3]):
            return jax.lax.scan(step, state, (pictures, targets) if draws is None else draws)

    def _stepped(self, state: State, images: Any, rows: Any) -> tuple[State, Metrics]:
        """Learn from one batch."""

        def loss_of_batch(trainable: Any) -> Any:
            probabilities, non_trainable, penalties = self.model.stateless_call(
                trainable, state.non_trainable, images, training=True, return_losses=True
            )
            loss = jnp.mean(self._per_photo(rows, probabilities)) + sum(penalties)
            return loss, (non_trainable, Metrics(loss, self._right(rows, probabilities).sum(), 0.0))

        gradients, (non_trainable, metrics) = jax.grad(loss_of_batch, has_aux=True)(state.trainable)
        trainable, optimizer = self.model.optimizer.stateless_apply(state.optimizer, gradients, state.trainable)
        return State(trainable, non_trainable, optimizer), metrics

    def _prepared(self, state: State, clean: Any) -> State:
        """Return the values that would be kept: averaged weights, statistics of clean photos."""
        model, trainable, non_trainable = self.model, state.trainable, state.non_trainable
        if model.optimizer.use_ema:
            variables = [*model.trainable_variables, *model.optimizer.variables]
            values = [*trainable, *state.optimizer]
            # Keras assigns the average in place; the scope turns assignments into values that can be traced.
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
                model.optimizer.finalize_variable_values(model.trainable_variables)
            trainable = [scope.get_current_value(variable) for variable in model.trainable_variables]
        if clean is not None:
            non_trainable = self._clean_statistics(trainable, non_trainable, clean)
        return State(trainable, non_trainable, [])

    def _clean_statistics(self, trainable: list[Any], non_trainable: list[Any], clean: Any) -> list[Any]:
        """Return `non_trainable` with what `recalibrate` would find on `clean`, (steps, batch, px, px) uint32."""
        layers = [layer for layer in normalisations(self.model) if layer.trainable]
        index_of = {id(variable): index for index, variable in enumerate(self.model.non_trainable_variables)}
        pairs = [(index_of[id(layer.moving_mean)], index_of[id(layer.moving_variance)]) for layer in layers]

        def add(sums: Any, packed: Any) -> tuple[Any, None]:
            updated = self.model.stateless_call(trainable, non_trainable, unpack(packed), training=True)[1]
            # Mean squares add up over batches, variances do not: see `recalibrate`.
            moments = [(updated[mean], updated[variance] + updated[mean] ** 2) for mean, variance in pairs]
            return jax.tree.map(jnp.add, sums, moments), None

        with _replaced(layers, "momentum", 0.0):  # so that the moving statistics are those of the batch
            nothing = [tuple(jnp.zeros_like(non_trainable[index]) for index in pair) for pair in pairs]
            sums, _ = jax.lax.scan(add, nothing, clean)
        result = list(non_trainable)
        for (mean, variance), (total, square) in zip(pairs, sums, strict=True):
            result[mean] = total / len(clean)
            result[variance] = jnp.maximum(square / len(clean) - result[mean] ** 2, 0.0)
        return result

    def _validated(self, state: State, pictures: Any, rows: Any, counted: Any) -> Metrics:
        """Return sums over photos, (steps, batch, …), of which those with `counted` 0 only fill the last batch."""

        def add(sums: Metrics, part: Any) -> tuple[Metrics, None]:
            packed, rows, counted = part
            probabilities, _, penalties = self.model.stateless_call(
                state.trainable, state.non_trainable, unpack(packed), training=False, return_losses=True
            )
            loss, right = self._per_photo(rows, probabilities) @ counted, self._right(rows, probabilities) @ counted
            return Metrics(sums.loss + loss, sums.right + right, jnp.asarray(sum(penalties), jnp.float32)), None

        zero = jnp.zeros((), jnp.float32)
        sums: Metrics = jax.lax.scan(add, Metrics(zero, zero, zero), (pictures, rows, counted))[0]
        return sums

    def _right(self, rows: Any, probabilities: Any) -> Any:
        return (rows[:, : self.inputs.num_classes].argmax(axis=-1) == probabilities.argmax(axis=-1)).astype(jnp.float32)

    # What is compiled

    def _compile(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Trace a function for arguments like these and compile it in the background."""
        # `lower` traces in the caller's thread, since tracing replaces attributes of the model: only XLA's part runs in
        # the background. No buffers are donated: callbacks read a state while the next call runs (docs/decisions.md).
        if key not in self._compiled:
            shapes = jax.tree.map(lambda part: jax.ShapeDtypeStruct(np.shape(part), part.dtype), arguments)
            self._compiled[key] = self._compilers.submit(jax.jit(function).lower(*shapes).compile)
        return self._compiled[key]

    def _steps(self, batches: TrainingBatches, count: int) -> Future[Any]:
        """Return so many steps at a picture size as one call."""
        # Look first: `draw` below is not free, and every call comes through here.
        if (batches.image_px, count) in self._compiled:
            return self._compiled[batches.image_px, count]
        image_px, per_call = batches.image_px, count * batches.batch_size
        if not is_drawable(batches.augment):
            shape = (count, batches.batch_size)
            made_batches = (
                jax.ShapeDtypeStruct((*shape, image_px, image_px), np.uint32),
                jax.ShapeDtypeStruct((*shape, batches.targets.shape[1]), np.float32),
            )
            arguments: tuple[Any, ...] = (*made_batches, None)
        else:
            held = len(batches.positions) if self._is_resident(batches.source_px) else per_call
            pictures = jax.ShapeDtypeStruct((held, batches.source_px, batches.source_px), np.uint32)
            arguments = pictures, self._targets, draw(batches, 0, count)
        function = partial(self._trained, image_px)
        return self._compile((image_px, count), function, self._values(), self._speed(), *arguments)

    # What is sent to the device

    def _calls(self, batches: TrainingBatches) -> list[tuple[int, int]]:
        """Return the steps of an epoch as ranges, one for each call, of as few lengths as possible."""
        steps, most = len(batches), _PIXELS_AT_ONCE // (batches.batch_size * batches.image_px**2)
        if not is_drawable(batches.augment) or not self._is_resident(batches.source_px):
            sent_px = batches.source_px if is_drawable(batches.augment) else batches.image_px
            most = min(most, _BYTES_AT_ONCE // (batches.batch_size * 4 * sent_px**2))
        most = min(max(most, 1), steps)
        # A length that divides the epoch needs one compiled function, any other a second one for the remainder. Lengths
        # down to half of the longest are tried.
        length = next((length for length in range(most, most // 2, -1) if steps % length == 0), most)
        return [(first, min(first + length, steps)) for first in range(0, steps, length)]

    def _is_resident(self, source_px: int) -> bool:
        # Always without the quarter that validation photos may take: steps are compiled before it is known whether
        # those do, and must not find another answer afterwards.
        return len(self.inputs.positions) * source_px**2 * 4 <= self._room - self._room // 4

    def _feeds(self, image_px: int, first_epoch: int, last_epoch: int, share: float = 1.0) -> Iterator[_Feed]:
        """Yield what each call of some epochs gets."""
        for epoch in range(first_epoch, last_epoch):
            batches = self.inputs.training(image_px, epoch, share)
            for first, last in self._calls(batches):
                yield _Feed(epoch, first, last, batches, partial(self._arguments, batches, first, last))

    def _arguments(self, batches: TrainingBatches, first: int, last: int) -> tuple[Any, ...]:
        """Return pictures, targets and draws of some steps."""
        if not is_drawable(batches.augment):
            with ThreadPoolExecutor(_CORES) as pool:
                made = list(pool.map(batches.__getitem__, range(first, last)))
            images = np.stack([images for images, _ in made])
            flat = images.reshape(-1, *images.shape[2:])
            packed = pack(flat.__getitem__, len(flat), batches.image_px, _CORES).reshape(images.shape[:-1])
            return (*jax.device_put((packed, np.stack([rows for _, rows in made]))), None)
        draws = draw(batches, first, last)
        if self._is_resident(batches.source_px):
            return self._resident(batches), self._targets, draws
        # Not resident: send the photos of this call only, one for each place in its batches, and number them from 0.
        members = draws.pictures.ravel()
        pictures = pack(lambda n: batches.source(int(members[n])), len(members), batches.source_px, _CORES)
        picture_rows = np.arange(len(members), dtype=np.int32).reshape(draws.pictures.shape)
        return jax.device_put(pictures), self._targets, draws._replace(pictures=picture_rows)

    def _resident(self, batches: TrainingBatches) -> Any:
        """Return all training photos, on the device."""
        if self._sources is None or self._sources[0] != batches.source_px:
            self._sources = None  # frees the old ones: both sizes need not fit together
            packed = pack(batches.source, len(batches.positions), batches.source_px, _CORES)
            self._sources = batches.source_px, jax.device_put(packed)
        return self._sources[1]

    def _clean_pictures(self) -> Any:
        """Return the photos for clean statistics on the device, (steps, batch, px, px) uint32; None: there are none."""
        batches = self.inputs.clean()
        if batches is None:
            return None
        size = min(batches.batch_size, len(batches.positions))
        steps = len(batches.positions) // size  # whole batches: sums over batches weigh them alike
        packed = self._read(batches, batches.positions[: steps * size])
        return jax.device_put(packed.reshape(steps, size, *packed.shape[1:]))

    def _read(self, batches: CleanBatches, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return photos as they are, packed."""
        pictures = batches.pictures
        return pack(lambda number: pictures.read(int(positions[number])), len(positions), pictures.image_px, _CORES)

    def _validation_parts(self) -> list[Callable[[], Any]]:
        """Return what gives pictures, targets and which count, (steps, batch, …), of parts of the validation photos."""
        batches, count = self.inputs.validation, self.inputs.num_validation
        if not count:
            return []
        size = min(batches.batch_size, count)
        steps, most = -(-count // size), max(1, _BYTES_AT_ONCE // (size * 4 * batches.pictures.image_px**2))
        length = -(-steps // -(-steps // most))  # as equal as can be: all have one shape
        parts: list[Callable[[], Any]] = [
            partial(self._validation_part, start * size, length, size) for start in range(0, steps, length)
        ]
        total = len(parts) * length * size * 4 * batches.pictures.image_px**2
        # Where they would take more than a quarter of the room, they are sent again for each validation: training
        # photos come first.
        if total > self._room // 4:
            return parts
        return [partial(tuple, part()) for part in parts]

    def _validation_part(self, start: int, steps: int, size: int) -> tuple[Any, Any, Any]:
        batches, numbers = self.inputs.validation, np.arange(start, start + steps * size)
        counted = numbers < self.inputs.num_validation
        numbers = np.where(counted, numbers, 0)  # any photo fills the last batch: it does not count
        pictures = self._read(batches, batches.positions[numbers]).reshape(
            steps, size, *[batches.pictures.image_px] * 2
        )
        rows = np.asarray(batches.targets)[numbers].reshape(steps, size, -1)
        return tuple(jax.device_put((pictures, rows, counted.astype(np.float32).reshape(steps, size))))

    # The model's variables

    def _values(self) -> State:
        model = self.model
        groups = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
        return State(*([variable.value for variable in group] for group in groups))

    def _speed(self) -> Any:
        """Return what the schedule and the weight average go by; arguments, so that a new plan compiles nothing."""
        momentum = getattr(self.model.optimizer, "ema_momentum", None) or 0.0
        return np.asarray([*(float(variable) for variable in self.rate.speed), momentum], np.float32)

    def _assign(self, state: State) -> None:
        """Give the model the values of a state."""
        model = self.model
        groups = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
        for variables, values in zip(groups, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def _weights(self, state: State) -> list[NDArray]:
        """Return a state as `keras.Model.get_weights` would."""
        model = self.model
        # `model.weights` is in the order of the layers: trainable and other variables alternate in it.
        values = dict(zip(map(id, model.trainable_variables), state.trainable, strict=True))
        values |= zip(map(id, model.non_trainable_variables), state.non_trainable, strict=True)
        return list(map(np.asarray, jax.device_get([values[id(variable)] for variable in model.weights])))


def _one_ahead(pool: ThreadPoolExecutor, feeds: Iterator[_Feed]) -> Iterator[_Feed]:
    """Yield feeds with their arguments made; those of the next one are made while the caller works on this one."""
    # One feed ahead, no more: where photos are not resident, each holds up to `_BYTES_AT_ONCE` of them.
    waiting: deque[tuple[_Feed, Future[Any]]] = deque()
    for feed in feeds:
        waiting.append((feed, pool.submit(feed.arguments)))
        if len(waiting) > 1:
            ready, made = waiting.popleft()
            yield replace(ready, arguments=made.result())
    for ready, made in waiting:
        yield replace(ready, arguments=made.result())


@contextmanager
def _replaced(owners: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """Give objects another attribute for the time that a function is traced."""
    usual = [getattr(owner, name, None) for owner in owners]
    for owner in owners:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, before in zip(owners, usual, strict=True):
            setattr(owner, name, before)
