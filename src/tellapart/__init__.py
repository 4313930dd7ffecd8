"""Tellapart turns a folder of photos into a measured image classifier.

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from tellapart.run import train
    from tellapart.settings import Recipe, load_recipe

__version__ = "0.1.0"
__all__ = [
    "BundleClassifier", "Classifier", "Recipe", "ablate", "benchmark", "check", "compare", "draw", "ensemble",
    "evaluate", "export", "heat_maps", "load", "load_recipe", "open_bundle", "predict", "reproduce", "train", "tune",
]  # fmt: skip

_HOMES = {
    "BundleClassifier": "bundles.predictor",
    "Classifier": "evaluation.predict",
    "Recipe": "settings",
    "ablate": "experiments.ablation.ablate",
    "benchmark": "bundles.latency",
    "check": "data.health",
    "compare": "experiments.compare",
    "draw": "data.drawn",
    "ensemble": "experiments.ensembling.ensemble",
    "evaluate": "report.evaluate",
    "heat_maps": "explain.files",
    "load_recipe": "settings",
    "open_bundle": "bundles.bundle",
    "reproduce": "reproduction",
    "train": "run",
    "tune": "experiments.tuning.tune",
}


def load(model: Any) -> Any:
    """Open a finished run, or a bundle made from one, for prediction. A bundle needs neither Keras nor TensorFlow.

    Args:
        model: the folder.

    Returns:
        A `Classifier` or a `BundleClassifier`; both have `predict`.

    Raises:
        RunError: it is no run folder, or has no model.
        BundleError: it is a damaged bundle, or no runtime here gives the probabilities that it should.
    """
    from tellapart.bundles.bundle import is_bundle

    if is_bundle(model):
        from tellapart.bundles.predictor import open_classifier

        return open_classifier(model)
    from tellapart.evaluation.predict import load as load_run

    return load_run(model)


def export(run: Any, to: Any, *, cache: Any = None, **options: Any) -> Any:
    """Make a bundle of a finished run: `tellapart.shipping.export.export`, with the user's cache folder."""
    from tellapart.data.cache import default_cache
    from tellapart.shipping.export import export as export_run

    return export_run(run, to, cache=default_cache() if cache is None else cache, **options)


def predict(model: Any, images: Any, **options: Any) -> Any:
    """Name images with a finished run or a bundle: ``tellapart.load(model).predict(images)``."""
    return load(model).predict(images, **options)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tellapart' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"tellapart.{_HOMES[name]}"), name)
