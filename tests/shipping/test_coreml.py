"""Core ML packages, as far as they go without Apple's converter: what is asked for first, and constants that repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tellapart.errors import InputError
from tellapart.shipping.coreml import export_coreml, smallest_alike


def test_what_is_missing_is_said_before_anything_is_opened(tmp_path: Path):
    with pytest.raises(InputError, match=r"Expected one that ends with \.mlpackage"):
        export_coreml(tmp_path / "run", tmp_path / "model.mlmodel")
    with pytest.raises(InputError, match="Set KERAS_BACKEND=jax"):
        export_coreml(tmp_path / "run", tmp_path / "model.mlpackage")


@pytest.mark.parametrize(("axes", "shape"), [((0, 2, 3), (1, 4, 1, 1)), ((1,), (2, 1, 3, 5)), ((0, 1, 2, 3), (1,) * 4)])
def test_a_constant_is_had_once_and_spreads_to_what_it_was(axes: tuple[int, ...], shape: tuple[int, ...]):
    values = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    spread = np.broadcast_to(values.mean(axis=axes, keepdims=True), values.shape)
    small = smallest_alike(spread)
    assert small.shape == shape
    np.testing.assert_array_equal(np.broadcast_to(small, values.shape), spread)
    assert smallest_alike(values).shape == values.shape
