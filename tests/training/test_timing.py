"""How many epochs fit a time, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tellapart.settings import Stage
from tellapart.training import timing
from tellapart.training.timing import Budget

STAGES = (Stage(image_px=48, share=2), Stage(image_px=64, share=3))


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

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

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


def test_a_convolution_can_be_timed_in_both_precisions():
    single, half = timing._convolution_milliseconds(16)
    assert 0 < single < 1000
    assert 0 < half < 1000
