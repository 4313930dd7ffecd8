"""The two verbs of the main job: train and resume. A run follows one recipe, or is a race that finds it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from tellapart.errors import InputError
from tellapart.experiments.extend import extended_photos, extended_request, measure_extension
from tellapart.experiments.racing.begin import begin_race, describe_race, is_race
from tellapart.experiments.racing.race import run_race
from tellapart.models.weights import with_weights_at_hand
from tellapart.records import Observer
from tellapart.run import Run, begin, describe, reopen, run_stages
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.settings import Machine, Recipe, fitting_recipe, load_recipe, machine_from


def train(
    photos: str | os.PathLike[str],
    *,
    recipe: Recipe | str | Path | None = None,
    changes: Sequence[str] = (),
    time_budget: float | None = None,
    split_from: str | os.PathLike[str] | None = None,
    begin_from: str | os.PathLike[str] | None = None,
    extend: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    machine: Machine | None = None,
    observer: Observer | None = None,
) -> Run:
    """Train a classifier on photos and measure it.

    Args:
        photos: a folder per class, train/val/test folders of those, or a table.
        recipe: a `Recipe`, a TOML file or the name of one; None: a race finds the best that the time allows (`race`),
            unless `changes` say what is to be done: then "transfer" where they name a network whose pretrained weights
            are at hand, else "fast" with a `time_budget`, else "reference".
        changes: settings as "section.key=value", on top of the recipe. A race takes those of the split and the seed.
        time_budget: seconds from now to the finished run, ten minutes for a race that names none; the number of epochs
            is fitted to it.
        split_from: an earlier run; photos it knows stay in their split.
        begin_from: an earlier run of the same network, whose weights training begins with; photos it knows stay in
            their split.
        extend: a finished run that the photos join: it is trained on its own and on them, and its photos keep their
            split. ``metrics["extension"]`` says what that did to what it could do (`Extension`).
        out: the new run folder; None: ``runs/NAME-DATE``.
        cache: the folder for decoded pictures; None: the user's cache folder.
        machine: threads and disk space; None: ``TELLAPART_WORKERS`` and ``TELLAPART_CACHE_LIMIT_GB``, else a thread for
            each processor and 20 GB.
        observer: whom to tell what is done; None: announcements are logged.

    Returns:
        The finished run.

    Raises:
        InputError: the photos or the recipe cannot be used, or `extend` stands beside `split_from` or `begin_from`.
        RunError: `out` is not empty, or `begin_from` has another network.
        TrainingStoppedError: the loss is no longer finite.

    Example:
        >>> run = tellapart.train("photos")
        >>> run.metrics["test"]["accuracy"]
    """
    # First of all: the time budget counts from here, and reading tables of photos takes part of it.
    started = time.time()
    # Before there is a folder: a variable that cannot be used leaves none behind.
    machine = machine or machine_from()
    if extend is not None:
        if split_from is not None or begin_from is not None:
            raise InputError(
                "A run that is extended keeps its own split and weights. Leave split_from and begin_from away, or "
                "extend away."
            )
        folder = begin_extension(photos, extend, recipe, changes, time_budget, out)
        return go_on(folder, cache, observer, machine=machine, started=started)
    request = RunRequest(
        photos=os.fspath(photos),
        time_budget=time_budget,
        split_from=None if split_from is None else os.fspath(split_from),
        begin_from=None if begin_from is None else os.fspath(begin_from),
    )
    return go_on(begin_any(recipe, changes, request, out), cache, observer, machine=machine, started=started)


def resume(
    run: str | os.PathLike[str],
    *,
    photos: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    machine: Machine | None = None,
    observer: Observer | None = None,
) -> Run:
    """Go on with an interrupted run, by its own recipe and time budget.

    Args:
        run: its folder, wherever it is now.
        photos: where they are now, if they have moved.
        cache: the folder for decoded pictures; None: the user's cache folder.
        machine: threads and disk space, as `train` takes it.
        observer: whom to tell what is done; None: announcements are logged.

    Returns:
        The finished run.

    Raises:
        InputError: the photos cannot be used.
        RunError: `run` is not a run folder, or an ensemble.
        TrainingStoppedError: the loss is no longer finite.

    Example:
        >>> run = tellapart.resume("runs/photos-20261127-101500")
    """
    return go_on(reopen(Path(run), photos), cache, observer, machine=machine or machine_from())


def begin_any(
    recipe: Recipe | str | Path | None,
    changes: Sequence[str],
    request: RunRequest,
    out: str | os.PathLike[str] | None = None,
) -> RunFolder:
    """Make the folder of a new run, or of a race; `go_on` does what it asks for.

    Args:
        recipe: as for `train`.
        changes: as for `train`.
        request: what is asked beside it.
        out: the new folder; None: ``runs/NAME-DATE``.

    Raises:
        InputError: there are no such photos, or nothing that a race could choose by.
        RunError: `out` is not empty.
    """
    if is_race(recipe, changes, request):
        return begin_race(changes, request, out)
    return begin(chosen_recipe(recipe, changes, request), request, out)


def describe_any(recipe: Recipe | str | Path | None, changes: Sequence[str], request: RunRequest) -> list[str]:
    """Return lines that say what a run, or a race, would do, without making a folder; arguments as for `begin_any`."""
    if is_race(recipe, changes, request):
        return describe_race(changes, request)
    return describe(chosen_recipe(recipe, changes, request), request)


def begin_extension(
    photos: str | os.PathLike[str],
    run: str | os.PathLike[str],
    recipe: Recipe | str | Path | None,
    changes: Sequence[str],
    time_budget: float | None,
    out: str | os.PathLike[str] | None,
) -> RunFolder:
    """Make the folder of a run that learns an earlier run's photos together with new ones; `go_on` does it.

    Args:
        photos: the new ones.
        run: the earlier run.
        recipe: another than its own; it begins with other weights then.
        changes: settings on top of the recipe.
        time_budget: seconds for the new run.
        out: its folder; None: ``runs/NAME-DATE``.

    Raises:
        InputError: there are no new photos.
        RunError: the earlier run is not finished, was joined by hand, or its photos are gone.
    """
    earlier = RunFolder(Path(run))
    # The table lies beside the run folder, which does not exist yet: if anything below fails, it is left there.
    table, folder = extended_photos(Path(photos), earlier, out)
    own_recipe, request = extended_request(table, earlier, time_budget)
    if recipe is not None:
        # Another recipe may mean another network, into which the earlier weights do not fit.
        own_recipe, request = load_recipe(recipe, changes), request.model_copy(update={"begin_from": None})
    return begin_any(own_recipe, changes, request, folder)


def chosen_recipe(recipe: Recipe | str | Path | None, changes: Sequence[str], request: RunRequest) -> Recipe:
    """Return the recipe of a run that is no race."""
    if recipe is None:
        # Before the recipe is chosen: weights that are at hand make it "transfer".
        changes = with_weights_at_hand(changes)
        recipe = fitting_recipe(changes, in_time=bool(request.time_budget))
    return load_recipe(recipe, changes)


def go_on(
    folder: RunFolder,
    cache: str | os.PathLike[str] | None = None,
    observer: Observer | None = None,
    *,
    machine: Machine | None = None,
    started: float | None = None,
) -> Run:
    """Do what a run folder asks for and has not got yet: `run_race` or `run_stages`."""
    # The record decides, not the caller: a race that is resumed goes on as a race.
    run_all = run_stages if folder.record().request.race is None else run_race
    run = run_all(folder, cache, observer, machine=machine, started=started)
    # Asked of finished runs too: a run may have been killed between its metrics and this comparison.
    if "extension" not in run.metrics and measure_extension(folder) is not None:
        return Run(folder.path, folder.metrics())
    return run
