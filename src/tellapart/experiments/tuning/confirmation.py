"""The winner of a search run again with fresh seeds, beside the recipe that it is to beat. Knows nothing of searches.

The winner was chosen by its accuracy on the validation photos with one seed, and part of that was luck. Here all of it
is new: seeds and test photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.multi_seed import compare_over_seeds
from tellapart.experiments.jobs import Job, run_job
from tellapart.experiments.tuning.result import Confirmation
from tellapart.records import Announce, Progress
from tellapart.settings import Recipe


def confirm(
    folder: Path,
    prepared: Path,
    recipes: tuple[Recipe, Recipe],
    *,
    name: str,
    seeds: Sequence[int],
    cache: Path | None,
    progress: Progress,
    announce: Announce,
) -> Confirmation:
    """Train both recipes with each seed and compare them on the test photos; what is trained already stays.

    Args:
        folder: where the runs go: ``recipe-SEED`` and ``tuned-SEED``.
        prepared: the table of photos and its split.
        recipes: the one to beat, and the winner.
        name: of the one to beat.
        seeds: that no trial had.
        cache: the folder for decoded pictures.
        progress: called with (what, done, total).
        announce: called with a line for each run.
    """
    # In the order of `recipes`: the one to beat, then the winner.
    right: dict[str, list[NDArray[np.bool_]]] = {"recipe": [], "tuned": []}
    groups: NDArray[np.int64] | None = None  # the same in all runs: they share one table of photos
    for seed in seeds:  # in turn: other work on the machine slows both alike
        for role, recipe in zip(right, recipes, strict=True):
            seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
            run = folder / f"{role}-{seed}"

            def named_progress(task: str, done: int, total: int, run: Path = run) -> None:
                progress(f"confirming, {run.name}: {task}", done, total)

            run_job(Job(run, seeded, prepared), cache=cache, progress=named_progress)
            correct, groups = _right_on_test(run)
            right[role].append(correct)
            announce(f"{'tuned' if role == 'tuned' else name}, seed {seed}: {right[role][-1].mean():.3f} on test")
    # Paired by place: rows are seeds, columns are photos, in one order for both.
    first, second = np.stack(right["recipe"]), np.stack(right["tuned"])
    accuracies = tuple((float(a), float(b)) for a, b in zip(first.mean(axis=1), second.mean(axis=1), strict=True))
    return Confirmation(name, tuple(seeds), accuracies, first.shape[1], compare_over_seeds(first, second, groups))


def _right_on_test(run: Path) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None]:
    """Return which test photos a finished run classified correctly, and their groups, in the order of its table."""
    from tellapart.experiments.finished_run import open_finished_run

    finished_run = open_finished_run(run, run.name)
    tested = (finished_run.photos["split"] == "test").to_numpy()
    predicted = np.array(finished_run.classes)[finished_run.probabilities[tested].argmax(axis=1)]
    groups = finished_run.photos["unit"].to_numpy(np.int64)[tested] if "unit" in finished_run.photos else None
    return np.asarray(predicted == finished_run.photos["label"].to_numpy(object)[tested]), groups
