"""How often an A/B test is wrong when it is looked at after every label, and how many labels it needs.

    python benchmarks/ab_tests.py

Simulated, with the product's own statistics. A/A: two versions that are equally good, 1,000 tests, a look after every
label; beside them a z-test for which each look is the only one. 94 against 96 %: labels until the test says so, by
split, in shadow with a label for every photo, and in shadow with labels of disagreements alone; and how many labels a
test needs that is looked at once, at a number of labels that somebody knew beforehand. No photos and no models.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binom, norm

from machine import write_result
from tellapart.monitoring.confidence_sequences import (
    ConfidenceSequence,
    asymptotic_sequence,
    betting_sequence,
    split_effects,
)
from tellapart.proportions import wilson
from tellapart.records import Interval

Floats = np.ndarray
ONLY_CHAMPION, ONLY_CHALLENGER, BOTH_WRONG = 0.01, 0.03, 0.03
"""Of all photos: those that one alone classifies correctly, and those that neither does: 94 and 96 %."""
EQUAL = 0.02
"""In A/A tests: what each alone classifies correctly."""
SHARE = 0.5
DISAGREEMENTS, PHOTOS, SPLIT = 500, 5_000, 20_000
"""Labels after which a test is given up: of disagreements, of photos in shadow, by split."""


def gains(rng: np.random.Generator, count: int, only_champion: float, only_challenger: float) -> Floats:
    """Draw challenger less champion for photos: 1, 0 or -1."""
    drawn = rng.random(count)
    return np.where(drawn < only_challenger, 1.0, np.where(drawn < only_challenger + only_champion, -1.0, 0.0))


def of_disagreements(rng: np.random.Generator, only_champion: float, only_challenger: float) -> ConfidenceSequence:
    """Return the sequence of a shadow test in which disagreements alone are labelled."""
    share = only_challenger / (only_challenger + only_champion)
    return betting_sequence(np.where(rng.random(DISAGREEMENTS) < share, 1.0, -1.0), (-1.0, 1.0))


def of_all(rng: np.random.Generator, only_champion: float, only_challenger: float) -> ConfidenceSequence:
    """Return that of a shadow test in which every photo is labelled."""
    return betting_sequence(gains(rng, PHOTOS, only_champion, only_challenger), (-1.0, 1.0))


def of_split(rng: np.random.Generator, only_champion: float, only_challenger: float) -> ConfidenceSequence:
    """Return that of a split test."""
    both = 1 - BOTH_WRONG - ONLY_CHAMPION - ONLY_CHALLENGER
    which = rng.random(SPLIT) < SHARE
    right = rng.random(SPLIT) < both + np.where(which, only_challenger, only_champion)
    return asymptotic_sequence(split_effects(right.astype(np.float64), which, SHARE))


KINDS: dict[str, tuple[Callable[..., ConfidenceSequence], int]] = {
    "shadow, disagreements": (of_disagreements, DISAGREEMENTS),
    "shadow, every photo": (of_all, PHOTOS),
    "split": (of_split, SPLIT),
}


def naive_alarm(values: Floats, first: int = 10) -> bool:
    """Return whether a z-test at 5 % that is tried after every label ever says that the mean is not 0."""
    count = np.arange(1, len(values) + 1)
    mean = values.cumsum() / count
    variance = np.maximum((values**2).cumsum() / count - mean**2, 1e-12)
    return bool((np.abs(mean) / np.sqrt(variance / count) > norm.ppf(0.975))[first:].any())


def fixed_horizon(share: float, power: float) -> int:
    """Return how many disagreements a sign test at 5 % needs that is looked at once."""
    for count in range(5, 2000):
        limit = binom.ppf(0.975, count, 0.5)
        if binom.sf(limit, count, share) + binom.cdf(count - limit - 1, count, share) >= power:
            return count
    raise ValueError("more than 2,000")


def ends(interval: Interval) -> list[float]:
    """Return an interval as it is written."""
    return [interval.low, interval.high]


def main() -> None:
    """Simulate, and write the result and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/ab-test.png"))
    arguments = parser.parse_args()
    count = arguments.tests
    alarms: dict[str, dict[str, object]] = {}
    for number, (kind, (sequence, most)) in enumerate(KINDS.items()):
        rng = np.random.default_rng(100 + number)
        stopped = sum(sequence(rng, EQUAL, EQUAL).first_excluding(0.0) is not None for _ in range(count))
        alarms[kind] = {"share": stopped / count, "interval": ends(wilson(stopped, count)), "labels": most}
        print(kind, alarms[kind], flush=True)
    rng = np.random.default_rng(200)
    naive = sum(naive_alarm(np.where(rng.random(DISAGREEMENTS) < 0.5, 1.0, -1.0)) for _ in range(count))
    alarms["z-test, looked at after every label"] = {
        "share": naive / count, "interval": ends(wilson(naive, count)), "labels": DISAGREEMENTS,
    }  # fmt: skip
    print(alarms["z-test, looked at after every label"])
    needed: dict[str, object] = {}
    for number, (kind, (sequence, most)) in enumerate(KINDS.items()):
        rng = np.random.default_rng(300 + number)
        runs = count if kind != "shadow, every photo" else max(1, count // 5)
        labels = np.array([
            sequence(rng, ONLY_CHAMPION, ONLY_CHALLENGER).first_excluding(0.0) or most + 1 for _ in range(runs)
        ])  # fmt: skip
        low, median, high = (int(value) for value in np.quantile(labels, (0.1, 0.5, 0.9)))
        needed[kind] = {
            "median": median, "from_10_to_90_percent": [low, high], "found": float((labels <= most).mean()),
            "tests": runs, "given_up_after": most,
        }  # fmt: skip
        print(kind, needed[kind], flush=True)
    share = ONLY_CHALLENGER / (ONLY_CHALLENGER + ONLY_CHAMPION)
    fixed = {str(power): fixed_horizon(share, power) for power in (0.5, 0.8, 0.9)}
    result = {
        "a_a": alarms, "labels_for_94_against_96": needed, "disagreements_for_one_look_by_power": fixed,
        "assumed": {"only_champion": ONLY_CHAMPION, "only_challenger": ONLY_CHALLENGER, "both_wrong": BOTH_WRONG,
                    "a_a_only_one": EQUAL, "share": SHARE},
    }  # fmt: skip
    draw(arguments.picture)
    print("Written to", write_result("ab-tests", result))


def draw(path: Path) -> None:
    """Draw a test that finds a difference beside 40 that have none."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    for axis, (title, champion, challenger) in zip(
        axes, (("A/A: nothing to find", EQUAL, EQUAL), ("94 against 96 %", ONLY_CHAMPION, ONLY_CHALLENGER)), strict=True
    ):
        rng, labels = np.random.default_rng(1), np.arange(1, DISAGREEMENTS + 1)
        for number in range(20):
            sequence = of_disagreements(rng, champion, challenger)
            axis.plot(labels, sequence.mean, color="0.75", linewidth=0.6)
            if number == 0:
                axis.fill_between(labels, sequence.lower, sequence.upper, alpha=0.25, label="95 % at every look")
                axis.plot(labels, sequence.mean, label="one test")
                normal = 1.96 * np.sqrt((1 - sequence.mean**2) / labels)
                axis.plot(labels, sequence.mean + normal, "--", color="C3", linewidth=0.8, label="95 % at one look")
                axis.plot(labels, sequence.mean - normal, "--", color="C3", linewidth=0.8)
                if (stop := sequence.first_excluding(0.0)) is not None:
                    axis.axvline(stop, color="C2", label=f"stops after {stop} labels")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=title, xlabel="labels of disagreements", ylim=(-1, 1))
        axis.legend(loc="lower right", fontsize=8)
    axes[0].set_ylabel("challenger less champion, of disagreements")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
