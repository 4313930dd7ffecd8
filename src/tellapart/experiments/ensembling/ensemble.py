"""The story of an ensemble: finished runs become one network, if that is better. Reads top to bottom."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.cache import default_cache
from tellapart.errors import InputError, RunError
from tellapart.evaluation.paired import photo_losses
from tellapart.experiments.compare import compare_finished_runs
from tellapart.experiments.comparison import Comparison
from tellapart.experiments.cost import cost_of
from tellapart.experiments.ensembling.distill import distil, student_recipe
from tellapart.experiments.ensembling.ensemble_run import Agreement, write_joined
from tellapart.experiments.ensembling.members import Member, open_members
from tellapart.experiments.ensembling.result import Ensemble, MemberScore, Student, WeightingScore
from tellapart.experiments.ensembling.weighting import Weighting, choose
from tellapart.experiments.finished_run import FinishedRun, open_finished_run
from tellapart.experiments.shared_test_set import refuse_other_classes, shared_photos
from tellapart.files import read_json, write_json
from tellapart.records import Announce, Observer, Progress, no_progress
from tellapart.run_folder import RunFolder, new_folder
from tellapart.settings import Recipe, load_recipe
from tellapart.training.distillation import loss_in_words

logger = logging.getLogger(__name__)

_LEAST = 1e-7
"""Probabilities are kept this far from 0 before a logarithm is taken, as in `classification_metrics`."""


def ensemble(
    runs: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
    distill: bool = False,
    recipe: Recipe | str | Path | None = None,
    changes: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
) -> Ensemble:
    """Join finished runs into one network, with weights fitted to validation photos, and say what that gained.

    The weights are those of the best single run, equal ones, greedily selected ones (Caruana et al. 2004) or fitted
    ones, whichever do best on validation photos left out of their fit; never ones that do worse than the best single
    run. Test photos are only for measuring. The result is a run folder: it predicts, is evaluated, compared and
    exported as any other; it costs the time of all its members.

    A second call with the same runs and `out` does what is not done yet.

    Args:
        runs: finished run folders with the same classes, at least two; one is enough with `snapshots`.
        out: the new run folder; None: ``runs/ensemble-DATE``.
        snapshots: choose also from what each run kept on its way: see ``train.snapshots``.
        distill: also train one student to say what the ensemble says, in the folder OUT-student.
        recipe: of the student; None: that of the best member.
        changes: settings of the student as "section.key=value"; ``distill.temperature`` is one.
        cache: the folder for decoded pictures; None: the user's cache folder.
        seed: of folds and bags.
        progress: called often with (what, done, total).
        announce: called with single lines.

    Raises:
        RunError: a folder is no finished run, or `out` holds something else.
        InputError: fewer than two networks, other classes, or no validation photo that is new to all.

    Example:
        >>> found = tellapart.ensemble(["runs/a", "runs/b", "runs/c"], out="runs/abc")
        >>> print(found.choice, *found.verdicts)
    """
    if (recipe is not None or changes) and not distill:
        raise InputError("A recipe or settings were given, but no student is wanted. Add distill (--distill).")
    cache_folder = Path(cache) if cache is not None else default_cache()

    # Members
    members = open_members([Path(run) for run in runs], snapshots=snapshots, cache=cache_folder, progress=progress)
    finished_runs = [member.finished_run for member in members]
    refuse_other_classes(finished_runs)

    # Weights
    rows, relabelled = shared_photos(finished_runs, "validation")
    photos = finished_runs[0].photos.iloc[rows[0]]
    true = np.array([finished_runs[0].classes.index(label) for label in photos["label"]], np.int64)
    predictions = [finished.probabilities[at] for finished, at in zip(finished_runs, rows, strict=True)]
    weighting = _weighting(true, predictions, photos, seed)
    best = members[weighting.best]
    folder = _folder(out, members, weighting)
    # A wrong one is found out now, not after the ensemble was written.
    recipe_of_student = None if not distill else _recipe_of_student(recipe, changes, best, folder)

    # One network
    if not (folder / "ensemble.json").is_file():
        announce(f"Joining {_sentence(members, weighting)}.")
        _write(folder, members, weighting, cache_folder, progress)
    ensemble_run = open_finished_run(folder, _another(folder.name, finished_runs))
    result = _result(folder, members, weighting, true, predictions, ensemble_run, relabelled)

    # Test
    # Saved before the student, which takes far longer: a stop then costs the student alone.
    result = replace(result, test=_tested([best.finished_run, ensemble_run], progress))
    write_json(folder / "ensemble.json", result.to_dict())

    # Student
    if recipe_of_student is not None:
        student_folder = folder.with_name(f"{folder.name}-student")
        distil(student_folder, recipe_of_student, folder, cache=cache_folder, observer=Observer(progress, announce))
        student = open_finished_run(student_folder, _another(student_folder.name, [*finished_runs, ensemble_run]))
        test = _tested([best.finished_run, ensemble_run, student], progress)
        result = replace(result, test=test, student=Student(student_folder, loss_in_words(recipe_of_student)))
        write_json(folder / "ensemble.json", result.to_dict())
    return result


def _weighting(
    true: NDArray[np.int64], predictions: Sequence[NDArray[np.float64]], photos: pd.DataFrame, seed: int
) -> Weighting:
    """Weigh the members by what they said of the validation photos; look-alikes are never held out from each other."""
    of_truth = np.stack([rows[np.arange(len(true)), true] for rows in predictions]).clip(_LEAST, 1.0)
    return choose(of_truth, photos["unit"].tolist() if "unit" in photos else None, seed=seed)


def _recipe_of_student(
    recipe: Recipe | str | Path | None, changes: Sequence[str], best: Member, teacher: Path
) -> Recipe:
    """Return the student's recipe; the teacher is named with the changes, which act beside one only."""
    if any(change.partition("=")[0].strip() == "distill.teacher" for change in changes):
        raise InputError("distill.teacher cannot act here: the student learns from the ensemble. Leave it out.")
    source = RunFolder(best.finished_run.folder).recipe() if recipe is None else recipe
    return student_recipe(load_recipe(source, [f"distill.teacher={teacher}", *changes]), teacher)


def _folder(out: str | os.PathLike[str] | None, members: Sequence[Member], weighting: Weighting) -> Path:
    """Return the folder to write, or one that holds this very ensemble.

    Raises:
        RunError: it holds something else.
    """
    if out is None or not (Path(out) / "ensemble.json").is_file():
        return new_folder(out, Path("ensemble"))
    # The file has two forms, and both must keep these fields: `_write` leaves names, weights and the agreement; the
    # whole result replaces it when it is known.
    saved_weights = {record["name"]: record["weight"] for record in read_json(Path(out) / "ensemble.json")["standings"]}
    new_weights = {
        member.finished_run.name: weight for member, weight in zip(members, _weights(weighting), strict=True)
    }
    # Compared by names and weights: the same runs give the same ones again.
    if list(saved_weights) != list(new_weights) or not np.allclose(
        list(saved_weights.values()), list(new_weights.values()), atol=1e-3
    ):
        raise RunError(f"{out} holds another ensemble, of {', '.join(saved_weights)}. Name a new folder.")
    return Path(out)


def _weights(weighting: Weighting) -> list[float]:
    return [float(weight) for weight in weighting.chosen.weights]


def _write(folder: Path, members: Sequence[Member], weighting: Weighting, cache: Path, progress: Progress) -> None:
    """Write the run folder beside its place and put it there when it is whole: nothing resumes half an ensemble."""
    weights = _weights(weighting)
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        agreement = write_joined(
            unfinished,
            [member for member, weight in zip(members, weights, strict=True) if weight > 0],
            [weight for weight in weights if weight > 0],
            [member.finished_run for member in members],
            cache=cache,
            progress=progress,
        )
        # So much is needed to go on with this ensemble, should the process be killed before there is a result.
        standings = [
            {"name": member.finished_run.name, "weight": weight}
            for member, weight in zip(members, weights, strict=True)
        ]
        write_json(unfinished / "ensemble.json", {"standings": standings, "agreement": vars(agreement)})
        if folder.is_dir():
            folder.rmdir()  # an empty one, or `new_folder` would have refused it
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _result(
    folder: Path,
    members: Sequence[Member],
    weighting: Weighting,
    true: NDArray[np.int64],
    predictions: Sequence[NDArray[np.float64]],
    joined: FinishedRun,
    relabelled: int,
) -> Ensemble:
    """Put together what validation says; of the test photos nothing is known yet."""
    names = [member.finished_run.name for member in members]
    standings = tuple(
        MemberScore(
            name, str(member.finished_run.folder), weight, float(loss), float((rows.argmax(axis=1) == true).mean())
        )
        for name, member, weight, loss, rows in zip(
            names, members, _weights(weighting), weighting.member_losses, predictions, strict=True
        )
    )
    ways = tuple(
        WeightingScore(candidate.method, int((candidate.weights > 0).sum()), candidate.loss, candidate.held_out_loss)
        for candidate in weighting.candidates
    )
    # The ensemble's table holds the photos of all runs, in another order.
    rows, _ = shared_photos([*(member.finished_run for member in members), joined], "validation")
    probabilities = joined.probabilities[rows[-1]]
    agreement: dict[str, Any] = read_json(folder / "ensemble.json")["agreement"]
    return Ensemble(
        path=folder,
        name=joined.name,
        standings=standings,
        ways=ways,
        method=weighting.chosen.method,
        best=names[weighting.best],
        num_validation=len(true),
        relabelled=relabelled,
        loss=float(photo_losses(true, probabilities).mean()),
        accuracy=float((probabilities.argmax(axis=1) == true).mean()),
        agreement=Agreement(**agreement),
        test=None,
    )


def _tested(runs: Sequence[FinishedRun], progress: Progress) -> Comparison | None:
    """Hold the best member, the ensemble and the student against each other on test photos; None: there are none."""
    # Only this question may end in "no photos": an error of the comparison itself must not pass for it.
    try:
        shared_photos(runs)
    except InputError:
        return None
    costs = [cost_of(run.folder) for run in runs]
    return compare_finished_runs(runs, costs, against="all", progress=progress)


def _another(name: str, taken: Sequence[FinishedRun]) -> str:
    """Return the name, or another one where a member is called so."""
    return f"{name} (joined)" if name in {run.name for run in taken} else name


def _sentence(members: Sequence[Member], weighting: Weighting) -> str:
    parts = [
        f"{member.finished_run.name} ({weight:.2f})"
        for member, weight in zip(members, _weights(weighting), strict=True)
        if weight > 0
    ]
    return ", ".join(parts)
