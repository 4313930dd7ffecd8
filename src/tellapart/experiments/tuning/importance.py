"""How much each searched setting matters. Knows nothing about how trials are run."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from tellapart.experiments.tuning.result import Trial
from tellapart.experiments.tuning.search_space import Choice, Space
from tellapart.experiments.tuning.study import optuna_or_error

_FEWEST = 8
"""With fewer trials the shares would be those of chance."""


def importance_of(trials: Sequence[Trial], space: Space) -> dict[str, float]:
    """Return the share of the differences in accuracy that each setting explains, largest first (Hutter et al. 2014).

    Functional analysis of variance on a random forest, with interactions left out. Trials that were stopped count too:
    all are compared at the last look that most of them reached, which is the first one at which trials are stopped.
    Settings that act in some trials only are left out: the others have no value of them.

    Returns:
        Shares that add up to 1; empty where there are fewer than 8 trials, or where all did equally well.
    """
    optuna = optuna_or_error()
    scored = scores_at_one_look(trials)
    # A setting with one value explains nothing, and one that some trials lack has no value to compare.
    varied_names = {
        name for name, part in space.items()
        if not (isinstance(part, Choice) and len(part.values) == 1) and all(name in trial.values for trial, _ in scored)
    }  # fmt: skip
    if len(scored) < _FEWEST or len({round(score, 6) for _, score in scored}) < 2:
        return {}
    distributions = optuna.distributions
    ranges = {}
    for name, part in space.items():
        if name not in varied_names:
            continue
        if isinstance(part, Choice):
            ranges[name] = distributions.CategoricalDistribution(part.values)
        elif part.whole:
            ranges[name] = distributions.IntDistribution(int(part.low), int(part.high), log=part.log)
        else:
            ranges[name] = distributions.FloatDistribution(part.low, part.high, log=part.log)
    # A study of its own, in memory: the search's has values at different epochs, and perhaps two aims.
    study = optuna.create_study(direction="maximize")
    for trial, score in scored:
        values = {name: trial.values[name] for name in ranges}
        study.add_trial(optuna.create_trial(params=values, distributions=ranges, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        importances = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    return {name: float(share) for name, share in importances.items()}


def scores_at_one_look(trials: Sequence[Trial]) -> list[tuple[Trial, float]]:
    """Return the trials with their accuracies at one epoch, the last that most trials with looks have reached.

    Where trials have no looks on record, their final accuracies are taken.
    """
    with_curve = [trial for trial in trials if trial.curve]
    if not with_curve:
        return [(trial, trial.accuracy) for trial in trials if trial.accuracy is not None]
    reached = Counter(epoch for trial in with_curve for epoch, _ in trial.curve)
    most = max(reached.values())
    # Nine in ten: a few may have ended before, as their loss was no longer finite.
    look = max(epoch for epoch, count in reached.items() if count >= 0.9 * most)
    return [(trial, dict(trial.curve)[look]) for trial in with_curve if look in dict(trial.curve)]
