"""How often each 95 % interval that a report or a comparison prints holds the true value, by simulation.

    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py
    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py --differences

A world is a classifier and endless photos: 3 to 9 classes, even or up to a hundred times as frequent as others (3 % at
least), accuracy 0.6 to 0.99, probabilities that are right, too sure or too unsure. Its truths are measured on 100,000
photos; then test sets of 100 to 1,000 are drawn from them. Grouped worlds draw whole groups of 1 to 8 near copies.
`held` is a mean over worlds, `low` and `high` the share of intervals that lie below and above the truth, `worst` the
world with the lowest coverage. The noise of `held` is one standard error over worlds. With --differences, a
second model says of each photo what the first says with noise added, and the intervals are those of `compare`.

The file is not called coverage.py: Numba imports a package of that name, and scripts find their neighbours first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from machine import write_result
from tellapart.evaluation.averages import averages, count, scores
from tellapart.evaluation.calibration import calibration
from tellapart.evaluation.calibration_error import bin_of
from tellapart.evaluation.intervals import skewed_mean_interval
from tellapart.evaluation.metrics import classification_metrics, photo_losses
from tellapart.evaluation.paired import differences as of_two
from tellapart.evaluation.ranking import average_precision, roc_auc, top_k_accuracy
from tellapart.randomness import generator

POOL = 100_000
NUM_BINS = 15
Draws = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class World:
    """A classifier and the photos it may meet.

    Attributes:
        true: (num_photos,) class numbers.
        probabilities: (num_photos, num_classes).
        corrupted: (num_photos,) share of 75 corruptions under which each is named wrongly.
        groups: (num_photos,) rising; photos of one group are drawn together.
        right_as_said: whether a photo is right with the very probability that is said of it: the truth of the
            calibration error is 0 then, and what is right is drawn anew each time.
        num_photos: of a test set, about.
        about: the settings.
    """

    true: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    corrupted: NDArray[np.float64]
    groups: NDArray[np.int64]
    right_as_said: bool
    num_photos: int
    about: dict[str, float]


def worlds(number: int, *, grouped: bool, photos: tuple[int, ...], seed: int) -> Iterator[World]:
    """Make worlds at random; the same seed makes the same ones."""
    rng = generator(seed, "worlds", grouped)
    for _ in range(number):
        num_classes, accuracy = int(rng.integers(3, 10)), float(rng.uniform(0.6, 0.99))
        imbalance, sharpness = float(rng.choice([0, 0.6, 1.0])), float(rng.choice([0.6, 1, 1, 1.5, 2.5]))
        about = {
            "num_classes": num_classes, "accuracy": accuracy, "imbalance": imbalance, "sharpness": sharpness,
            "num_photos": int(rng.choice(photos)),
        }  # fmt: skip
        yield world(rng, about, grouped=grouped)


def world(rng: np.random.Generator, about: dict[str, float], *, grouped: bool) -> World:
    """Make a world of normal features, in which Bayes' rule gives the true probabilities, then sharpen what is said."""
    num_classes = int(about["num_classes"])
    prior = np.maximum(np.exp(about["imbalance"] * rng.normal(size=num_classes)), 1e-9)
    prior = np.maximum(prior / prior.sum(), 0.03)
    prior /= prior.sum()
    means = np.eye(num_classes) + 0.3 * rng.normal(size=(num_classes, num_classes))
    sizes = rng.choice([1, 1, 1, 2, 3, 5, 8], POOL) if grouped else np.ones(POOL, int)
    groups = np.repeat(np.arange(POOL), sizes)[:POOL]
    true = rng.choice(num_classes, POOL, p=prior)[groups]
    shared, own = rng.normal(size=(POOL, num_classes))[groups], rng.normal(size=(POOL, num_classes))
    noise = np.sqrt(0.9) * shared + np.sqrt(0.1) * own if grouped else own
    low, high = 0.05, 100.0
    for _ in range(40):  # how far apart the classes lie, for the wanted accuracy
        apart = float(np.sqrt(low * high))
        logits = (apart * means[true] + noise) @ (apart * means).T - 0.5 * apart**2 * (means**2).sum(1) + np.log(prior)
        low, high = (apart, high) if (logits.argmax(1) == true).mean() < about["accuracy"] else (low, apart)
    sharpened = np.exp(about["sharpness"] * (logits - logits.max(1, keepdims=True)))
    damage = logits[np.arange(POOL), true] - np.where(np.eye(num_classes)[true], -np.inf, logits).max(1)
    corrupted = (rng.exponential(2, (POOL, 75)) * np.linspace(0.1, 2, 75) > damage[:, None]).mean(axis=1)
    return World(
        true,
        sharpened / sharpened.sum(1, keepdims=True),
        corrupted,
        groups,
        about["sharpness"] == 1,
        int(about["num_photos"]),
        about,
    )


def truths(source: World) -> dict[str, float]:
    """Return the true value of everything that `measured` gives an interval of."""
    predicted = source.probabilities.argmax(1)
    num_classes, sure = source.probabilities.shape[1], source.probabilities.max(1)
    counts, right = count(source.true, predicted, num_classes), predicted == source.true
    classes = scores(counts)
    gaps = np.abs(np.bincount(bin_of(sure, NUM_BINS), right - sure, minlength=NUM_BINS)).sum() / len(right)
    one = np.arange(len(right)), source.true
    return {
        "accuracy": float(right.mean()), "loss": float(photo_losses(source.true, source.probabilities).mean()),
        **averages(counts),
        **{f"{score} of a class/{at}": float(classes[score][at]) for score in classes for at in range(num_classes)},
        "ece": 0.0 if source.right_as_said else float(gaps),
        "brier": float(((source.probabilities**2).sum(1) - 2 * source.probabilities[one] + 1).mean()),
        "top 2": float((np.argsort(-source.probabilities, 1)[:, :2] == source.true[:, None]).any(1).mean()),
        "ROC area/0": float(roc_auc_score(source.true == 0, source.probabilities[:, 0])),
        "average precision/0": float(average_precision_score(source.true == 0, source.probabilities[:, 0])),
        "mean corruption error": float(source.corrupted.mean()),
        "relative corruption error": float((source.corrupted - ~right).mean()),
    }  # fmt: skip


def drawn(source: World, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the rows of one test set and their groups, if any; whole groups until there are enough photos."""
    total, starts = (
        int(source.groups[-1]) + 1,
        np.searchsorted(source.groups, np.arange(source.groups[-1] + 2)),
    )
    if total == len(source.groups):
        return rng.integers(0, total, source.num_photos), None
    mean = len(source.groups) / total
    chosen = rng.integers(0, total, round(source.num_photos / mean))
    rows = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in chosen])
    # The same group drawn twice is two groups: the pool stands for an endless one.
    breaks = np.append(True, (np.diff(source.groups[rows]) != 0) | (np.diff(rows) != 1))
    return rows, np.cumsum(breaks)


def measured(source: World, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Draw a test set and return all intervals of it."""
    rows, groups = drawn(source, rng)
    true, probabilities = source.true[rows], source.probabilities[rows]
    ends = classification_metrics(true, probabilities, [str(at) for at in range(probabilities.shape[1])], groups)[
        "intervals"
    ]
    classes = ends.pop("per_class")
    result = {name: (low, high) for name, (low, high) in ends.items()}
    result |= {f"{score} of a class/{at}": tuple(values[score]) for at, values in classes.items() for score in values}
    calibrated = calibration(*_calibrated_labels(source, true, probabilities, rng, groups), groups)
    result["ece"] = calibrated.intervals["ece"].low, calibrated.intervals["ece"].high
    others = {
        "brier": calibration(true, probabilities, groups).intervals["brier"],
        "top 2": top_k_accuracy(true, probabilities, 2, groups)[1],
        "mean corruption error": skewed_mean_interval(source.corrupted[rows], groups, bounds=(0, 1)),
        "relative corruption error": skewed_mean_interval(
            source.corrupted[rows] - (probabilities.argmax(1) != true), groups, bounds=(-1, 1)
        ),
    }
    if 0 < (true == 0).sum() < len(true):
        others["ROC area/0"] = roc_auc(true == 0, probabilities[:, 0], groups)[1]
        others["average precision/0"] = average_precision(true == 0, probabilities[:, 0], groups)[1]
    return result | {name: (interval.low, interval.high) for name, interval in others.items()}


def _calibrated_labels(
    source: World,
    true: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    rng: np.random.Generator,
    groups: NDArray[np.int64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels for which the network is calibrated exactly: drawn from what it says, once for each group."""
    if not source.right_as_said:
        return true, probabilities
    chance = rng.random(len(true)) if groups is None else rng.random(groups[-1] + 1)[groups]
    return (probabilities.cumsum(1) < chance[:, None]).sum(1).clip(0, probabilities.shape[1] - 1), probabilities


def second_model(source: World, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return what another model says of the world's photos: nearly the same, or something quite different."""
    size = source.probabilities.shape
    noise = np.sqrt(0.9) * rng.normal(size=size)[source.groups] + np.sqrt(0.1) * rng.normal(size=size)
    sharpness, strength = float(rng.choice([0.7, 1, 1.4])), float(rng.choice([0.3, 1, 3]))
    logits = sharpness * (np.log(source.probabilities + 1e-12) + strength * noise)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def gained(true: NDArray[np.int64], first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, float]:
    """Return second minus first of everything that `compared` gives an interval of."""
    right = first.argmax(1) == true, second.argmax(1) == true
    macro = [
        averages(count(true, probabilities.argmax(1), probabilities.shape[1]))["f1_macro"]
        for probabilities in (first, second)
    ]
    return {
        "accuracy gained": float(right[1].mean() - right[0].mean()),
        "macro F1 gained": float(macro[1] - macro[0]),
        "loss gained": float((photo_losses(true, second) - photo_losses(true, first)).mean()),
    }


def compared(source: World, second: NDArray[np.float64], rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Draw a test set and return all intervals of the two models' differences."""
    rows, groups = drawn(source, rng)
    true, both = source.true[rows], (source.probabilities[rows], second[rows])
    ends = of_two(true, *both, groups)
    names = {"accuracy": "accuracy gained", "f1_macro": "macro F1 gained", "loss": "loss gained"}
    return {title: (ends[name].low, ends[name].high) for name, title in names.items()}


def coverage(
    source: World, num_draws: int, seed: int, *, differences: bool = False
) -> dict[str, tuple[float, float, float]]:
    """Return for each interval how often it held the truth, lay below and lay above it."""
    rng = generator(seed, "test sets")
    if differences:
        second = second_model(source, generator(seed, "second model"))
        swapped = (second, source.probabilities) if seed % 2 else (source.probabilities, second)
        source, second = replace(source, probabilities=swapped[0]), swapped[1]
        expected, draw = gained(source.true, *swapped), partial(compared, source, second)
    else:
        expected, draw = truths(source), partial(measured, source)
    sums: dict[str, list[NDArray[np.float64]]] = {}
    for _ in range(num_draws):
        for name, (low, high) in draw(rng).items():
            value = expected[name]
            outcome = np.array([low - 1e-12 <= value <= high + 1e-12, high + 1e-12 < value, low - 1e-12 > value], float)
            kind = "ece, calibrated" if name == "ece" and source.right_as_said else name.split("/")[0]
            sums.setdefault(kind, []).append(outcome)
    return {name: tuple(np.mean(rows, axis=0).tolist()) for name, rows in sums.items()}


def summary(
    many: list[World], num_draws: int, say: Callable[[str], None], *, differences: bool
) -> dict[str, dict[str, float]]:
    """Return the coverage of each interval over many worlds."""
    rows_of: dict[str, list[tuple[float, float, float]]] = {}
    for number, source in enumerate(many):
        for name, row in coverage(source, num_draws, number, differences=differences).items():
            rows_of.setdefault(name, []).append(row)
        if number % 10 == 9:
            say(f"{number + 1} of {len(many)} worlds")
    return {
        name: {
            "held": float(np.mean(rows, axis=0)[0]), "noise": float(np.std(rows, axis=0)[0] / np.sqrt(len(rows))),
            "low": float(np.mean(rows, axis=0)[1]), "high": float(np.mean(rows, axis=0)[2]),
            "worst": float(np.min(rows, axis=0)[0]), "num_worlds": len(rows),
        }
        for name, rows in rows_of.items()
    }  # fmt: skip


def main() -> None:
    """Simulate, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--differences", action="store_true", help="of two models, instead of one model's metrics")
    arguments = parser.parse_args()
    settings = {
        "single photos": {"grouped": False, "photos": (100, 200, 300, 600, 1000)},
        "groups of 1 to 8": {"grouped": True, "photos": (300, 600, 1000)},
        "about 30 groups": {"grouped": True, "photos": (90,)},
    }
    results = {}
    for name, kinds in settings.items():
        many = list(worlds(arguments.worlds, seed=0, **kinds))
        say = lambda text, name=name: print(f"{name}: {text}", flush=True)  # noqa: E731
        results[name] = summary(many, arguments.draws, say, differences=arguments.differences)
        for metric, row in results[name].items():
            print(f"{metric:28}{row['held']:8.3f} ± {row['noise']:.3f}{row['worst']:8.3f}", flush=True)
    title = "share of 95 % intervals that hold the true value, over random worlds (see benchmarks/interval_coverage.py)"
    values = {"what": title, "worlds": arguments.worlds, "draws": arguments.draws, **results}
    print(json.dumps(values)[:200])
    print(f"Written to {write_result('coverage-differences' if arguments.differences else 'coverage', values)}")


if __name__ == "__main__":
    main()
