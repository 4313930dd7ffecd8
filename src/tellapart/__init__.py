"""Tellapart turns a folder of photos into a measured image classifier.

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tellapart.data.drawn import draw
    from tellapart.data.health import check
    from tellapart.evaluation.predict import Classifier, load
    from tellapart.explain.files import heat_maps
    from tellapart.report.evaluate import evaluate
    from tellapart.reproduction import reproduce
    from tellapart.run import train
    from tellapart.settings import Recipe, load_recipe

__version__ = "0.1.0"
__all__ = [
    "Classifier", "Recipe", "check", "draw", "evaluate", "heat_maps", "load", "load_recipe", "predict", "reproduce",
    "train",
]  # fmt: skip

_HOMES = {
    "Classifier": "evaluation.predict",
    "Recipe": "settings",
    "check": "data.health",
    "draw": "data.drawn",
    "evaluate": "report.evaluate",
    "heat_maps": "explain.files",
    "load": "evaluation.predict",
    "load_recipe": "settings",
    "reproduce": "reproduction",
    "train": "run",
}


def predict(run: Any, images: Any, **options: Any) -> Any:
    """Name images with a finished run: ``tellapart.load(run).predict(images)``."""
    from tellapart.evaluation.predict import load

    return load(run).predict(images, **options)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tellapart' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"tellapart.{_HOMES[name]}"), name)
