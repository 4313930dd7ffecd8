"""How many epochs fit a time, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellapart.settings import Stage
from tellapart.training import timing
from tellapart.training.schedule import plan
from tellapart.training.timing import Budget, choose_precision, seconds_per_prediction, step_time

STAGES = (Stage(image_px=48, share=2), Stage(image_px=64, share=3))


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("start", "epochs"),
    [
        (0.0, 44),  # 0.4 · 10 + 0.6 · 20 + 4 / 2 = 18 s an epoch; 800 s left
        (0.2, 41),  # 0.25 · 10 + 0.75 · 20 + 2 = 19.5 s
        (0.4, 36),  # 20 + 2 s
        (0.9, 36),
    ],
)
def test_epochs_fit_the_time_that_is_left(monkeypatch, start, epochs):
    monkeypatch.setattr(timing.time, "time", lambda: 1_000.0)
    budget = Budget(1_900.0, {48: 10.0, 64: 20.0}, {}, validation_seconds=4.0, final_seconds=100.0, validate_every=2)
    assert int(budget.epochs_that_fit(STAGES, start)) == epochs
    budget.learn(64, 42.0)  # twice as slow as measured before: 40 s and half a validation
    assert budget.epochs_that_fit(STAGES[1:], 0.4) == pytest.approx(800 / 42)


def test_what_has_yet_to_be_compiled_takes_from_the_time(monkeypatch):
    """Of 800 s go 50 s for the first size and 30 s for the second, each as long as it has not been trained at."""
    monkeypatch.setattr(timing.time, "time", lambda: 1_000.0)
    budget = Budget(1_900.0, {48: 8.0, 64: 18.0}, {48: 50.0, 64: 30.0}, 4.0, final_seconds=100.0, validate_every=2)
    assert budget.epochs_that_fit(STAGES, 0.0) == pytest.approx(720 / 16)
    assert budget.epochs_that_fit(STAGES, 0.4) == pytest.approx(770 / 20)  # the first is over, trained or not
    budget.learn(48, 10.0)
    assert budget.epochs_that_fit(STAGES, 0.2) == pytest.approx(770 / (0.25 * 8 + 0.75 * 18 + 2))


def test_whole_steps_are_timed_only_where_a_convolution_gains(monkeypatch):
    """The wanted precision is taken as it is; else the processor decides, then one convolution, then whole steps."""

    class Batches:
        image_px, batch_size, workers, max_queue_size = 32, 4, 1, 2

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int):
            return np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 2), np.float32)

    class Sleeper:
        def __init__(self, name: str) -> None:
            self.milliseconds = {"float32": 8.0, "mixed_bfloat16": 4.0}[name]

        def fit(self, batches: Any, callbacks: list[Any], **_: object) -> None:
            for step in range(len(batches)):
                timing.time.now += self.milliseconds / 1000
                callbacks[0].on_train_batch_end(step, {"loss": 1.0})

    def choose(wanted: str = "auto") -> timing.Precision:
        return timing.choose_precision(wanted, Sleeper, Batches())

    assert choose("mixed_bfloat16").reason == "set in the recipe"
    monkeypatch.setattr(timing, "accelerators", list)
    monkeypatch.setattr(timing, "cpu_features", lambda: ["avx2"])
    assert choose().name == "float32"
    monkeypatch.setattr(timing, "cpu_features", lambda: ["amx_bf16"])
    monkeypatch.setattr(timing, "_convolution_milliseconds", lambda px: (2.0, 1.9))
    assert choose() == timing.Precision("float32", {}, "a convolution takes 1.9 ms in bfloat16 and 2.0 ms in float32")
    monkeypatch.setattr(timing, "_convolution_milliseconds", lambda px: (2.0, 0.9))
    clear = "a convolution takes 0.9 ms in bfloat16 and 2.0 ms in float32"
    assert choose() == timing.Precision("mixed_bfloat16", {}, clear), "no whole step is timed"
    monkeypatch.setattr(timing, "_convolution_milliseconds", lambda px: (2.0, 1.2))
    monkeypatch.setattr(timing, "time", Clock())
    chosen = choose()
    assert chosen.name == "mixed_bfloat16"
    assert chosen.milliseconds_per_image == pytest.approx({"float32": 2.0, "mixed_bfloat16": 1.0})


class Steps:
    """A network whose steps take a time that is given, on the clock of the test; the first one compiles.

    Uneven: in each call the first two steps take ten times as long, since they wait for batches, and two later ones
    longer still, since something else ran.
    """

    def __init__(self, milliseconds: float, compiling: float = 0.0, *, uneven: bool = False) -> None:
        self.milliseconds, self.compiling, self.done, self.stop_training = milliseconds, compiling, 0, False
        self.factors = {0: 10, 1: 10, 5: 100, 6: 10} if uneven else {}

    def fit(self, batches: Any, callbacks: list[Any], **_: object) -> None:
        self.stop_training = False
        callbacks[0].set_model(self)
        for step in range(len(batches)):
            if self.stop_training:
                break
            timing.time.now += (self.milliseconds * self.factors.get(step, 1) + self.compiling) / 1000
            self.compiling, self.done = 0.0, self.done + 1
            callbacks[0].on_train_batch_end(step, {"loss": 1.0})


def test_slow_steps_are_timed_a_few_times_only(monkeypatch: pytest.MonkeyPatch):
    """After 1.5 s no more begin, but five are made however long they take."""
    monkeypatch.setattr(timing, "time", Clock())
    counts = {}
    for milliseconds in (100.0, 190.0, 260.0, 310.0, 4000.0):
        network = Steps(milliseconds)
        assert step_time(network, Batches()).per_image == pytest.approx(milliseconds / 4000)
        counts[milliseconds] = network.done - 2
    assert counts == {100.0: 8, 190.0: 8, 260.0: 6, 310.0: 5, 4000.0: 5}


def chosen_by_steps(monkeypatch: pytest.MonkeyPatch, float32_ms: float, bfloat16_ms: float) -> timing.Precision:
    """Choose where a convolution settles nothing, with steps that take so long; both need time to compile."""
    monkeypatch.setattr(timing, "time", Clock())
    monkeypatch.setattr(timing, "accelerators", list)
    monkeypatch.setattr(timing, "cpu_features", lambda: ["avx512_bf16"])
    monkeypatch.setattr(timing, "_convolution_milliseconds", lambda px: (2.0, 1.4))
    networks = {
        "float32": Steps(float32_ms, 500.0, uneven=True), "mixed_bfloat16": Steps(bfloat16_ms, 900.0, uneven=True),
    }  # fmt: skip
    found = choose_precision("auto", networks.__getitem__, Batches())
    assert [network.done for network in networks.values()] == [2 + 8 + 8] * 2, "in turn, and twice"
    return found


@pytest.mark.parametrize(
    ("milliseconds", "name", "reason", "compiling"),
    [
        ((8.0, 7.3), "float32", "mixed_bfloat16 is not faster by a tenth", 0.66),
        ((8.0, 7.1), "mixed_bfloat16", "faster by measurement", 1.042),
        ((8.0, 9.0), "float32", "mixed_bfloat16 is not faster by a tenth", 0.66),
    ],
)
def test_steps_must_be_faster_by_a_tenth(monkeypatch: pytest.MonkeyPatch, milliseconds, name, reason, compiling):
    """What the first steps took is that of the network that is chosen."""
    found = chosen_by_steps(monkeypatch, *milliseconds)
    assert (found.name, found.reason) == (name, reason)
    both = dict(zip(("float32", "mixed_bfloat16"), milliseconds, strict=True))
    assert found.milliseconds_per_image == pytest.approx({kind: each / 4 for kind, each in both.items()})
    assert found.compile_seconds == pytest.approx(compiling)


def test_a_gpu_is_asked_what_it_gains_whatever_the_processor_can_do(monkeypatch: pytest.MonkeyPatch):
    """At half the side of the pictures: that is what most of the network sees."""
    asked = []
    monkeypatch.setattr(timing, "accelerators", lambda: ["gpu:0"])
    monkeypatch.setattr(timing, "cpu_features", list)
    monkeypatch.setattr(timing, "_convolution_milliseconds", lambda px: asked.append(px) or (2.0, 0.5))
    assert choose_precision("auto", None, Batches()).name == "mixed_bfloat16"
    assert asked == [8]


def test_timed_batches_are_made_by_as_many_threads_as_those_of_the_training():
    class Threaded(Batches):
        workers, max_queue_size = 3, 8

    few = timing._Few(Threaded(), 7)
    assert (few.workers, few.max_queue_size, few.use_multiprocessing, len(few)) == (3, 8, False, 7)


def test_a_convolution_can_be_timed_in_both_precisions():
    single, half = timing._convolution_milliseconds(16)
    assert 0 < single < 1000
    assert 0 < half < 1000


@settings(max_examples=60, deadline=None)
@given(
    shares=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    costs=st.lists(st.floats(0.5, 50.0), min_size=4, max_size=4),
    times=st.integers(1, 6),
    stages_done=st.integers(0, 3),
    compiling=st.floats(0.0, 30.0),
)
def test_a_plan_of_as_many_epochs_as_fit_takes_just_the_time(shares, costs, times, stages_done, compiling):
    """What the plan costs, added up segment by segment, is the time that was given."""
    stages = [Stage(image_px=16 + 8 * place, share=share) for place, share in enumerate(shares)]
    stages_done = min(stages_done, len(stages) - 1)
    start = sum(shares[:stages_done]) / sum(shares)
    segments = plan(stages, times * sum(shares[stages_done:]), start=start)
    costs_at = {stage.image_px: cost for stage, cost in zip(stages, costs, strict=False)}
    budget = Budget(0.0, costs_at, dict.fromkeys(costs_at, compiling), 3.0, final_seconds=20.0, validate_every=2)
    epochs = sum(segment.epochs for segment in segments)
    seconds = sum(segment.epochs * costs_at[segment.image_px] + compiling for segment in segments) + 1.5 * epochs
    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(timing, "time", Clock())
        clocked = Budget(**{**vars(budget), "deadline": seconds + 20.0})
        assert clocked.training_ends == pytest.approx(seconds)
        assert clocked.epochs_that_fit(stages, start) == pytest.approx(epochs)


def test_too_late_is_less_than_no_epoch(monkeypatch):
    monkeypatch.setattr(timing, "time", Clock())
    budget = Budget(60.0, {48: 10.0, 64: 20.0}, {48: 30.0}, 4.0, final_seconds=50.0, validate_every=1)
    assert budget.epochs_that_fit(STAGES, 0.0) == pytest.approx(-20 / 20)
    assert budget.epochs_that_fit(STAGES, 0.4) == pytest.approx(10 / 24)


@pytest.mark.parametrize("wanted", ["float32", "mixed_bfloat16"])
def test_a_precision_that_the_recipe_names_costs_nothing(monkeypatch, wanted: str):
    """No network is built, and no convolution timed, whatever the processor can do."""

    def fail(*_: object) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(timing, "cpu_features", lambda: ["amx_bf16"])
    monkeypatch.setattr(timing, "_convolution_milliseconds", fail)
    assert choose_precision(wanted, fail, None) == timing.Precision(wanted, {}, "set in the recipe")


class Batches:
    """Three batches of four pictures."""

    image_px, batch_size, workers, max_queue_size = 16, 4, 1, 2

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((4, 16, 16, 3), index, np.uint8), np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    ("first", "compiling"), [((700, 12), 0.712 - 0.016), ((7, 8), 0.0)], ids=["compiles", "is compiled already"]
)
def test_a_step_costs_the_median_of_later_ones_and_compiling_what_the_first_took_more(monkeypatch, first, compiling):
    """Of the eight that are timed the first two wait for batches; 8 ms is the median of the other six."""
    monkeypatch.setattr(timing, "time", Clock())
    milliseconds, pictures = iter([*first, 90, 50, 8, 8, 7, 300, 8, 9]), []

    class Network:
        def fit(self, batches: Any, callbacks: list[Any], **_: object) -> None:
            for step in range(len(batches)):
                pictures.append(int(batches[step][0].max()))
                timing.time.now += next(milliseconds) / 1000
                callbacks[0].on_train_batch_end(step, {"loss": 1.0})

    found = step_time(Network(), Batches())
    assert found.per_image == pytest.approx(0.008 / 4)
    assert found.compiling == pytest.approx(compiling)
    assert pictures == [0, 1, 0, 1, 2, 0, 1, 2, 0, 1], "few batches come again"
    assert next(milliseconds, None) is None


def test_a_prediction_costs_the_median_of_rounds_after_the_first(monkeypatch):
    """The first round compiles: 5 s. Then 0.3, 0.1 and 0.2 s for ten pictures."""
    monkeypatch.setattr(timing, "time", Clock())
    seconds = iter([5.0, 0.3, 0.1, 0.2])

    def forward(batches: list[np.ndarray]):
        for images in batches:
            timing.time.now += next(seconds)
            yield [images]

    assert seconds_per_prediction(forward, np.zeros((10, 16, 16, 3), np.uint8)) == pytest.approx(0.02)
