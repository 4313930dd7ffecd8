"""What stopping poor trials early saves, whether the best score stays, and what the search costs beside its trials.

    python benchmarks/tuning.py ../shared/data/trash6 --trials 27 --seeds 0 1 2 --set train.epochs=27

For each seed two searches of the same photos, one that stops poor trials and one that trains all to the end, which take
turns to be first. Both draw their first ten trials at random from the same seed. Times are those of training and
measuring trials; the table of photos and the decoding come before and are not in them. A search's own cost is all else
between its first and its last trial: proposing values, the database, stopping, deleting. The winners' accuracies are
those on the validation photos that chose them; `--confirm 3` trains both, and the recipe that the search began with,
on three fresh seeds and judges them on the test photos.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tellapart
from machine import write_result
from tellapart.experiments.tuning.confirmation import confirm
from tellapart.experiments.tuning.result import Tuning
from tellapart.settings import load_recipe

MODES = {"stopping": True, "to the end": False}


def searched(arguments: argparse.Namespace, mode: str, seed: int, folder: Path, *, confirms: int = 0) -> Tuning:
    """Run one search, or go on with it."""
    return tellapart.tune(
        arguments.photos, trials=arguments.trials, recipe=arguments.recipe, changes=arguments.set,
        space=arguments.space, out=folder, seeds=confirms, prunes=MODES[mode], seed=seed, cache=arguments.cache,
        announce=lambda line: print(f"{mode}: {line}"),
    )  # fmt: skip


def search(arguments: argparse.Namespace, mode: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run one search and return its figures."""
    result = searched(arguments, mode, seed, folder)
    return {
        "seconds_trials": result.seconds["trials"],
        "seconds_overhead": result.seconds["overhead"],
        "overhead_share": result.seconds["overhead"] / result.seconds["trials"],
        "epochs": sum(trial.curve[-1][0] for trial in result.trials if trial.curve),
        "stopped": sum(trial.state == "stopped" for trial in result.trials),
        "best_validation_accuracy": result.winner.accuracy,
        "best_validation_loss": result.winner.loss,
        "winner": result.winner.values,
    }


def on_test(arguments: argparse.Namespace, folders: dict[str, Path], seed: int) -> dict[str, Any]:
    """Train both winners on fresh seeds and return what the one that was found by stopping gains on the test photos."""
    to_the_end, stopping = (load_recipe(folders[mode] / "best.toml") for mode in ("to the end", "stopping"))
    answer = confirm(
        folders["stopping"] / "against",
        folders["stopping"] / "photos",
        (to_the_end, stopping),
        name="to the end",
        seeds=range(101, 101 + arguments.confirm),
        cache=arguments.cache,
        progress=lambda task, done, total: None,
        announce=print,
    )
    ends = [answer.gained.interval.low, answer.gained.interval.high]
    verdict = searched(arguments, "stopping", seed, folders["stopping"], confirms=arguments.confirm).verdict
    return {
        "search": seed,
        "gained": answer.gained.value,
        "interval": ends,
        "accuracies": answer.accuracies,
        "stopping_against_the_recipe": verdict,
    }


def main() -> None:
    """Run the searches and write results/tuning.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--trials", type=int, default=27)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--space", action="append", default=[])
    parser.add_argument("--confirm", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the searches, to go on with later")
    parser.add_argument("--name", default="tuning")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="tuning-"))
    rounds, compared = [], []
    for number, seed in enumerate(arguments.seeds):
        modes = list(MODES)[:: 1 if number % 2 == 0 else -1]
        folders = {mode: folder / f"{mode.replace(' ', '-')}-{seed}" for mode in MODES}
        figures = {mode: search(arguments, mode, seed, folders[mode]) for mode in modes}
        saved = 1 - figures["stopping"]["seconds_trials"] / figures["to the end"]["seconds_trials"]
        rounds.append({"seed": seed, "saved": saved, **figures})
        if arguments.confirm:
            compared.append(on_test(arguments, folders, seed))
    best = {mode: [search_round[mode]["best_validation_accuracy"] for search_round in rounds] for mode in MODES}
    values = {
        "photos": arguments.photos.name,
        "trials": arguments.trials,
        "recipe": arguments.recipe,
        "changes": arguments.set,
        "space": arguments.space or "default",
        "saved_median": statistics.median(search_round["saved"] for search_round in rounds),
        "saved": [search_round["saved"] for search_round in rounds],
        "best_validation_accuracy": best,
        "best_lost": [float(b - a) for a, b in zip(best["stopping"], best["to the end"], strict=True)],
        "overhead_share": {
            mode: float(np.median([search_round[mode]["overhead_share"] for search_round in rounds])) for mode in MODES
        },
        "winners_on_test": compared,
        "rounds": rounds,
    }
    print(write_result(arguments.name, values))
    print({name: values[name] for name in ("saved", "best_validation_accuracy", "overhead_share")})
    if arguments.keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
