"""Does a run again from its own record and compares the weights. Knows nothing about the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tellapart.errors import RunError
from tellapart.records import Observer
from tellapart.run import Run, parents_of, run_stages
from tellapart.run_folder import RunFolder, RunRecord, RunRequest, new_folder
from tellapart.training.checkpoint import load_weights
from tellapart.training.environment import environment


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
    observer: Observer | None = None,
) -> Reproduction:
    """Train again from a run's own record and compare the weights.

    The photos must be where they were, with the same contents. The new run takes the old one's recipe,
    split, precision and segments.

    Args:
        run: a finished run folder.
        out: the new run folder; None: the old one's name with "-again".
        cache: the folder for decoded pictures; None: the user's cache folder.
        observer: whom to tell what is done; None: announcements are logged.

    Raises:
        RunError: `run` is not a finished run, or an ensemble.
        InputError: a photo that is not in the cache has changed or vanished.
    """
    old = RunFolder(Path(run))
    if not old.is_finished:
        raise RunError(f"{old.path} is not a finished run. Finish it first: tellapart train --resume {old.path}.")
    record, recipe = old.record(), old.recipe()
    old.refuse_ensemble()
    # With "auto" the precision would be timed again, and might come out otherwise.
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": record.precision})})
    folder = RunFolder(new_folder(out or f"{old.path.resolve()}-again", old.path))
    # Without the time budget: the replayed segments say how long to train, whatever the clock says.
    # `begin_from` too: weights that the old run began with are read again, so that run must still be there.
    request = RunRequest(
        photos=record.request.photos, begin_from=record.request.begin_from, replay=os.path.abspath(old.path)
    )
    folder.create(recipe, request, environment(), parents_of(recipe, old.path))
    # Copied, not scanned: photos that came or went since then must not change the split.
    folder.copy_photos_from(old)
    again = run_stages(folder, cache, observer)
    return _compare(old, again, record)


def _compare(old: RunFolder, again: Run, record: RunRecord) -> Reproduction:
    new = RunFolder(again.path)
    (before, _), (after, _) = load_weights(old.best_weights), load_weights(new.best_weights)
    differences = [float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(before, after, strict=True)]
    now = new.record()
    # What can change a weight, though recipe and photos are the same.
    keys = ("python", "backend", "processor", "cpu_count", "commit", "data_sha256")
    pairs = {key: (getattr(record, key), getattr(now, key)) for key in keys}
    changed = [f"{key}: {before} → {after}" for key, (before, after) in pairs.items() if before != after]
    for name in sorted(set(record.packages) | set(now.packages)):
        versions = record.packages.get(name), now.packages.get(name)
        if versions[0] != versions[1]:
            changed.append(f"{name}: {versions[0]} → {versions[1]}")
    accuracy = [metrics.get("test", {}).get("accuracy", float("nan")) for metrics in (old.metrics(), again.metrics)]
    return Reproduction(again, max(differences) == 0.0, max(differences), (accuracy[0], accuracy[1]), tuple(changed))
