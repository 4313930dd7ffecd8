"""The main job, top to bottom: photos become a run folder. Knows nothing about the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tellapart.data.cache import default_cache
from tellapart.data.scan import find_photos
from tellapart.errors import InputError, RunError
from tellapart.evaluation.measure import measure
from tellapart.evaluation.wording import duration
from tellapart.files import write_json
from tellapart.preparation import open_photos, prepare
from tellapart.records import Announce, Observer, Prediction, Progress, no_progress
from tellapart.run_folder import RunFolder, RunRequest, new_folder
from tellapart.settings import Machine, Recipe, machine_from, save_recipe
from tellapart.training.checkpoint import seconds_spent
from tellapart.training.distillation import loss_in_words
from tellapart.training.environment import accelerator_peak_memory_mb, environment, peak_memory_mb
from tellapart.training.planning import TrainingPlan
from tellapart.training.schedule import stages_of
from tellapart.training.time_plan import expected_seconds, plan_for_time
from tellapart.training.timing import Deadline, Precision
from tellapart.training.train import Training, TrainingRequest, precision_ahead, train_network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tellapart.bundles.bundle import Bundle
    from tellapart.evaluation.predict import Classifier
    from tellapart.report.evaluate import Report


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        metrics: the contents of ``metrics.json``.
    """

    path: Path
    metrics: dict[str, Any]

    def _repr_html_(self) -> str:
        """Show the metrics, the curves and the confusion matrix in a notebook."""
        from tellapart.evaluation.notebook import run_as_html

        return run_as_html(RunFolder(self.path), self.metrics)

    def load(self) -> Classifier:
        """Open the trained network."""
        from tellapart.evaluation.predict import load

        return load(self.path)

    def predict(
        self,
        images: Sequence[str | os.PathLike[str] | NDArray[np.uint8]],
        *,
        top_k: int = 3,
        progress: Progress = no_progress,
    ) -> list[Prediction]:
        """Classify images; one that cannot be read gets an error and costs the others nothing.

        The network is opened for each call: for many calls, keep what `load` returns.

        Args:
            images: files, or pictures as (height, width, 3) uint8 RGB arrays of any size.
            top_k: how many classes to list.
            progress: called with ("predicting", done, total).
        """
        return self.load().predict(images, top_k=top_k, progress=progress)

    def evaluate(
        self,
        photos: str | os.PathLike[str] | None = None,
        *,
        out: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        progress: Progress = no_progress,
    ) -> Report:
        """Write the report: `tellapart.evaluate` of this run."""
        import tellapart

        return tellapart.evaluate(self.path, photos, out=out, cache=cache, progress=progress)

    def export(
        self,
        to: str | os.PathLike[str],
        *,
        name: str | None = None,
        formats: Sequence[str] = (),
        cache: str | os.PathLike[str] | None = None,
        progress: Progress = no_progress,
    ) -> Bundle:
        """Make a bundle, verified against this run's network: `tellapart.export` of this run."""
        import tellapart

        return tellapart.export(self.path, to, name=name, formats=formats, cache=cache, progress=progress)


def begin(
    recipe: Recipe, request: RunRequest, out: str | os.PathLike[str] | None = None, *, prepared: Path | None = None
) -> RunFolder:
    """Make the folder of a new run; `run_stages` does what it asks for.

    Args:
        recipe: what to do.
        request: what is asked beside it; relative paths are those of the current folder.
        out: the new folder; None: ``runs/NAME-DATE``.
        prepared: a run folder of the same photos, or one that `prepared_folder` made: its table of photos and its
            split are taken over, and nothing is scanned or checked.

    Raises:
        InputError: there are no such photos.
        RunError: `out` is not empty.
    """
    find_photos(Path(request.photos))  # a wrong folder is found out before a run folder exists
    if not (recipe.train.epochs or recipe.model.weights or request.begin_from):
        raise InputError(
            "train.epochs is 0, and there are no weights to keep. Expected 1 or more, or a run to begin from."
        )
    origin = None if request.begin_from is None else RunFolder(Path(request.begin_from))
    if origin is not None and not origin.best_weights.is_file():
        raise RunError(f"{origin.path} has no weights to begin from. Expected a finished run with its checkpoints.")
    folder = RunFolder(new_folder(out, Path(request.photos)))
    # Photos that the first run learned from must not be tested on: without another order its split is kept.
    request = request.absolute(split_from=request.split_from or request.begin_from)
    folder.create(recipe, request, environment(), parents_of(recipe, request.split_from, request.begin_from))
    if prepared is not None:
        folder.copy_photos_from(RunFolder(prepared))
    return folder


def describe(recipe: Recipe, request: RunRequest) -> list[str]:
    """Return lines that say what a run would do and about how long it would take, without making a folder.

    A few photos are read and decoded, and a few steps of the network are timed.

    Args:
        recipe: what to do.
        request: what is asked beside it.

    Raises:
        InputError: there are no such photos.
    """
    root, files, _ = find_photos(Path(request.photos))
    paths, num_classes = [root / path for path in files["path"]], files["label"].nunique()
    lines = [f"Photos: {len(paths):,} in {num_classes} classes, in {root}."]
    share = 1.0
    if request.time_budget:
        plan = plan_for_time(paths, num_classes, recipe, request.time_budget)
        recipe, costs, share, seconds = plan.recipe, plan.costs, plan.share, request.time_budget
    else:
        seconds, costs = expected_seconds(paths, num_classes, recipe)
    sizes = ", then ".join(f"{stage.image_px} px" for stage in stages_of(recipe))
    if recipe.model.weights:
        doing = "features of all photos once, a fitted head, then fine-tuning if there is time and it helps"
    else:
        doing = f"{'as many epochs as fit' if request.time_budget else f'{recipe.train.epochs} epochs'} at {sizes}"
    lines.append(f"Network: {recipe.model.name}, {recipe.data.image_px} px; {doing}.")
    if share < 1:
        lines.append(f"The time allows about {share:.0%} of the photos: the rest would be left out.")
    parts = {"scan": costs.scan, "decode": costs.decode, "train on": costs.step, "predict": costs.forward}
    shown = ", ".join(f"{1000 * cost:.2g} ms to {name}" for name, cost in parts.items() if cost)
    lines.append(f"A photo takes {shown}.")
    # How long fine-tuning takes is not known before its head is fitted: without a budget that comes on top.
    bound = "at most" if request.time_budget else "at least" if recipe.model.weights else "about"
    return [*lines, f"Time: {bound} {duration(seconds)}. Nothing was written."]


def reopen(path: Path, photos: str | os.PathLike[str] | None) -> RunFolder:
    """Return an interrupted run's folder; `photos` says where they are now, if they have moved.

    Raises:
        RunError: it is not a run folder, or an ensemble.
    """
    folder = RunFolder(path)
    if not folder.is_begun:
        raise RunError(f"{path} is not a run folder (no recipe.toml). Expected one made by tellapart train.")
    if folder.record().request.race is None:  # a race that ended with an ensemble can be finished
        folder.refuse_ensemble()
    if photos is not None:
        # Looked for before the record is written: a wrong path must not take the place of a right one.
        root = find_photos(Path(photos))[0]
        record = folder.record()
        request = record.request.model_copy(update={"photos": os.path.abspath(photos)})
        folder.update_record(request=request.model_dump(mode="json", exclude_none=True))
        # The root is known once the photos were scanned; before that, the scan will find it.
        if record.root:
            folder.update_record(root=str(root))
    return folder


def parents_of(recipe: Recipe, *runs: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Return the ids of a recipe's teacher and of further runs; those that are no runs, or have no id, are left out."""
    folders = [RunFolder(Path(run)) for run in (recipe.distill.teacher or None, *runs) if run is not None]
    ids = [folder.record().run_id for folder in folders if folder.record_path.is_file()]
    return tuple(dict.fromkeys(run_id for run_id in ids if run_id))


def run_stages(
    folder: RunFolder,
    cache: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
    *,
    machine: Machine | None = None,
    started: float | None = None,
) -> Run:
    """Do what a run folder asks for and has not got yet: each stage leaves a file that says so.

    Args:
        folder: made by `begin`, or interrupted.
        cache: the folder for decoded pictures; None: the user's cache folder.
        observer: whom to tell.
        machine: threads and disk space; None: as the environment says.
        started: when its time budget began to count, by `time.time`; None: now.
    """
    started, observer = started or time.time(), observer or Observer()
    if folder.is_finished:
        observer.announce(f"{folder.path} is already finished.")
        return Run(folder.path, folder.metrics())
    machine = machine or machine_from()
    folder.update_record(machine=machine.model_dump())
    recipe, request = folder.recipe(), folder.record().request
    observer.announce(f"Run folder: {folder.path}")
    if recipe.distill.teacher:
        observer.announce(f"Learning from {recipe.distill.teacher}: {loss_in_words(recipe)}.")

    # Time
    # A resumed run has spent a part of its budget already: the clock goes on where it was.
    spent, budget = seconds_spent(folder.last_checkpoint), request.time_budget
    deadline = None
    if budget:
        recipe, deadline = _fit_into(folder, recipe, started - spent + budget, observer.announce)

    # Photos. Each stage leaves its file last of all it does: a killed run does again only what is not whole.
    cache_folder = Path(cache) if cache is not None else default_cache()
    # On an accelerator this takes seconds, in which the photos below are scanned and decoded.
    ahead = precision_ahead(recipe, cache_folder)
    if not folder.has_photos:
        prepare(folder, recipe, observer, cache_folder if machine.cache_limit_gb else None)
    asked = _training_request(request, deadline, ahead)
    photos = open_photos(folder, recipe, cache_folder, observer.progress, machine, ahead=True)

    # Training and measurement
    # They decode ahead: only closing them ends the thread that does, whatever is raised in between.
    with photos.pictures, photos.sources:
        training = train_network(folder, recipe, photos, request=asked, observer=observer)
        cached = photos.pictures.num_cached  # before the pictures close: a closed cache counts no photos
        metrics = measure(
            folder, training.model, photos.pictures, photos.frame, photos.classes, progress=observer.progress
        )
    # Before `metrics.json`: a finished run must have what it is reproduced from.
    folder.update_record(**_how(recipe, training, cached))
    if reason := metrics["unknown"].get("missing"):
        observer.announce(f"No photo will be called none of the known classes. {reason}")
    metrics |= _cost(training) | {"seconds_total": time.time() - started + spent}
    write_json(folder.metrics_path, metrics)  # last of all: where it stands, the run is finished
    folder.log("finished", seconds_total=metrics["seconds_total"])
    return Run(folder.path, metrics)


def _fit_into(folder: RunFolder, recipe: Recipe, ends: float, announce: Announce) -> tuple[Recipe, Deadline]:
    """Choose picture sizes and how many photos the time allows; a run that goes on keeps what it began with."""
    record = folder.record()
    if record.time_plan:
        # Photos are chosen and decoded by the first plan: a second one would not fit them.
        measured = record.time_plan.get("precision")
        forward = record.time_plan["seconds_per_photo"]["forward"]
        return recipe, Deadline(ends, forward, Precision(**measured) if measured else None)
    root, files, _ = find_photos(Path(record.request.photos))
    paths = [root / path for path in files["path"]]
    plan = plan_for_time(paths, files["label"].nunique(), recipe, ends - time.time())
    if folder.has_photos:  # a table that was taken over from another run is used whole
        plan = replace(plan, share=1.0)
    costs = plan.costs
    announce(
        f"Time: {ends - time.time():.0f} s left; a photo takes {1000 * costs.scan:.2g} ms to scan, "
        f"{1000 * costs.decode:.2g} ms to decode and {1000 * costs.forward:.2g} ms to predict."
    )
    if plan.recipe != recipe:
        # The recipe is saved before the plan: a resumed run that finds a plan takes the recipe in the folder as it is.
        announce(f"Pictures of {plan.recipe.data.image_px} px instead of {recipe.data.image_px} px.")
        save_recipe(plan.recipe, folder.recipe_path)
    if plan.share < 1:
        announce(f"warning: the time allows about {plan.share:.0%} of the {len(files):,} photos: the rest is left out.")
    folder.update_record(time_plan=plan.to_dict())
    return plan.recipe, Deadline(ends, costs.forward, plan.precision)


def _training_request(
    request: RunRequest, deadline: Deadline | None, precision: Future[Precision] | None
) -> TrainingRequest:
    """Return what a training is bound to, with the runs that the request names opened."""
    return TrainingRequest(
        deadline=deadline,
        replay=TrainingPlan.of_record(RunFolder(Path(request.replay)).record()) if request.replay else None,
        begin_from=RunFolder(Path(request.begin_from)) if request.begin_from else None,
        precision=precision,
    )


def _cost(training: Training) -> dict[str, Any]:
    """Return what ``metrics.json`` says of what the training took."""
    return {
        "best_epoch": training.best_epoch,
        "seconds_training": training.seconds,
        "processor_seconds_training": training.processor_seconds,
        "images_per_second": training.images_per_second,
        "peak_memory_mb": peak_memory_mb(),
        "peak_device_memory_mb": accelerator_peak_memory_mb(),
    }


def _how(recipe: Recipe, training: Training, cached: int) -> dict[str, Any]:
    """Return what ``environment.json`` says of how the training went: enough to do it again."""
    return {
        "precision": training.precision.name,
        "precision_why": training.precision.reason,
        "precision_ms_per_image": training.precision.milliseconds_per_image,
        "segments": [segment.to_dict() for segment in training.plan.segments],
        "planned_steps": training.plan.steps,
        "cached_photos": cached,
    } | ({"loss": loss_in_words(recipe)} if recipe.distill.teacher else {})
