"""Does a run again from its own record and compares the weights. Knows nothing about the command line."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import RunError
from tellapart.files import read_json
from tellapart.records import Progress, no_progress
from tellapart.run import Run, run_stages
from tellapart.run_folder import begin, copy_from, new_folder, refuse_ensemble
from tellapart.settings import load_recipe
from tellapart.training.callbacks import Announce
from tellapart.training.checkpoint import load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """How a run compares with the same run done again.

    Attributes:
        run: the new run.
        same_weights: every weight has the same bits.
        largest_difference: between two corresponding weights.
        accuracies: test accuracy of the old and the new run; NaN without test photos.
        changed: what differs in packages, processor or commit.
    """

    run: Run
    same_weights: bool
    largest_difference: float
    accuracies: tuple[float, float]
    changed: tuple[str, ...]


def reproduce(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
) -> Reproduction:
    """Train again from a run's own record and compare the weights.

    The photos must be where they were, with the same contents. The new run takes the old one's recipe,
    split, precision and segments.

    Args:
        run: a finished run folder.
        out: the new run folder; None: the old one's name with "-again".
        cache: the folder for decoded pictures; None: the user's cache folder.
        progress: called often with (what, done, total).
        announce: called with single lines that say what comes next.

    Raises:
        RunError: `run` is not a finished run, or an ensemble.
        InputError: a photo that is not in the cache has changed or vanished.
    """
    old = Path(run)
    if not (old / "metrics.json").is_file():
        raise RunError(f"{old} is not a finished run. Finish it first: tellapart train --resume {old}.")
    record = read_json(old / "environment.json")
    refuse_ensemble(old, record)
    recipe = load_recipe(old / "recipe.toml")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": record["precision"]})})
    folder = new_folder(out or f"{old}-again", old)
    order = {
        "photos": record["order"]["photos"], "time_budget": None, "split_from": None,
        "replay": os.path.abspath(old),
    }  # fmt: skip
    begin(folder, recipe, order)
    copy_from(folder, old)
    again = run_stages(folder, order, cache, time.time(), progress, announce)
    return _compare(old, again, record)


def _compare(old: Path, again: Run, record: dict[str, Any]) -> Reproduction:
    before, _ = load_weights(old / "checkpoints" / "best.npz")
    after, _ = load_weights(again.path / "checkpoints" / "best.npz")
    differences = [float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(before, after, strict=True)]
    now = read_json(again.path / "environment.json")
    keys = ("python", "backend", "processor", "cpu_count", "commit", "data_sha256")
    changed = [f"{key}: {record.get(key)} → {now.get(key)}" for key in keys if record.get(key) != now.get(key)]
    for name in sorted(set(record["packages"]) | set(now["packages"])):
        versions = record["packages"].get(name), now["packages"].get(name)
        if versions[0] != versions[1]:
            changed.append(f"{name}: {versions[0]} → {versions[1]}")
    accuracy = [
        metrics.get("test", {}).get("accuracy", float("nan"))
        for metrics in (read_json(old / "metrics.json"), again.metrics)
    ]
    return Reproduction(again, max(differences) == 0.0, max(differences), (accuracy[0], accuracy[1]), tuple(changed))
