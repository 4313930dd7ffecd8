"""Measures how well a photo's class can be told without looking at the photo.

Knows nothing about pixels, only about what the manifest says of each file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.proportions import wilson
from tellapart.records import Finding, Manifest

FALSIFIES_ABOVE = 0.25
"""Share of the way from chance to certainty, lower end of the interval, above which numbers are not true."""
WARNS_ABOVE = 0.1
MOST_FOLDS = 5
_MIN_LEAF = 5  # photos per leaf of the tree: a single photo's size is no rule

_TRIED = {
    "size": "width and height alone",
    "aspect": "width divided by height alone",
    "format": "file format and colour mode alone",
    "file length": "the length of the file alone",
    "all together": "size, aspect and format together",
}
_FOLLOWS = {
    "size": "The network sees every picture stretched to one square, so size itself never reaches it, but "
    "the sharpness and framing that go with a size may.",
    "aspect": "Pictures are stretched to a square, so how much a picture is stretched may tell the class.",
    "format": "The traces that a file format and its colour mode leave in the pixels may tell the class.",
    "file length": "Length also follows from what is shown: a textured picture takes more bytes than a "
    "smooth one. But it may come from how strongly each class was compressed, and the "
    "network sees those traces.",
    "all together": "Size, aspect and format together may stand for where a photo comes from, and so may "
    "what goes with them in the pixels.",
}
_MEND = (
    "A high accuracy may then measure where the photos come from and not what they show. Collect all classes "
    "in the same way (same source, same camera, same export), or scale, crop and re-encode all photos alike, "
    "and measure on photos of a source that was not trained on."
)


def metadata_shortcuts(manifest: Manifest, pairs: NDArray[np.int64], *, seed: int = 0) -> Iterator[Finding]:
    """Yield a finding for each set of file properties that tells the classes apart.

    Args:
        manifest: the photos.
        pairs: of near duplicates; the second of a pair is left out, or copies would be memorised.
        seed: of the folds.

    Yields:
        "metadata_shortcut" findings, "falsifies" or "warning" by how far the lower end of the 95 % interval
        of the balanced accuracy is above chance. File length is never more than a warning.
    """
    frame = _usable(manifest, pairs)
    if frame["label"].nunique() < 2:
        return
    for name, features in feature_sets(frame).items():
        figures = measure(features, frame["label"].to_numpy(object), seed=seed)
        severity = _severity(name, figures["excess"]["low"])
        if severity:
            yield Finding(
                "metadata_shortcut",
                severity,
                _message(name, figures),
                figures["num_right"],
                figures={"features": name} | figures,
            )


def feature_sets(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what is tried: name → a frame of numbers, one row per photo."""
    aspect = (frame["width"] / frame["height"]).rename("aspect").to_frame()
    size = frame[["width", "height"]]
    form = pd.get_dummies(frame[["format", "mode"]].astype(str))
    length = pd.DataFrame({
        "bytes": frame["bytes"],
        "bytes_per_pixel": frame["bytes"] / (frame["width"] * frame["height"]),
    })  # fmt: skip
    return {
        "size": size,
        "aspect": aspect,
        "format": form,
        "file length": length,
        "all together": pd.concat([size, aspect, form], axis=1),  # without length, which follows from content
    }


def measure(features: pd.DataFrame, labels: NDArray, *, seed: int = 0) -> dict[str, Any]:
    """Return how well a decision tree tells `labels` from `features`, cross-validated.

    Every class has the same weight in the tree, so that a rare class is not given up. Balanced accuracy
    is the mean of the classes' recalls; its interval joins their Wilson intervals by square-and-add (Zou
    and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27).

    Args:
        features: (num_photos, num_features) numbers.
        labels: (num_photos,) at least two classes of at least two photos each.
        seed: of the folds.

    Returns:
        num_photos, num_right, num_folds, accuracy with its Wilson interval beside majority_share,
        balanced_accuracy with its interval beside chance, and excess: (balanced - chance) / (1 - chance).
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    names, classes, counts = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    # Each class needs a photo in each fold.
    folds = int(min(MOST_FOLDS, counts.min()))
    tree = DecisionTreeClassifier(min_samples_leaf=_MIN_LEAF, class_weight="balanced", random_state=seed)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    predictions = cross_val_predict(tree, features.to_numpy(np.float64), classes, cv=splitter, n_jobs=1)
    right = predictions == classes
    hits = np.bincount(classes[right], minlength=len(names))
    recalls = hits / counts
    intervals = [wilson(int(hit), int(count)) for hit, count in zip(hits, counts, strict=True)]
    # Square-and-add: distances of the classes' ends from their recalls add up as squares do.
    low = recalls.mean() - math.hypot(*(recalls - [interval.low for interval in intervals])) / len(names)
    high = recalls.mean() + math.hypot(*([interval.high for interval in intervals] - recalls)) / len(names)
    accuracy = wilson(int(right.sum()), len(right))
    chance = 1 / len(names)
    return {
        "num_photos": len(right),
        "num_right": int(right.sum()),
        "num_folds": folds,
        "accuracy": _figure(right.mean(), accuracy.low, accuracy.high),
        "majority_share": float(counts.max() / counts.sum()),
        "balanced_accuracy": _figure(recalls.mean(), low, high),
        "chance": chance,
        "excess": _figure(*((value - chance) / (1 - chance) for value in (recalls.mean(), low, high))),
    }


def _usable(manifest: Manifest, pairs: NDArray[np.int64]) -> pd.DataFrame:
    """Return the readable photos without the second of each pair and without classes of a single photo."""
    first = ~np.isin(np.arange(len(manifest.frame)), pairs[:, 1])
    frame = manifest.frame[first & (manifest.frame["error"] == "").to_numpy()]
    return frame[frame.groupby("label")["label"].transform("size") >= 2]


def _severity(name: str, excess: float) -> str:
    if excess > FALSIFIES_ABOVE and name != "file length":
        return "falsifies"
    return "warning" if excess > WARNS_ABOVE else ""


def _message(name: str, figures: dict[str, Any]) -> str:
    balanced, plain = figures["balanced_accuracy"], figures["accuracy"]
    return (
        f"Without a look at any picture, from {_TRIED[name]}, a decision tree tells the class with "
        f"{balanced['value']:.1%} balanced accuracy (95 % interval {balanced['low']:.1%} to "
        f"{balanced['high']:.1%}; chance is {figures['chance']:.1%}). It is right on {plain['value']:.1%} of "
        f"{figures['num_photos']:,} photos; always naming the largest class would be right on "
        f"{figures['majority_share']:.1%}. {_FOLLOWS[name]} {_MEND}"
    )


def _figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": float(value), "low": float(low), "high": float(high)}
