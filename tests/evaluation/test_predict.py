"""Opening runs: what is not a finished run is refused in words. Predictions themselves: tests/test_run.py."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tellapart.errors import RunError
from tellapart.evaluation.predict import load
from tellapart.models.build import build
from tellapart.settings import ConvNet


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "environment.json").write_text(json.dumps({"classes": ["ant", "bee", "cat"]}))
    return tmp_path


def test_a_model_with_an_output_for_each_class_is_opened(run: Path):
    model = build(ConvNet(), 3, 16, seed=1)
    model.save(run / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    classifier = load(run)
    assert (classifier.classes, classifier.image_px) == (["ant", "bee", "cat"], 16)
    np.testing.assert_allclose(classifier.probabilities(images), model.predict_on_batch(images), atol=1e-6)


def test_folders_without_a_model_are_refused(run: Path):
    with pytest.raises(RunError, match=r"has no model yet; finish it with tellapart train --resume"):
        load(run)
    with pytest.raises(RunError, match=r"nowhere does not exist. Expected a run folder"):
        load(run / "nowhere")


def test_files_that_are_no_model_are_refused(run: Path):
    (run / "model.keras").write_text("<html>")
    with pytest.raises(RunError, match=r"model.keras cannot be opened"):
        load(run)


def other_classes() -> keras.Model:
    return build(ConvNet(), 10, 16)


def any_size() -> keras.Model:
    return build(ConvNet(), 3, None)


def no_pictures() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(3)(inputs))


def two_inputs() -> keras.Model:
    inputs = [keras.Input((16, 16, 3)), keras.Input((16, 16, 3))]
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Add()(inputs))))


@pytest.mark.parametrize("make", [other_classes, any_size, no_pictures, two_inputs])
def test_models_of_another_kind_are_refused(run: Path, make):
    make().save(run / "model.keras")
    with pytest.raises(RunError, match=r"Expected \(None, side, side, 3\) to \(None, 3\).* another model's"):
        load(run)
