"""Tellapart turns a folder of photos into a measured image classifier.

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tellapart.records import Observer, Prediction, Progress, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tellapart.bundles.bundle import open_bundle
    from tellapart.bundles.latency import benchmark
    from tellapart.bundles.predictor import BundleClassifier
    from tellapart.data.drawn import draw
    from tellapart.data.health import check
    from tellapart.evaluation.predict import Classifier
    from tellapart.experiments.ablation.ablate import ablate
    from tellapart.experiments.compare import compare
    from tellapart.experiments.ensembling.ensemble import ensemble
    from tellapart.experiments.tuning.tune import tune
    from tellapart.explain.files import heat_maps
    from tellapart.report.evaluate import evaluate
    from tellapart.reproduction import reproduce
    from tellapart.run import Run
    from tellapart.settings import Machine, Recipe, load_recipe
    from tellapart.shipping.export import export
    from tellapart.verbs import resume, train

__version__ = "0.1.0"
__all__ = [
    "BundleClassifier", "Classifier", "Machine", "Observer", "Prediction", "Recipe", "Run", "ablate", "benchmark",
    "check", "compare", "draw", "ensemble", "evaluate", "export", "heat_maps", "load", "load_recipe", "open_bundle",
    "predict", "reproduce", "resume", "train", "tune",
]  # fmt: skip

_HOMES = {
    "BundleClassifier": "bundles.predictor",
    "Classifier": "evaluation.predict",
    "Machine": "settings",
    "Recipe": "settings",
    "Run": "run",
    "ablate": "experiments.ablation.ablate",
    "benchmark": "bundles.latency",
    "check": "data.health",
    "compare": "experiments.compare",
    "draw": "data.drawn",
    "ensemble": "experiments.ensembling.ensemble",
    "evaluate": "report.evaluate",
    "export": "shipping.export",
    "heat_maps": "explain.files",
    "load_recipe": "settings",
    "open_bundle": "bundles.bundle",
    "reproduce": "reproduction",
    "resume": "verbs",
    "train": "verbs",
    "tune": "experiments.tuning.tune",
}


def load(model: str | os.PathLike[str]) -> Classifier | BundleClassifier:
    """Open a finished run, or a bundle made from one, for prediction. A bundle needs neither Keras nor TensorFlow.

    Args:
        model: the folder.

    Returns:
        A `Classifier` or a `BundleClassifier`; both have `predict`.

    Raises:
        RunError: it is not a run folder, or has no model.
        BundleError: it is a damaged bundle, or no runtime here gives the probabilities that it should.
    """
    from tellapart.bundles.bundle import is_bundle

    if is_bundle(model):
        from tellapart.bundles.predictor import open_classifier

        return open_classifier(model)
    from tellapart.evaluation.predict import load as load_run

    return load_run(model)


def predict(
    model: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str] | NDArray[np.uint8]],
    *,
    top_k: int = 3,
    progress: Progress = no_progress,
) -> list[Prediction]:
    """Classify images with a finished run or a bundle: ``tellapart.load(model).predict(images)``.

    Args:
        model: a run folder or a bundle.
        images: files, or pictures as (height, width, 3) uint8 RGB arrays of any size.
        top_k: how many classes to list.
        progress: called with ("predicting", done, total).

    Returns:
        One `Prediction` per image, in their order; one that cannot be read has an ``error``.
    """
    return load(model).predict(images, top_k=top_k, progress=progress)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tellapart' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"tellapart.{_HOMES[name]}"), name)
