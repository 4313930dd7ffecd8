"""How many epochs fit a time, computed by hand."""

from __future__ import annotations

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
    budget = Budget(1_900.0, {48: 10.0, 64: 20.0}, validation_seconds=4.0, final_seconds=100.0, validate_every=2)
    assert budget.epochs_left(STAGES, start) == epochs
    budget.learn(64, 42.0)  # twice as slow as measured before: 40 s and half a validation
    assert budget.epochs_left(STAGES[1:], 0.4) == 800 // 42


def test_an_epoch_is_trained_even_when_none_fits(monkeypatch):
    monkeypatch.setattr(timing.time, "time", lambda: 5_000.0)
    budget = Budget(1.0, {64: 20.0}, validation_seconds=4.0, final_seconds=100.0, validate_every=1)
    assert budget.epochs_left((Stage(image_px=64, share=1),), 0.0) == 1
