"""The story of a search for better settings: prepare, search, say what was found, confirm it. Reads top to bottom.

Test photos take part in the last step only: the table of photos that a trial is given does not have them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tellapart.databases import without_password
from tellapart.errors import InputError, RunError
from tellapart.experiments.tuning.result import Tuning, front_of, table_of, winner_of
from tellapart.experiments.tuning.search_space import recipe_with, space_texts
from tellapart.experiments.tuning.space_reader import search_space
from tellapart.experiments.tuning.study import Heartbeat, num_finished, optuna_or_error
from tellapart.experiments.tuning.trial import Search
from tellapart.experiments.tuning.work import SearchJob, TrialReporter, seconds_of, trials_of, work
from tellapart.files import read_json, sha256, write_json, write_text
from tellapart.locks import locked
from tellapart.records import Announce, Observer, Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe, load_recipe, machine_from, save_recipe, saved_values
from tellapart.tables import csv_text

logger = logging.getLogger(__name__)

HEARTBEAT = Heartbeat()


def tune(
    photos: str | os.PathLike[str],
    *,
    trials: int = 30,
    recipe: Recipe | str | Path = "fast",
    changes: Sequence[str] = (),
    space: Sequence[str] = (),
    time_limit: float | None = None,
    storage: str | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int = 1,
    seeds: int = 3,
    pareto: bool = False,
    prunes: bool = True,
    seed: int = 0,
    heartbeat: Heartbeat = HEARTBEAT,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
) -> Tuning:
    """Search for settings that suit the photos better than a recipe, and say whether they do.

    Optuna's TPE proposes settings, each trial is an ordinary run that is judged on the validation photos, and poor
    trials are stopped early. The winner is then trained anew with fresh seeds, beside the recipe, and the two are
    compared on the test photos, which no trial has seen. The same call goes on with a search that was interrupted, and
    joins one that is under way.

    Args:
        photos: as `train` takes them.
        trials: as many are to be finished, those of earlier calls among them.
        recipe: what is changed: a `Recipe`, a TOML file or the name of one. Its epochs are those of a trial.
        changes: settings of all trials as "section.key=value".
        space: what is searched, as `search_space` takes it; nothing: its default.
        time_limit: seconds after which no trial is begun.
        storage: URL of a database that workers share; None: a file in `out`.
        out: the folder of the search; None: ``tuning/NAME``.
        workers: processes that run trials side by side.
        seeds: runs of each of the two in the end; 0: the winner is not confirmed.
        pareto: milliseconds per image are an aim too. No trial is stopped early then: Optuna does so for one aim only.
        prunes: stop poor trials early.
        seed: of the search.
        heartbeat: how a killed worker is found out.
        cache: the folder for decoded pictures; None: the user's cache folder.
        progress: called often with (what, done, total).
        announce: called with a line for each trial that has ended, and whatever else there is to say.

    Returns:
        What was found, also in ``tune.json``, ``tune.html``, ``trials.csv`` and ``best.toml`` in `out`.

    Raises:
        InputError: the photos, the recipe or the space cannot be used, Optuna is missing, the storage cannot be
            reached, or `out` holds another search.
        RunError: no trial was finished, or the storage was lost.

    Example:
        >>> print(tellapart.tune("photos", trials=30).verdict)
        The tuned recipe is better than fast: +1.2 points (0.3 to 2.1), p = 0.010, 3 seeds.
    """
    # What is wanted
    optuna_or_error()
    _check_counts(trials, workers, seeds)
    name = "the recipe" if isinstance(recipe, Recipe) else Path(recipe).stem
    base = load_recipe(recipe, changes)
    folder = Path(out) if out is not None else Path("tuning") / Path(photos).resolve().stem
    search = Search(
        folder=folder, recipe=base, space=search_space(space, base), precision="", seed=seed, prunes=prunes,
        # No more workers than trials: idle ones would take their share of the processors from the others.
        pareto=pareto, cache=None if cache is None else Path(cache), workers=min(workers, trials),
    )  # fmt: skip
    # From here on, so that scanning and decoding the photos count.
    deadline = None if time_limit is None else time.time() + time_limit
    # Before the lock, whose file would make a new folder look like one that holds something else.
    _claim(search, os.path.abspath(photos), storage)

    # Search
    # Held to the end: who gets the lock prepares the photos and confirms the winner, everybody else helps.
    with locked(folder / ".owner", wait=False) as is_first:
        if is_first:
            search = _prepare(search, photos, progress, announce)
        else:
            announce("Another process has this search under way: helping it. It will confirm the winner.")
            search = _await_preparation(search, progress)
        if storage or not is_first:  # whoever else works on the study must not draw the same numbers
            search = replace(search, seed=seed + int.from_bytes(os.urandom(3)))
        url = storage or _file_storage(folder)
        job = SearchJob(search, url, _study_name(search), trials, deadline, heartbeat)
        try:
            _search(job, progress, announce)
        except KeyboardInterrupt:
            announce("The search is kept: the same command goes on with it.")
            raise

        # What was found
        result = _summary(job)
        if not is_first:
            return result
        # Before the confirmation, which trains twice as many runs as there are seeds: a stop there loses no result.
        _write(result, progress)

        # Confirm it
        result = _confirmed(result, search, name=name, seeds=seeds, progress=progress, announce=announce)
        _write(result, progress)
    return result


def _check_counts(trials: int, workers: int, seeds: int) -> None:
    if trials < 1 or workers < 1 or seeds < 0:
        raise InputError(f"trials is {trials}, workers {workers}, seeds {seeds}. Expected at least 1, 1 and 0.")


def _claim(search: Search, photos: str, storage: str | None) -> None:
    """Keep what is searched in the folder, and refuse to mix two searches.

    Raises:
        InputError: the folder holds another one.
    """
    # Plain JSON values, for they are compared with what was read back from the file. No password: anybody who sees the
    # folder could read it.
    wanted: dict[str, Any] = {
        "photos": photos,
        "space": space_texts(search.space),
        "pareto": search.pareto,
        "prunes": search.prunes,
        "seed": search.seed,
        "storage": None if storage is None else without_password(storage),
        "recipe": saved_values(search.recipe),
    }
    saved_path = search.folder / "search.json"
    if saved_path.exists():
        saved = read_json(saved_path)
        differing = [part for part, value in wanted.items() if saved.get(part) != value]
        if differing:
            part = differing[0]
            raise InputError(
                f"{search.folder} holds another search, with {part} {_shown(saved.get(part))}; this one has "
                f"{_shown(wanted[part])}. Go on with the same, or name another folder with --out."
            )
        return
    if search.folder.is_dir() and any(search.folder.iterdir()):
        raise InputError(f"{search.folder} is not empty and holds no search. Name another folder with --out.")
    write_json(saved_path, wanted)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "…"


def _prepare(search: Search, photos: str | os.PathLike[str], progress: Progress, announce: Announce) -> Search:
    """Split the photos, take the test photos away, decode the others and choose the precision of all trials."""
    from tellapart.preparation import open_photos, prepared_folder
    from tellapart.training.inputs import Inputs
    from tellapart.training.network import compiled, forget_networks
    from tellapart.training.schedule import stages_of
    from tellapart.training.timing import choose_precision

    precision_path = search.folder / "precision.json"
    if not precision_path.exists():
        prepared_folder(photos, search.photos, search.recipe, Observer(progress, announce))
        make_visible(search.photos, search.visible)
        visible_photos = open_photos(RunFolder(search.visible), search.recipe, search.cache, progress, machine_from())
        with visible_photos.pictures, visible_photos.sources:
            inputs = Inputs(search.recipe, visible_photos)
            progress("choosing the precision", 0, 1)
            precision = choose_precision(
                search.recipe.train.precision,
                lambda name: compiled(search.recipe, inputs.num_classes, name)[0],
                inputs.training(stages_of(search.recipe)[-1].image_px),
            )
        forget_networks()
        # Written last: this file says that the photos are prepared, and helpers wait for it.
        write_json(precision_path, {"name": precision.name, "reason": precision.reason})
    return replace(search, precision=read_json(precision_path)["name"])


def _await_preparation(search: Search, progress: Progress) -> Search:
    """Wait for the process that owns the search."""
    precision_path = search.folder / "precision.json"
    while not precision_path.exists():
        progress("waiting for the photos to be prepared", 0, 1)
        with locked(search.folder / ".owner", wait=False) as is_free:
            # The owner holds its lock as long as it lives: a free lock without the file means that it died.
            if is_free:
                raise RunError(f"The process that prepared {search.folder} has ended early. Run the command again.")
        time.sleep(0.5)
    return replace(search, precision=read_json(precision_path)["name"])


def make_visible(prepared: Path, visible: Path) -> None:
    """Write what a trial may see of a prepared folder: its training and validation photos, and nothing of the others.

    Raises:
        InputError: there are no validation photos.
    """
    from tellapart.training.environment import data_hash

    manifest = RunFolder(prepared).manifest()
    frame = manifest[manifest["split"].isin(["train", "validation"]) & (manifest["error"] == "")]
    if not (frame["split"] == "validation").any():
        raise InputError(
            "The split has no validation photos, and trials are judged on them. Expected a share for validation, as in "
            "--set data.split=[0.7,0.2,0.1], or more photos."
        )
    known, folder = RunFolder(prepared).record().known("request", "root", "classes"), RunFolder(visible)
    write_json(folder.record_path, known | {"num_photos": len(frame), "data_sha256": data_hash(frame)})
    folder.write_manifest(frame)


def _study_name(search: Search) -> str:
    """Return a name that two searches share only if they are the same, whichever machines they run on."""
    # By the photos' content, not their path: machines that share a storage have them in different places.
    photos = [RunFolder(folder).record().data_sha256 for folder in (search.photos, search.visible)]
    # Everything that makes two searches the same; the sampler's seed does not, nor how many trials are wanted.
    identity = [photos, space_texts(search.space), search.pareto, search.prunes, saved_values(search.recipe)]
    return f"tellapart-{sha256(json.dumps(identity).encode())[:20]}"


def _file_storage(folder: Path) -> str:
    path = os.path.abspath(folder / "study.db")
    return "sqlite:///" + path.replace("{", "{{").replace("}", "}}")  # Optuna fills in braces


def _search(order: SearchJob, progress: Progress, announce: Announce) -> None:
    """Run the trials here, or in several processes."""
    if order.search.workers == 1:
        work(order, worker=0, progress=progress, announce=announce)
        return
    from tellapart.experiments.tuning.workers import work_together

    with order.opened() as study:  # an unreachable storage is found out before processes are started
        if num_finished(study) >= order.trials:
            return
        reporter = TrialReporter(study, order, announce)
        progress("trials", reporter.tell(), order.trials)
        work_together(order, look=lambda: progress("trials", reporter.tell(), order.trials), announce=announce)


def _summary(order: SearchJob) -> Tuning:
    """Read what was found from the study.

    Raises:
        RunError: no trial was finished.
    """
    from tellapart.experiments.tuning.importance import importance_of

    search = order.search
    with order.opened() as study:
        trials, seconds = trials_of(study), seconds_of(study)
    best = winner_of(trials)
    if best is None:
        raise RunError(
            f"No trial was finished ({len(trials)} were stopped or lost). Expected at least one: give more time or "
            "trials, then run the same command again."
        )
    return Tuning(
        folder=search.folder,
        trials=trials,
        best=best.number,
        recipe=recipe_with(search.recipe, best.values),
        front=front_of(trials) if search.pareto else (),
        importance=importance_of(trials, search.space),
        space=space_texts(search.space),
        rung=search.rung,
        seconds=seconds,
    )


def _confirmed(
    result: Tuning, search: Search, *, name: str, seeds: int, progress: Progress, announce: Announce
) -> Tuning:
    """Train the winner and the recipe it is to beat with seeds that no trial had."""
    from tellapart.experiments.tuning.confirmation import confirm

    if result.recipe == search.recipe:
        return replace(result, note=f"Nothing that was tried is better on the validation photos than {name} as it is.")
    num_test = int((RunFolder(search.photos).manifest()["split"] == "test").sum())
    if not seeds or num_test < 2:
        why = "no fresh seeds were asked for" if not seeds else f"there are {num_test} test photos"
        return replace(result, note=f"The winner is not confirmed, since {why}: part of its accuracy is luck.")
    # All trials ran with the recipe's seed, which no search varies.
    first = search.recipe.train.seed + 1
    answer = confirm(
        search.folder / "confirm",
        search.photos,
        (search.recipe, result.recipe),
        name=name,
        seeds=range(first, first + seeds),
        cache=search.cache,
        progress=progress,
        announce=announce,
    )
    return replace(result, answer=answer)


def _write(result: Tuning, progress: Progress) -> None:
    from tellapart.experiments.tuning.page import write_page

    save_recipe(result.recipe, result.folder / "best.toml")
    write_text(result.folder / "trials.csv", csv_text(pd.DataFrame(table_of(result.trials))))
    write_json(result.folder / "tune.json", result.to_dict())
    progress("drawing the page", 0, 1)
    write_page(result.folder / "tune.html", result)
