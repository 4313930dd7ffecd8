"""The main job, top to bottom: photos become a run folder. Knows nothing about the command line."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tellapart.data.cache import default_cache, open_rows
from tellapart.data.duplicates import near_duplicates, units
from tellapart.data.health import examine, to_json
from tellapart.data.scan import find_photos, scan
from tellapart.data.split import split
from tellapart.errors import InputError, RunError
from tellapart.evaluation.measure import measure
from tellapart.evaluation.predictions import teacher_for
from tellapart.files import write_json
from tellapart.records import SPLITS, Manifest, Prediction, Progress, no_progress
from tellapart.run_folder import RunFolder, RunRequest, new_folder
from tellapart.settings import Machine, Recipe, fitting_recipe, load_recipe, machine_from, save_recipe
from tellapart.training.callbacks import Announce, Watch, unwatched
from tellapart.training.checkpoint import seconds_spent
from tellapart.training.distillation import loss_in_words
from tellapart.training.environment import accelerator_peak_memory_mb, data_hash, environment, peak_memory_mb
from tellapart.training.inputs import Photos
from tellapart.training.planning import TrainingPlan
from tellapart.training.time_plan import plan_for_time
from tellapart.training.timing import Deadline
from tellapart.training.train import Training, precision_ahead, train_network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tellapart.bundles.bundle import Bundle
    from tellapart.evaluation.predict import Classifier
    from tellapart.report.evaluate import Report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        metrics: the contents of ``metrics.json``.
    """

    path: Path
    metrics: dict[str, Any]

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


def train(
    photos: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    changes: Sequence[str] = (),
    time_budget: float | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    split_from: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    prepared: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    cache_limit_gb: float | None = None,
    started: float | None = None,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
    watch: Watch = unwatched,
) -> Run:
    """Train a classifier on photos and measure it.

    Args:
        photos: a folder per class, train/val/test folders of those, or a table; not needed with `resume`.
        recipe: a `Recipe`, a TOML file or the name of one; None: "transfer" where `changes` name pretrained weights,
            else "fast" with a `time_budget`, else "reference".
        changes: settings as "section.key=value", on top of the recipe.
        time_budget: seconds from `started` to the finished run; the number of epochs is fitted to it.
        out: the new run folder; None: ``runs/NAME-DATE``.
        resume: an interrupted run folder to go on with, by its own recipe and time budget; only `photos`, where they
            have moved, can be given beside it.
        split_from: an earlier run; photos it knows stay in their split.
        cache: the folder for decoded pictures; None: the user's cache folder.
        prepared: a run folder of the same photos, or one that `prepare` made: its table of photos and its split are
            taken over, and nothing is scanned or checked.
        workers: threads that make batches; None: ``TELLAPART_WORKERS``, else one for each processor.
        cache_limit_gb: decoded pictures kept on disk, for each size; 0: none; None: ``TELLAPART_CACHE_LIMIT_GB``, else
            20.
        started: when the time began to count, by `time.time`; None: now.
        progress: called often with (what, done, total).
        announce: called with single lines that say what comes next.
        watch: called with each epoch's row of the history; what it raises ends the run, which can be resumed.

    Returns:
        The finished run.

    Raises:
        InputError: the photos or the recipe cannot be used, or something contradicts `resume`.
        RunError: `out` is not empty, or `resume` is no run.
        TrainingStoppedError: the loss is no longer finite.

    Example:
        >>> run = tellapart.train("photos", time_budget=600)
        >>> run.metrics["test"]["accuracy"]
    """
    started = time.time() if started is None else started
    machine = machine_from(workers=workers, cache_limit_gb=cache_limit_gb)
    if resume is not None:
        _refuse_beside_resume({
            "recipe (--recipe)": recipe, "changes (--set)": changes, "time_budget (--time)": time_budget,
            "out (--out)": out, "split_from (--split-from)": split_from, "prepared": prepared,
        })  # fmt: skip
        folder = reopen(Path(resume), photos)
    else:
        if photos is None:
            raise InputError("No photos were given. Expected a folder of photos, or a run to resume.")
        recipe = load_recipe(recipe or fitting_recipe(changes, in_time=bool(time_budget)), changes)
        find_photos(Path(photos))  # a wrong folder is found out before a run folder exists
        folder = RunFolder(new_folder(out, Path(photos)))
        request = RunRequest(
            photos=os.path.abspath(photos),
            time_budget=time_budget,
            split_from=None if split_from is None else os.path.abspath(split_from),
        )
        folder.create(recipe, request, environment(), parents_of(recipe, split_from))
        if prepared is not None:
            folder.copy_photos_from(RunFolder(Path(prepared)))
    return run_stages(folder, cache, started, progress, announce, watch, machine)


def reopen(path: Path, photos: str | os.PathLike[str] | None) -> RunFolder:
    """Return an interrupted run's folder; `photos` says where they are now, if they have moved.

    Raises:
        RunError: it is not a run folder, or an ensemble.
    """
    folder = RunFolder(path)
    if not folder.is_begun:
        raise RunError(f"{path} is not a run folder (no recipe.toml). Expected one made by tellapart train.")
    folder.refuse_ensemble()
    if photos is not None:
        record = folder.record()
        request = record.request.model_copy(update={"photos": os.path.abspath(photos)})
        folder.update_record(request=request.model_dump(mode="json", exclude_none=True))
        if record.root:
            folder.update_record(root=str(find_photos(Path(photos))[0]))
    return folder


def parents_of(recipe: Recipe, *runs: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Return the ids of a recipe's teacher and of further runs; those that are no runs, or have no id, are left out."""
    folders = [RunFolder(Path(run)) for run in (recipe.distill.teacher or None, *runs) if run is not None]
    ids = [folder.record().run_id for folder in folders if folder.record_path.is_file()]
    return tuple(dict.fromkeys(each for each in ids if each))


def _refuse_beside_resume(given: dict[str, Any]) -> None:
    """Refuse what a resumed run would have to ignore: half of it by one recipe and half by another is no run."""
    contradicting = [name for name, value in given.items() if value]
    if contradicting:
        raise InputError(
            f"A resumed run keeps its recipe, time budget and folder; got {', '.join(contradicting)} as well. Leave "
            "that out to go on with the run, or leave out resume (--resume) to train a new one."
        )


def run_stages(
    folder: RunFolder, cache: str | os.PathLike[str] | None, started: float,
    progress: Progress, announce: Announce, watch: Watch = unwatched, machine: Machine | None = None,
) -> Run:  # fmt: skip
    """Do what is not done yet: each stage leaves a file that says so; `machine`: None as the environment says."""
    if folder.is_finished:
        announce(f"{folder.path} is already finished.")
        return Run(folder.path, folder.metrics())
    machine = machine or machine_from()
    folder.update_record(machine=machine.model_dump())
    recipe, request = folder.recipe(), folder.record().request
    announce(f"Run folder: {folder.path}")
    if recipe.distill.teacher:
        announce(f"Learning from {recipe.distill.teacher}: {loss_in_words(recipe)}.")

    # Time
    spent, budget = seconds_spent(folder.last_checkpoint), request.time_budget
    deadline = None
    if budget:
        recipe, deadline = _fit_into(folder, recipe, started - spent + budget, announce)

    # Photos. Each stage leaves its file last of all it does: a killed run does again only what is not whole.
    ahead = precision_ahead(recipe, Path(cache) if cache is not None else default_cache())
    if not folder.has_photos:
        prepare(folder, recipe, progress, announce)
    photos = open_photos(folder, recipe, cache, progress, machine, ahead=True)

    # Training
    replayed = RunFolder(Path(request.replay)).record() if request.replay else None
    with photos.pictures, photos.sources:
        training = train_network(
            folder.path,
            recipe,
            photos,
            deadline=deadline,
            replay=TrainingPlan.of_record(replayed) if replayed else None,
            ahead=ahead,
            progress=progress,
            announce=announce,
            watch=watch,
        )

        # Measurement
        cached = photos.pictures.num_cached
        metrics = measure(folder.path, photos.pictures, photos.frame, photos.classes, progress=progress)
    how = _how(training, cached)
    if recipe.distill.teacher:
        how["loss"] = loss_in_words(recipe)
    folder.update_record(**how)
    metrics |= {
        "best_epoch": training.best_epoch,
        "seconds_training": training.seconds,
        "processor_seconds_training": training.processor_seconds,
        "seconds_total": time.time() - started + spent,
        "images_per_second": training.images_per_second,
        "peak_memory_mb": peak_memory_mb(),
        "peak_device_memory_mb": accelerator_peak_memory_mb(),
    }
    write_json(folder.metrics_path, metrics)  # last of all: where it stands, the run is finished
    folder.log("finished", seconds_total=metrics["seconds_total"])
    return Run(folder.path, metrics)


def _fit_into(folder: RunFolder, recipe: Recipe, ends: float, announce: Announce) -> tuple[Recipe, Deadline]:
    """Choose picture sizes and how many photos the time allows; a run that goes on keeps what it began with."""
    record = folder.record()
    if record.time_plan:
        return recipe, Deadline(ends, record.time_plan["seconds_per_photo"]["forward"])
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
        announce(f"Pictures of {plan.recipe.data.image_px} px instead of {recipe.data.image_px} px.")
        save_recipe(plan.recipe, folder.recipe_path)
    if plan.share < 1:
        announce(f"warning: the time allows about {plan.share:.0%} of the {len(files):,} photos: the rest is left out.")
    folder.update_record(time_plan=plan.to_dict())
    return plan.recipe, Deadline(ends, costs.forward, plan.precision)


def open_photos(
    folder: RunFolder, recipe: Recipe, cache: str | os.PathLike[str] | None, progress: Progress, machine: Machine,
    *, ahead: bool = False,
) -> Photos:  # fmt: skip
    """Open the readable photos of the manifest, decoding what the cache lacks; `ahead`: while the caller goes on."""
    manifest = folder.manifest()
    frame = manifest[manifest["error"] == ""].reset_index(drop=True)
    pictures, sources = (
        open_rows(
            folder.root,
            frame,
            image_px,
            folder=Path(cache) if cache is not None else default_cache(),
            limit_bytes=int(machine.cache_limit_gb * 1e9),
            max_pixels=recipe.data.max_pixels,
            progress=progress,
            ahead=ahead,
        )
        for image_px in (recipe.data.image_px, recipe.train.source_px or recipe.data.image_px)
    )
    classes = sorted(manifest["label"].unique().tolist())
    teacher = teacher_for(Path(recipe.distill.teacher), frame, classes) if recipe.distill.teacher else None
    return Photos(pictures, sources, frame, classes, teacher, machine.workers)


def _how(training: Training, cached: int) -> dict[str, Any]:
    """Return what ``environment.json`` says of how the training went: enough to do it again."""
    return {
        "precision": training.precision.name,
        "precision_why": training.precision.reason,
        "precision_ms_per_image": training.precision.milliseconds_per_image,
        "segments": [segment.to_dict() for segment in training.plan.segments],
        "planned_steps": training.plan.steps,
        "cached_photos": cached,
    }


def prepared_folder(
    photos: str | os.PathLike[str], folder: Path, recipe: Recipe, *, progress: Progress, announce: Announce
) -> Path:
    """Scan, check and split photos once, for many runs with the same ``data.split`` to begin from.

    Args:
        photos: as `train` takes them.
        folder: where the table goes; where it lies already, nothing is done.
        recipe: only its section ``data`` counts.
        progress: called often with (what, done, total).
        announce: called with what is wrong with the photos.

    Returns:
        `folder`.
    """
    run = RunFolder(folder)
    if not run.has_photos:
        find_photos(Path(photos))
        run.create(recipe, RunRequest(photos=os.path.abspath(photos)), environment())
        prepare(run, recipe, progress, announce)
    return folder


def prepare(folder: RunFolder, recipe: Recipe, progress: Progress, announce: Announce) -> None:
    """Scan, check and split the photos of a folder that was created; ``manifest.csv`` comes last: then all is done."""
    record = folder.record()
    request = record.request
    manifest = scan(
        request.photos,
        max_pixels=recipe.data.max_pixels,
        share=(record.time_plan or {}).get("share", 1.0),
        seed=recipe.data.split_seed,
        progress=progress,
    )
    pairs = near_duplicates(manifest)
    health = examine(manifest, pairs, seed=recipe.data.split_seed, progress=progress)
    write_json(folder.health_path, to_json(health))
    serious = [finding for finding in health.findings if finding.severity != "note"]
    for finding in serious:
        announce(f"{finding.severity}: {finding.kind}: {finding.message.split('. ')[0]}.")
    if serious:
        announce(
            f"What follows, and how to fix it: tellapart check {request.photos}, or health.json in the run folder."
        )
    earlier = RunFolder(Path(request.split_from)).splits() if request.split_from else None
    unit = units(manifest, pairs)
    sides = split(
        manifest,
        unit,
        shares=recipe.data.split,
        seed=recipe.data.split_seed,
        earlier=earlier,
    )
    manifest = replace(manifest, frame=manifest.frame.assign(split=sides, unit=unit))
    _refuse_unusable(manifest)
    folder.update_record(
        root=str(manifest.root),
        classes=manifest.classes,
        num_photos=len(manifest.readable),
        data_sha256=data_hash(manifest.readable),
    )
    counts = manifest.readable["split"].value_counts()
    announce("Split: " + ", ".join(f"{counts.get(side, 0):,} {side}" for side in SPLITS) + ".")
    # Last: where the manifest stands, a resumed run scans and splits nothing again.
    folder.write_manifest(manifest.frame)


def _refuse_unusable(manifest: Manifest) -> None:
    readable = manifest.readable
    if len(manifest.classes) < 2:
        raise InputError(
            f"{manifest.root} has only the class {manifest.classes[0]!r}. Expected at least two classes to tell apart."
        )
    empty = sorted(set(manifest.classes) - set(readable["label"][readable["split"] == "train"]))
    if empty:
        raise InputError(
            f"Class {empty[0]!r} has no readable photo to train on"
            + (f" (and {len(empty) - 1} more classes)" if len(empty) > 1 else "")
            + ". Add photos, or take the class out. tellapart check says more."
        )
