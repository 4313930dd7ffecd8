"""One trial: an ordinary training run on photos without the test split. Knows nothing about stores or pages.

A trial leaves its folder small: of all runs only the few best keep their weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tellapart.errors import TrainingStoppedError
from tellapart.experiments.jobs import Job, run_job
from tellapart.experiments.tuning.search_space import Space, Value, recipe_with
from tellapart.experiments.tuning.study import first_rung
from tellapart.files import read_json, write_json
from tellapart.records import Progress, Watch
from tellapart.settings import Recipe, machine_from

KEPT = 3
"""Trials whose weights stay on disk."""
_LOOKS = 9
"""Times that a trial looks at the validation photos, at least: with fewer, poor trials could not be stopped early."""


@dataclass(frozen=True)
class Search:
    """What all trials of a search have in common.

    Attributes:
        folder: of the search.
        recipe: what is changed from trial to trial.
        space: within which ranges.
        precision: that all trials compute in, chosen once.
        seed: of the sampler.
        prunes: whether poor trials are stopped early.
        pareto: whether milliseconds per image are an aim too.
        cache: the folder for decoded pictures.
        workers: processes that share this machine.
    """

    folder: Path
    recipe: Recipe
    space: Space
    precision: str
    seed: int
    prunes: bool
    pareto: bool
    cache: Path | None
    workers: int = 1

    @property
    def photos(self) -> Path:
        """The table of photos and their split, test photos and all: what the winner is judged on."""
        return self.folder / "photos"

    @property
    def visible(self) -> Path:
        """The same table without the test photos: all that a trial is given."""
        return self.folder / "visible"

    @property
    def validate_every(self) -> int:
        """Epochs between two looks of a trial at the validation photos."""
        train = self.recipe.train
        return max(1, min(train.validate_every, train.epochs // _LOOKS))

    @property
    def rung(self) -> int | None:
        """The epoch after which poor trials are stopped first; None: none is."""
        train = self.recipe.train
        rung = first_rung(train.epochs, self.validate_every, train.warmup_epochs)
        # A rung at the last epoch would stop nothing.
        return rung if self.prunes and not self.pareto and rung < train.epochs else None


@dataclass(frozen=True)
class Measured:
    """What a finished trial reached on the validation photos.

    Attributes:
        accuracy: of the weights that were kept.
        loss: cross-entropy in nats, without label smoothing, so that trials can be compared.
        best_epoch: whose weights were kept.
    """

    accuracy: float
    loss: float
    best_epoch: int


def trial_recipe(search: Search, values: Mapping[str, Value]) -> Recipe:
    """Return the recipe of a trial: the values, and what makes trials comparable and cheap."""
    recipe = recipe_with(search.recipe, values)
    # Chosen once for all: "auto" may choose otherwise from run to run, and trials could not be compared.
    train = {"precision": search.precision, "validate_every": search.validate_every}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def run_trial(
    search: Search, folder: Path, values: Mapping[str, Value], *, watch: Watch, progress: Progress
) -> Measured | None:
    """Train and measure one trial, or go on with it where it was interrupted.

    Args:
        search: what all trials have in common.
        folder: of the trial.
        values: what sets it apart.
        watch: called with each epoch's row of history; what it raises ends the trial.
        progress: called with (what, done, total).

    Returns:
        What it reached; None where its loss was no longer finite.
    """
    job = Job(folder, trial_recipe(search, values), search.visible)
    machine = machine_from()
    if not machine.workers:  # its share of the processors
        machine = machine_from(workers=max(1, (os.cpu_count() or 1) // search.workers))
    try:
        metrics = run_job(job, cache=search.cache, progress=progress, watch=watch, machine=machine)
    except TrainingStoppedError:
        return None
    validation = metrics["validation"]
    return Measured(validation["accuracy"], validation["loss"], metrics["best_epoch"])


def milliseconds(search: Search, folder: Path, recipe: Recipe) -> float:
    """Return the milliseconds per image of a trial's network, one at a time: `predict` in Keras, median of 15.

    Networks of one shape get one number, measured once: their weights make no difference, and noise would.
    """
    from tellapart.experiments.cost import cost_of, with_speed

    cost = cost_of(folder)
    saved_path = search.folder / "latency" / f"{recipe.model.name}-{cost.parameters}-{cost.image_px}.json"
    # Two workers may measure at once: the file is written whole, and the last one counts.
    if not saved_path.exists():
        (measured,) = with_speed([folder], [cost])
        write_json(saved_path, {"ms_per_image": (measured.ms_per_image or {})[1]})
    return float(read_json(saved_path)["ms_per_image"])
