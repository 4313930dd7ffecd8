"""The study behind a search: Optuna's store of trials, which several processes share. Knows nothing about training.

A worker claims a trial under a lock of its folder, so that workers side by side do not begin more than are wanted.
While a trial runs, its worker writes a heartbeat; a trial whose heartbeat has stopped belonged to a worker that was
killed, and is put back with its values, its reports and its place in the pruner's rungs.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tellapart.databases import patience_of, write_without_waiting
from tellapart.errors import InputError
from tellapart.experiments.tuning.search_space import Choice, Space, Value
from tellapart.experiments.tuning.storage import reachable
from tellapart.locks import locked

if TYPE_CHECKING:
    import optuna

FOLDER_OF = "begun_as"
"""Attribute of a trial: the number under which it was begun first, which names its folder."""
_REDUCTION = 3
"""At each rung about one trial in so many goes on."""
_EARLIEST = 3
"""No trial is stopped before so many epochs: the first ones say little."""
_MOST_DEATHS = 3
"""A trial that killed so many workers is not begun again."""
_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Heartbeat:
    """How a killed worker is found out.

    Attributes:
        every: seconds between two signs of life.
        patience: seconds without one after which a trial is put back.
    """

    every: int = 10
    patience: int = 60


def optuna_or_error() -> Any:
    """Return the module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "tellapart tune needs Optuna, which is not installed here. Install it: pip install 'tellapart[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return optuna


def first_rung(epochs: int, validate_every: int, warmup_epochs: float) -> int:
    """Return the epoch after which poor trials are stopped first: a ninth of all, past the warm-up, with a look."""
    earliest = max(epochs / _REDUCTION**2, warmup_epochs, _EARLIEST)
    # Rounded up to an epoch with a validation: only there does a trial ask whether it should stop.
    return int(-(-earliest // validate_every)) * validate_every


@contextlib.contextmanager
def opened_study(
    url: str,
    name: str,
    *,
    seed: int,
    rung: int | None,
    pareto: bool,
    heartbeat: Heartbeat,
    conditional: bool = False,
) -> Iterator[optuna.Study]:
    """Open the study in a storage, or begin it, and let the connections go in the end.

    The sampler is TPE (Bergstra et al. 2011), over all settings together (Falkner et al. 2018), and counts trials that
    others are running as poor, so that workers do not all try the same. Poor trials are stopped by asynchronous
    successive halving (Li et al. 2020, arXiv 1810.05934): a third of the trials that reach a rung go on.

    Args:
        url: of the storage, as SQLAlchemy takes it.
        name: of the study; the same name is the same search.
        seed: of the sampler; with the trials there are, so that a search that goes on draws new numbers.
        rung: the first epoch at which trials are stopped; None: none is.
        pareto: accuracy against milliseconds instead of accuracy alone.
        heartbeat: how a killed worker is found out.
        conditional: some settings are chosen in some trials only; settings that are chosen together then make a group.

    Raises:
        InputError: Optuna is not installed, or the storage cannot be reached.
        RunError: the storage was lost.
    """
    library = optuna_or_error()
    with _quiet(), reachable(url):
        storage = _storage(url, heartbeat)
        # The storage keeps neither the pruner nor the sampler: every process brings its own, and their pruners must be
        # alike.
        study: optuna.Study = library.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize", "minimize"] if pareto else ["maximize"],
            pruner=library.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=_REDUCTION)
            if rung and not pareto
            # Optuna prunes by one aim only.
            else library.pruners.NopPruner(),
            load_if_exists=True,
        )
        # A search that goes on must not propose again what its first trials were.
        sampler_seed = (seed * 1_000_003 + len(study.get_trials(deepcopy=False)) * 1009) % 2**32
        study.sampler = library.samplers.TPESampler(
            seed=sampler_seed, multivariate=True, group=conditional, constant_liar=True
        )
    try:
        with reachable(url, lost=True):
            yield study
    finally:
        # Optuna leaves connections open. The storage was made here, so it is closed here.
        storage.remove_session()
        storage.engine.dispose()


def _storage(url: str, heartbeat: Heartbeat) -> Any:
    """Return Optuna's storage, which puts back the trials of dead workers: few times, in case they are what kills."""
    storages = optuna_or_error().storages
    storage = storages.RDBStorage(
        url,
        engine_kwargs={"connect_args": patience_of(url)},
        heartbeat_interval=heartbeat.every,
        grace_period=heartbeat.patience,
        heartbeat_stale_trial_callback=storages.RetryHeartbeatStaleTrialCallback(
            max_retry=_MOST_DEATHS - 1, inherit_intermediate_values=True
        ),
    )
    if url.startswith("sqlite"):
        write_without_waiting(storage.engine)
    return storage


def begin_with(study: optuna.Study, values: dict[str, Value] | None) -> None:
    """Let a study that has no trial yet begin with these values."""
    if values is not None and not study.get_trials(deepcopy=False):
        study.enqueue_trial(values)


def suggest(trial: optuna.Trial, space: Space, can_act: Callable[[str, dict[str, Value]], bool]) -> dict[str, Value]:
    """Let Optuna choose a value for each setting of the space that can act beside those chosen before it."""
    values: dict[str, Value] = {}
    for name, part in space.items():
        if not can_act(name, values):
            continue
        if isinstance(part, Choice):
            chosen: Any = trial.suggest_categorical(name, part.values)
            values[name] = chosen
        elif part.whole:
            values[name] = trial.suggest_int(name, int(part.low), int(part.high), log=part.log)
        else:
            values[name] = trial.suggest_float(name, part.low, part.high, log=part.log)
    return values


def num_finished(study: optuna.Study) -> int:
    """Return how many trials were trained to their end or stopped as poor."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))


def work_through(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], Any],
    *,
    wanted: int,
    deadline: float | None,
    lock: Path,
    waiting: Callable[[int], None],
) -> float:
    """Run trials until as many as are wanted are finished, by whomever, or the time is over.

    Args:
        study: the store.
        objective: runs one trial; what it raises but for Optuna's own ends the work, and the trial is put back.
        wanted: finished trials.
        deadline: by `time.time`; no trial is begun after it.
        lock: a file on which workers of one folder take turns to claim a trial.
        waiting: called with the number of finished trials while others have the last ones.

    Returns:
        Seconds spent waiting for others.
    """
    waited = 0.0
    while deadline is None or time.time() < deadline:
        with contextlib.ExitStack() as claim, _quiet():
            # Under one lock from counting to claiming: two workers could otherwise both begin the last trial.
            claim.enter_context(locked(lock))
            # Trials of dead workers go back first, so that they are taken before new ones are begun.
            optuna_or_error().storages.fail_stale_trials(study)
            states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
            finished = sum(state in ("COMPLETE", "PRUNED") for state in states)
            if finished >= wanted:
                break
            # Those that others are running will most likely finish; only what is then still wanted is begun.
            if finished + states.count("RUNNING") < wanted:
                # It lets the lock go itself, as soon as the store knows the trial as running.
                _run_one(study, objective, claim)
                continue
        waiting(finished)
        time.sleep(_WAIT_SECONDS)
        waited += _WAIT_SECONDS
    return waited


def _run_one(study: optuna.Study, objective: Callable[[optuna.Trial], Any], claim: contextlib.ExitStack) -> None:
    library = optuna_or_error()
    interrupted: list[BaseException] = []
    begun: list[int] = []

    def claimed(trial: optuna.Trial) -> Any:
        # Noted for the handler below: Optuna's errors do not name their trial.
        begun.append(trial.number)
        if FOLDER_OF not in trial.user_attrs:
            trial.set_user_attr(FOLDER_OF, trial.number)
        # The trial is in the store as running: from here on others may claim theirs.
        claim.close()
        try:
            return objective(trial)
        except (library.TrialPruned, library.exceptions.UpdateFinishedTrialError):
            raise
        except BaseException as error:
            interrupted.append(error)
            put_back(study, study.trials[trial.number])
            raise

    try:
        study.optimize(claimed, n_trials=1)
    except (library.exceptions.UpdateFinishedTrialError, ValueError):
        # Its heartbeat was late, and the trial was taken for dead and put back: whoever has it now tells its end.
        if interrupted or not begun or study.trials[begun[0]].state.name != "FAIL":
            raise


def put_back(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Queue a trial that was interrupted, with all it has reported."""
    library = optuna_or_error()
    # Not `enqueue_trial`: it would drop the reports and the place in the pruner's rungs (docs/decisions.md).
    study.add_trial(
        library.create_trial(
            state=library.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            system_attrs=trial.system_attrs,
            intermediate_values=trial.intermediate_values,
        )
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's notices of experimental features from the user: what is used of them is tested here."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
