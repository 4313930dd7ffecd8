"""A worker of a search: takes trials from the study until there are enough. Knows nothing about who else does."""

from __future__ import annotations

import time
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tellapart.experiments.jobs import tidy
from tellapart.experiments.tuning.result import Trial, winner_of
from tellapart.experiments.tuning.search_space import can_act, deciders, values_of
from tellapart.experiments.tuning.study import (
    FOLDER_OF,
    Heartbeat,
    begin_with,
    opened_study,
    optuna_or_error,
    suggest,
    work_through,
)
from tellapart.experiments.tuning.trial import KEPT, Search, milliseconds, run_trial, trial_recipe
from tellapart.locks import locked
from tellapart.records import Announce, Progress, Watch

if TYPE_CHECKING:
    import optuna

_TIMES = "seconds of worker "


# Sent to workers by pickle: nothing in it may hold a connection, a lock or a network.
@dataclass(frozen=True)
class SearchJob:
    """What is wanted of the workers of a search.

    Attributes:
        search: what all trials have in common.
        url: of the storage.
        name: of the study.
        trials: as many are to be finished, by all workers together.
        deadline: by `time.time`, after which no trial is begun; None: there is none.
        heartbeat: how a killed worker is found out.
    """

    search: Search
    url: str
    name: str
    trials: int
    deadline: float | None
    heartbeat: Heartbeat

    def opened(self, worker: int = 0) -> AbstractContextManager[optuna.Study]:
        """Open the study; each worker of a search draws numbers of its own."""
        search = self.search
        return opened_study(
            self.url, self.name, seed=search.seed + 7919 * worker, rung=search.rung, pareto=search.pareto,
            heartbeat=self.heartbeat, conditional=any(deciders(name, search.space) for name in search.space),
        )  # fmt: skip


def work(order: SearchJob, *, worker: int, progress: Progress, announce: Announce) -> None:
    """Run trials until enough are finished or the time is over.

    Args:
        order: what is wanted.
        worker: number of this worker among those that were started together.
        progress: called with (what, done, total); what it raises stops the trial that is under way, which is put back.
        announce: called with a line for each trial that has ended, whoever ran it.
    """
    # The lock is one of this folder: workers on other machines do not see it, and may begin a trial too many.
    search, lock, clock = order.search, order.search.folder / ".claim", Stopwatch()
    with order.opened(worker) as study:
        reporter = TrialReporter(study, order, announce)

        def objective(trial: optuna.Trial) -> Any:
            reporter.tell()
            return _objective(search, trial, progress, clock)

        def waiting(finished: int) -> None:
            reporter.tell()
            progress("waiting for the trials of other workers", finished, order.trials)

        # Under the lock, or two first workers would both queue the recipe as it is.
        with locked(lock):
            begin_with(study, values_of(search.recipe, search.space))
        began = time.perf_counter()
        waited = work_through(
            study, objective, wanted=order.trials, deadline=order.deadline, lock=lock, waiting=waiting
        )
        if clock.seconds:
            overhead = time.perf_counter() - began - waited - clock.seconds
            times = {"trials": clock.seconds, "overhead": overhead}
            # A name of its own for each worker: attributes are overwritten, and workers may be on other machines.
            study.set_user_attr(_TIMES + uuid.uuid4().hex[:12], times)
        reporter.tell()


class Stopwatch:
    """Counts the seconds of training and measuring alone: what the search adds between epochs is its own cost."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Count what has passed since `start`."""
        self.seconds += time.perf_counter() - self._began


def _objective(
    search: Search, trial: optuna.Trial, progress: Progress, clock: Stopwatch
) -> float | tuple[float, float]:
    """Run one trial; its worth is the accuracy on the validation photos."""
    library = optuna_or_error()
    values = suggest(trial, search.space, partial(can_act, search.recipe))
    folder = search.folder / "trials" / f"{trial.user_attrs[FOLDER_OF]:04d}"
    # A trial that is gone on with has taken its earlier seconds too.
    began = time.perf_counter() - float(trial.user_attrs.get("seconds", 0.0))

    def named_progress(task: str, done: int, total: int) -> None:
        progress(f"trial {trial.number}: {task}", done, total)

    clock.start()
    try:
        # In the folder of its first beginning: a trial that was put back goes on from its checkpoint.
        measured = run_trial(search, folder, values, watch=_reports(search, trial, clock), progress=named_progress)
    # A poor trial is not gone on with: nothing needs its weights.
    except library.TrialPruned:
        tidy(folder, keep_weights=False)
        raise
    finally:
        clock.stop()
        trial.set_user_attr("seconds", time.perf_counter() - began)
    if measured is None:
        tidy(folder, keep_weights=False)
        trial.set_user_attr("why", "its loss was no longer finite")
        raise library.TrialPruned
    # Attributes before the trial ends: Optuna takes none afterwards.
    trial.set_user_attr("loss", measured.loss)
    trial.set_user_attr("accuracy", measured.accuracy)
    clock.start()
    ms = milliseconds(search, folder, trial_recipe(search, values)) if search.pareto else None
    clock.stop()
    trial.set_user_attr("ms_per_image", ms)
    tidy(folder, keep_weights=True)
    _keep_the_best(search, trials_of(trial.study), folder, measured.accuracy)
    return measured.accuracy if ms is None else (measured.accuracy, ms)


def _reports(search: Search, trial: optuna.Trial, clock: Stopwatch) -> Watch:
    """Return what tells the study of each look of a trial at the validation photos, and stops a poor one."""
    library = optuna_or_error()

    def watch(row: dict[str, Any]) -> None:
        if "val_accuracy" not in row or search.pareto:  # Optuna takes reports for one aim only
            return
        clock.stop()
        try:
            # The clock stands still meanwhile: time in the database is the search's cost, not the trial's.
            trial.report(row["val_accuracy"], int(row["epoch"]))
            # After the last epoch there is nothing left to save.
            if row["epoch"] < search.recipe.train.epochs and trial.should_prune():
                raise library.TrialPruned
        finally:
            clock.start()

    return watch


def _keep_the_best(search: Search, trials: tuple[Trial, ...], folder: Path, accuracy: float) -> None:
    """Delete the weights of all trials but the few best; this one is not in the study yet."""
    finished_trials = {
        search.folder / "trials" / f"{trial.number:04d}": trial for trial in trials if trial.state == "finished"
    }
    order = [(finished.accuracy or 0.0, path) for path, finished in finished_trials.items() if path != folder] + [
        (accuracy, folder)
    ]
    for _, path in sorted(order, key=lambda pair: -pair[0])[KEPT:]:
        tidy(path, keep_weights=False)


def trials_of(study: optuna.Study) -> tuple[Trial, ...]:
    """Return the trials that have ended, numbered by their folders; of one begun several times the last."""
    states = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "lost"}
    by_number: dict[int, Trial] = {}
    # A failed trial that was put back is not lost: it waits, or runs under another number in the same folder.
    unfinished_numbers = {trial.user_attrs.get(FOLDER_OF) for trial in study.get_trials(deepcopy=False)
             if trial.state.name in ("WAITING", "RUNNING")}  # fmt: skip
    for trial in study.get_trials(deepcopy=False):
        number = trial.user_attrs.get(FOLDER_OF, trial.number)
        if trial.state.name not in states or (trial.state.name == "FAIL" and number in unfinished_numbers):
            continue
        curve = tuple(sorted((step, float(value)) for step, value in trial.intermediate_values.items()))
        attributes = trial.user_attrs
        by_number[number] = Trial(
            number=number,
            state=states[trial.state.name],
            values=dict(sorted(trial.params.items())),
            accuracy=attributes.get("accuracy", curve[-1][1] if curve else None),
            loss=attributes.get("loss"),
            ms_per_image=attributes.get("ms_per_image"),
            seconds=float(attributes.get("seconds", 0.0)),
            curve=curve,
        )
    return tuple(by_number[number] for number in sorted(by_number))


def seconds_of(study: optuna.Study) -> dict[str, float]:
    """Return the seconds that all workers that came to their end spent in trials, and between them."""
    times = [value for name, value in study.user_attrs.items() if name.startswith(_TIMES)]
    return {name: float(sum(entry[name] for entry in times)) for name in ("trials", "overhead")}


class TrialReporter:
    """Says of each trial that has ended how it went, once."""

    def __init__(self, study: optuna.Study, order: SearchJob, announce: Announce) -> None:
        self.study, self.order, self.announce = study, order, announce
        self._announced = {trial.number for trial in trials_of(study)}

    def tell(self) -> int:
        """Announce what is new, and return how many trials are finished."""
        trials = trials_of(self.study)
        done = sum(trial.state != "lost" for trial in trials)
        new = [trial for trial in trials if trial.number not in self._announced]
        for trial in new:
            self._announced.add(trial.number)
            self.announce(f"{done}/{self.order.trials}  {line_of(trial, winner_of(trials))}")
        return done


def line_of(trial: Trial, best: Trial | None) -> str:
    """Return how a trial went in one line."""
    if trial.state == "lost":
        return f"trial {trial.number}: given up, its workers died"
    if trial.state == "stopped":
        if not trial.curve:
            return f"trial {trial.number}: stopped before its first look, {trial.seconds:.0f} s"
        epoch, accuracy = trial.curve[-1]
        return f"trial {trial.number}: stopped after epoch {epoch} at {accuracy:.3f}, {trial.seconds:.0f} s"
    line = f"trial {trial.number}: {trial.accuracy:.3f}, {trial.seconds:.0f} s"
    if trial.ms_per_image is not None:
        line += f", {trial.ms_per_image:.2f} ms per image"
    return line + ("" if best is None else f" (best: {best.accuracy:.3f}, trial {best.number})")
