"""The story of an ablation: the recipe, the ladder up to it and each ingredient changed alone, with several seeds.

One run folder for each variant and seed; what is finished is not trained again. Reads top to bottom.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import InputError, TrainingStoppedError
from tellapart.experiments.ablation.plan import RECIPE, Variant, chosen, ingredients, ladder, setting_of
from tellapart.experiments.ablation.result import Ablation, tables
from tellapart.experiments.ablation.summary import Outcome, summarise
from tellapart.experiments.cost import cost_of
from tellapart.experiments.jobs import Job, run_job, tidy
from tellapart.files import read_json, write_json, write_text
from tellapart.preparation import prepared_folder
from tellapart.records import Announce, Observer, Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe, load_recipe, load_saved_recipe, save_recipe, with_settings

logger = logging.getLogger(__name__)

_STOPPED = "stopped.json"
"""In the folder of a run whose loss became infinite."""
_OWN = {
    "train.seed": "an ablation has seeds 0, 1, 2 and so on: say how many with seeds (--seeds)",
    "train.validate_every": "an ablation validates after each epoch, so that curves can be compared",
}
"""Settings that an ablation makes itself."""


def ablate(
    photos: str | os.PathLike[str],
    *,
    recipe: Recipe | str | Path | None = None,
    changes: Sequence[str] = (),
    seeds: int = 3,
    only: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
) -> Ablation:
    """Say what each ingredient of a recipe is worth on your photos.

    Trains the recipe, the architecture ladder that leads up to it, and the recipe with each ingredient left out,
    changed or added, all with the same seeds on the same split, and compares them on the test photos. The same call
    again goes on where it was interrupted; with more `seeds` it adds to what there is.

    Args:
        photos: as `train` takes them.
        recipe: a `Recipe`, a TOML file or the name of one; None: "fast".
        changes: settings as "section.key=value".
        seeds: how many runs of each variant; the intervals need at least 2 to know what a seed is worth.
        only: names of variants or ingredients, as in "no-flip" or "dropout rate"; empty: all.
        out: the folder for ``ablation.json``, ``.md``, ``.html``, ``.png`` and all runs; None: ``ablations/NAME``.
        cache: the folder for decoded pictures; None: the user's cache folder.
        progress: called often with (what, done, total).
        announce: called with a line for each finished run.

    Raises:
        InputError: the photos or the recipe cannot be used, nothing is called as in `only`, or `out` holds the
            ablation of another recipe.

    Example:
        >>> print(tellapart.ablate("photos", seeds=2).insights[0].sentence)
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}. Expected at least 1; 3 tell what a seed is worth.")
    for name in (change.partition("=")[0].strip() for change in changes):
        if name in _OWN:
            raise InputError(f"{name} cannot act here: {_OWN[name]}. Leave it out.")
    recipe = load_recipe("fast" if recipe is None else recipe, changes)
    recipe = with_settings(recipe, {"train.validate_every": 1})  # curves of all variants, point for point
    folder = Path(out) if out is not None else Path("ablations") / Path(photos).resolve().stem
    steps = ladder(recipe) if recipe.model.name == "convnet" else []
    # Names are checked before anything is trained, and before it is known which precision is the recipe's.
    possible_variants = [
        *steps,
        *(candidate for name in ("float32", "mixed_bfloat16") for candidate in ingredients(recipe, name)),
    ]
    names = {candidate.name for candidate in chosen(possible_variants, only)}
    # Before anything is written into the folder, and while the recipe is as it was given: a later call compares with
    # it.
    _claim(folder, recipe)
    prepared = prepared_folder(photos, folder / "photos", recipe, Observer(progress, announce))

    # The recipe itself, whose first run settles the precision of all
    base = Variant(RECIPE, "", "final: the recipe", {})
    pictures = Path(cache) if cache is not None else None
    _run(Job(_run_folder(folder, base, 0), base.recipe(recipe, 0), prepared), cache=pictures, progress=progress)
    precision = _precision_of(_run_folder(folder, base, 0))
    # Fixed from here on: chosen anew for each run it could differ between two that are compared.
    recipe = with_settings(recipe, {"train.precision": precision})
    others = ingredients(recipe, precision)
    variants = [candidate for candidate in (*steps, *others) if candidate.name in names]

    # All others, one seed after the other: at any time each variant has about as many runs
    planned_runs = [(variant, seed) for seed in range(seeds) for variant in (base, *variants)]
    started, trained = time.time(), 0
    for done, (variant, seed) in enumerate(planned_runs, start=1):
        began, run_folder = time.time(), _run_folder(folder, variant, seed)
        if _run(Job(run_folder, variant.recipe(recipe, seed), prepared), cache=pictures, progress=progress):
            trained += 1
            # From runs that were trained in this call: those that are kept take no time.
            minutes_left = (time.time() - started) / trained * (len(planned_runs) - done) / 60
            announce(
                f"{done} of {len(planned_runs)}: {variant.name}, seed {seed}, {time.time() - began:.0f} s; "
                f"about {minutes_left:.0f} min left."
            )
        # After each seed of all variants: tables can be read, and a stopped ablation still has some.
        if done == len(planned_runs) or planned_runs[done][1] != seed:
            result = _write(folder, Path(photos).resolve().stem, recipe, (base, steps, others), seed + 1)
    return result


def _run_folder(folder: Path, variant: Variant, seed: int) -> Path:
    # By these two alone a finished run is found again: a variant that is renamed is trained anew, and one that changes
    # under its name is not.
    return folder / "runs" / f"{variant.name}-seed{seed}"


def _claim(folder: Path, recipe: Recipe) -> None:
    """Keep the recipe with the ablation, and refuse to mix two.

    Raises:
        InputError: the folder has another recipe.
    """
    path = folder / "recipe.toml"
    if path.is_file() and load_saved_recipe(path) != recipe:
        raise InputError(
            f"{folder} holds the ablation of another recipe. Expected the recipe in {path}: give the same --recipe and "
            "--set as before, or name another folder with --out."
        )
    if not path.is_file():
        save_recipe(recipe, path)


def _run(job: Job, *, cache: Path | None, progress: Progress) -> bool:
    """Train once, or resume; return whether there was anything to do."""
    if job.run.is_finished or (job.folder / _STOPPED).exists():
        return False
    try:
        run_job(job, cache=cache, progress=progress)
    except TrainingStoppedError as error:
        # Noted, or each later call would train this seed again until its loss is infinite.
        write_json(job.folder / _STOPPED, {"error": str(error)})
    # Dozens of runs: each keeps its weights and tables only.
    tidy(job.folder)
    return True


def _precision_of(run: Path) -> str:
    """Return what the recipe's first run computed in.

    Raises:
        TrainingStoppedError: it did not train.
    """
    if (run / _STOPPED).exists():
        raise TrainingStoppedError(f"The recipe itself does not train. {read_json(run / _STOPPED)['error']}")
    return RunFolder(run).record().precision


def _write(
    folder: Path, photos: str, recipe: Recipe, variants: tuple[Variant, list[Variant], list[Variant]], num_seeds: int
) -> Ablation:
    """Judge all runs so far, and write the tables and the page."""
    base, steps, others = variants
    outcomes = {variant.name: _outcome(folder, variant, num_seeds) for variant in (base, *steps, *others)}
    tried = {name for name, outcome in outcomes.items() if outcome.seeds or outcome.stopped}
    result = summarise(
        photos,
        num_seeds,
        [outcomes[variant.name] for variant in steps if variant.name in tried],
        outcomes[RECIPE],
        [(outcomes[variant.name], setting_of(recipe, variant)) for variant in others if variant.name in tried],
    )
    write_json(folder / "ablation.json", result.to_dict())
    write_text(folder / "ablation.md", tables(result))
    # Last: should drawing fail, the figures are on disk.
    from tellapart.experiments.ablation.page import write_page

    write_page(folder, result)
    return result


def _outcome(folder: Path, variant: Variant, num_seeds: int) -> Outcome:
    """Read the runs of a variant."""
    columns: dict[str, list[Any]] = {"seeds": [], "right": [], "train": [], "curve": [], "seconds": [], "processor": []}
    stopped = parameters = 0
    groups = None  # the same for all seeds: they share one table of photos
    for seed in range(num_seeds):
        run = _run_folder(folder, variant, seed)
        stopped += (run / _STOPPED).exists()
        finished = RunFolder(run)
        if not finished.is_finished:
            continue
        metrics, history = finished.metrics(), finished.history()
        photos, classes, probabilities = finished.predictions()
        # In the order of the one table that all runs share: variants are paired by the place of a photo in `right`.
        is_test = (photos["split"] == "test").to_numpy()
        photos, probabilities = photos[is_test], probabilities[is_test]
        groups = photos["unit"].to_numpy(np.int64) if "unit" in photos else None
        columns["seeds"].append(seed)
        predicted = np.array(classes, object)[probabilities.argmax(axis=1)]
        columns["right"].append(predicted == photos["label"].to_numpy(object))
        columns["train"].append(metrics["train"]["accuracy"])
        columns["curve"].append(history.get("val_accuracy", history["accuracy"]).to_numpy(np.float64))
        columns["seconds"].append(metrics["seconds_training"])
        columns["processor"].append(metrics["processor_seconds_training"])
        parameters = cost_of(run).parameters or 0
    return Outcome(
        variant=variant,
        seeds=tuple(columns["seeds"]),
        right=np.array(columns["right"], bool, ndmin=2),
        train_accuracy=tuple(columns["train"]),
        curves=tuple(columns["curve"]),
        seconds=tuple(columns["seconds"]),
        processor_seconds=tuple(columns["processor"]),
        parameters=parameters,
        stopped=stopped,
        groups=groups,
    )
