"""The training path on JAX, in an environment where TensorFlow is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tellapart
from tellapart.explain.maps import METHODS

pytestmark = pytest.mark.integration
JAX_PYTHON = Path(__file__).parents[1] / ".venv-jax" / "bin" / "python"

TRAIN = """
import importlib.util, json, numpy, sys
assert importlib.util.find_spec("tensorflow") is None
import keras, tellapart
assert keras.backend.backend() == "jax"
changes = ["train.epochs=4", "train.stages=[{image_px=24, share=1}, {image_px=32, share=1}]", "data.image_px=32",
           "train.precision=float32", "train.validate_every=2"]
run = tellapart.train(sys.argv[1], recipe="demo", changes=changes, out=sys.argv[2], cache=sys.argv[3])
from tellapart.explain.maps import METHODS
pictures = numpy.load(sys.argv[4])
classifier = tellapart.load(run.path)
maps = {name: method(classifier.model, pictures, numpy.array([0, 3, 7])) for name, method in METHODS.items()}
numpy.savez(sys.argv[2] + "/maps.npz", **maps)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_trains_and_explains_on_jax_without_tensorflow_and_the_model_opens_under_tensorflow(tmp_path: Path):
    if not JAX_PYTHON.exists():
        pytest.skip("no environment with JAX and without TensorFlow: `make .venv-jax/installed` makes it")
    photos = tellapart.draw(tmp_path / "photos", num_images=300)
    run = tmp_path / "run"
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    result = subprocess.run(
        [JAX_PYTHON, "-c", TRAIN, photos, run, tmp_path / "cache", tmp_path / "pictures.npy"],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads((run / "environment.json").read_text())["backend"] == "jax"
    history = pd.read_csv(run / "history.csv")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["learning_rate"].iloc[-1] == pytest.approx(4e-5, rel=1e-3)
    table = pd.read_csv(run / "predictions.csv").head(20)
    predictions = tellapart.load(run).predict([photos / path for path in table["path"]])
    assert sys.modules["keras"].backend.backend() == "tensorflow"
    np.testing.assert_allclose([p.probability for p in predictions], table["probability"], atol=1e-4)
    classifier = tellapart.load(run)
    with np.load(run / "maps.npz") as maps:
        assert set(maps) == set(METHODS)
        for name, method in METHODS.items():
            ours = method(classifier.model, pictures, np.array([0, 3, 7]))
            assert np.abs(ours - maps[name]).mean() < 0.01, name


EVALUATE = """
import importlib.util, sys
assert importlib.util.find_spec("tensorflow") is None
import tellapart
report = tellapart.evaluate(sys.argv[1], sys.argv[2], out=sys.argv[3], cache=sys.argv[4])
"""


@pytest.mark.by_hand
def test_a_report_on_jax_is_that_on_tensorflow(tmp_path: Path):
    if not JAX_PYTHON.exists():
        pytest.skip("no environment with JAX and without TensorFlow: `make .venv-jax/installed` makes it")
    photos, some = tellapart.draw(tmp_path / "photos", num_images=200), tmp_path / "some"
    for path in sorted(photos.glob("*/*.*"))[::10]:
        (some / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / path.parent.name)
    changes = ["data.image_px=32", "train.epochs=4", "train.precision=float32", "train.learning_rate=2e-3"]
    run = tellapart.train(photos, changes=changes, out=tmp_path / "run", cache=tmp_path / "cache").path
    ours = tellapart.evaluate(run, some, out=tmp_path / "tensorflow", cache=tmp_path / "cache").values
    subprocess.run(
        [JAX_PYTHON, "-c", EVALUATE, run, some, tmp_path / "jax", tmp_path / "cache"],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}, check=True, timeout=900,
    )  # fmt: skip
    theirs = json.loads((tmp_path / "jax" / "evaluation.json").read_text())
    assert theirs["missing"] == ours["missing"]
    assert theirs["metrics"]["test"]["accuracy"] == ours["metrics"]["test"]["accuracy"]
    assert theirs["metrics"]["test"]["loss"] == pytest.approx(ours["metrics"]["test"]["loss"], rel=1e-3)
    assert set(theirs["methods"]) == set(ours["methods"])
