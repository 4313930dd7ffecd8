"""One way to run many runs: a job is a recipe, a prepared table of photos and a folder. Knows nothing of what for.

An experiment lists its jobs; `run_job` does one of them, here and now. What runs them elsewhere, or several at once,
needs no more than a job holds.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.records import Observer, Progress, Watch, unwatched
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.settings import Machine, Recipe


@dataclass(frozen=True)
class Job:
    """A training run that an experiment needs.

    Attributes:
        folder: of the run.
        recipe: what to do.
        prepared: a folder with the table of photos and their split; nothing else is looked at.
        begin_from: a run folder whose weights training begins with; None: as the recipe says.
    """

    folder: Path
    recipe: Recipe
    prepared: Path
    begin_from: Path | None = None

    @property
    def run(self) -> RunFolder:
        """The run's files."""
        return RunFolder(self.folder)


def run_job(
    job: Job, *, cache: Path | None, progress: Progress, watch: Watch = unwatched, machine: Machine | None = None
) -> dict[str, Any]:
    """Do a job, or what is left of it, and forget its network.

    Args:
        job: what to do.
        cache: the folder for decoded pictures; None: the user's.
        progress: called often with (what, done, total).
        watch: called with each epoch's row of the history; what it raises ends the run, which can be resumed.
        machine: threads and disk space, as `tellapart.train` takes it.

    Returns:
        The contents of ``metrics.json``.

    Raises:
        InputError: the photos or the recipe cannot be used.
        TrainingStoppedError: the loss is no longer finite; its checkpoints stay.
    """
    from tellapart.run import begin, reopen, run_stages
    from tellapart.training.network import forget_networks

    observer = Observer(progress, announce=lambda line: None, watch=watch)
    try:
        # Without its table of photos a run would scan them again, and a trial would see its test photos.
        if job.run.is_begun and job.run.has_photos:
            return run_stages(reopen(job.folder, None), cache, observer, machine=machine).metrics
        # A kill before its table was there may have left a part, and `begin` refuses a folder that is not empty.
        shutil.rmtree(job.folder, ignore_errors=True)
        begin_from = None if job.begin_from is None else str(job.begin_from)
        request = RunRequest(photos=RunFolder(job.prepared).record().request.photos, begin_from=begin_from)
        folder = begin(job.recipe, request, job.folder, prepared=job.prepared)
        return run_stages(folder, cache, observer, machine=machine).metrics
    finally:
        # Keras keeps every network of a process: dozens of runs one after another would fill the memory.
        forget_networks()


def tidy(folder: Path, *, keep_weights: bool = True) -> None:
    """Delete what only a resumed run needs, and the weights too where they are not to be kept."""
    run = RunFolder(folder)
    shutil.rmtree(run.tensorboard, ignore_errors=True)
    # Large: it holds the optimiser's variables beside the weights. Only a run that goes on reads it, or `--snapshots`.
    run.last_checkpoint.unlink(missing_ok=True)
    if not keep_weights:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        run.model_path.unlink(missing_ok=True)
