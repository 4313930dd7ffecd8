"""Run folders that a test writes, with answers that it knows; without a network that gave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tellapart.files import sha256

CLASSES = ["NA", "cat", "dog"]
"""A class may be called what pandas takes for missing."""
COUNT = 600


def write_run(
    folder: Path,
    said: np.ndarray,
    *,
    classes: list[str] = CLASSES,
    sides: np.ndarray | None = None,
    digests: list[str] | None = None,
    root: Path = Path("gone"),
) -> Path:
    """Write the files of a finished run whose photos are of each class in turn and were named as `said`."""
    count = len(said)
    true = np.arange(count) % len(classes)
    probabilities = 0.1 + 0.7 * np.eye(len(classes))[said]
    side = np.full(count, "test", object) if sides is None else sides
    paths = [f"{classes[number]}/photo é {place}.jpg" for place, number in enumerate(true)]
    labels = [classes[number] for number in true]
    manifest = pd.DataFrame({
        "path": [json.dumps(path)[1:-1] for path in paths], "label": labels, "split": side,
        "sha256": digests or [sha256(path.encode()) for path in paths],
        "width": 200, "height": np.arange(count) % 150 + 50, "error": "",
    })  # fmt: skip
    unreadable = pd.DataFrame([dict(manifest.iloc[0]) | {"path": "bad.jpg", "error": "no image", "sha256": "bad"}])
    predictions = pd.DataFrame({
        "path": paths, "split": side, "true_label": labels, "predicted_label": [classes[number] for number in said],
        **{f"p:{name}": probabilities[:, number] for number, name in enumerate(classes)},
    })  # fmt: skip
    folder.mkdir(parents=True)
    pd.concat([unreadable, manifest]).to_csv(folder / "manifest.csv", index=False)
    predictions.to_csv(folder / "predictions.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps({"seconds_training": 12.5, "seconds_total": 20.0}))
    (folder / "environment.json").write_text(json.dumps({"root": str(root), "classes": classes}))
    return folder


def wrong_at(*places: int, count: int = COUNT) -> np.ndarray:
    """Return what a model names that is wrong at these photos alone."""
    said = np.arange(count) % len(CLASSES)
    said[list(places)] = (said[list(places)] + 1) % len(CLASSES)
    return said
