"""Training through stages of picture size."""

from __future__ import annotations

from pathlib import Path

import pytest

import tellapart
from drawing import make_classes
from tellapart.models import passes


@pytest.mark.integration
@pytest.mark.parametrize("budget", [None, pytest.param(25.0, marks=pytest.mark.slow)], ids=["epochs", "budget"])
def test_every_stage_trains_in_the_fused_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float | None):
    """TensorFlow would generalise the step at the second size to sides of any length, twice as slow."""
    seen, gradient = [], passes.max_gradient
    monkeypatch.setattr(
        passes, "max_gradient", lambda raw, *others: [seen.append(raw.shape[1]), *gradient(raw, *others)][1:]
    )
    photos = make_classes(tmp_path / "photos", {"a": 30, "b": 30})
    changes = [
        "data.image_px=24", "train.stages=[{image_px=16, share=1}, {image_px=24, share=1}]", "train.batch_size=8",
        "train.epochs=2", "train.precision=float32",
    ]  # fmt: skip
    tellapart.train(photos, changes=changes, time_budget=budget, out=tmp_path / "run", cache=tmp_path / "cache")
    steps = 42 // 8
    assert seen.count(16) >= steps, "the first block at 16 px"
    assert seen.count(24) >= steps, "and at 24 px"
