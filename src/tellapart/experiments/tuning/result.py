"""The result of a search as plain values, and its words. Knows nothing about how it was made or is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tellapart.evaluation.multi_seed import Estimate
from tellapart.evaluation.wording import p_text, points
from tellapart.experiments.tuning.search_space import Value
from tellapart.settings import Recipe, saved_values

_CHANCE = 0.05
"""A p-value below this is a detectable difference."""


@dataclass(frozen=True)
class Trial:
    """One trial that has ended.

    Attributes:
        number: in the order in which trials were begun.
        state: "finished", "stopped" (as poor, or since its loss was no longer finite) or "lost" (its worker died).
        values: of the searched settings.
        accuracy: on the validation photos; of a stopped trial where it was stopped; None where it never looked.
        loss: cross-entropy on the validation photos in nats, of a finished trial.
        ms_per_image: of its network; where that was an aim.
        seconds: that it took.
        curve: (epoch, validation accuracy) at each look.
    """

    number: int
    state: str
    values: dict[str, Value]
    accuracy: float | None
    loss: float | None
    ms_per_image: float | None
    seconds: float
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Confirmation:
    """Whether the winner is better than the recipe that the search began from, on photos and with seeds new to both.

    Attributes:
        recipe: name of the recipe that the search began from.
        seeds: of the runs.
        accuracies: on the test photos, a (recipe, tuned) pair for each seed.
        num_images: test photos.
        gained: tuned less recipe, over seeds and photos.
    """

    recipe: str
    seeds: tuple[int, ...]
    accuracies: tuple[tuple[float, float], ...]
    num_images: int
    gained: Estimate

    @property
    def sentence(self) -> str:
        """The answer, said aloud."""
        value, ends = self.gained.value, (self.gained.interval.low, self.gained.interval.high)
        tail = f"{p_text(self.gained.p_value)}, {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}."
        if self.gained.p_value >= _CHANCE:
            low, high = map(points, ends)
            return (
                f"No detectable difference between the tuned recipe and {self.recipe} ({low} to {high} points), {tail}"
            )
        better = "better" if value > 0 else "worse"
        low, high = (f"{100 * end:.1f}".replace("-", "−") for end in ends)
        return f"The tuned recipe is {better} than {self.recipe}: {points(value)} points ({low} to {high}), {tail}"


@dataclass(frozen=True)
class Tuning:
    """The result of `tellapart.tune`.

    Attributes:
        folder: where everything is.
        trials: that have ended, in the order in which they were begun.
        best: number of the trial that won: highest accuracy on the validation photos, then lowest loss.
        recipe: of the winner.
        front: numbers of the trials that no other one beats in both accuracy and milliseconds; empty where only
            accuracy was the aim.
        importance: share of the differences in accuracy that each setting explains; empty with too few trials.
        space: each searched setting with its range as text.
        rung: the epoch after which poor trials were stopped first; None: none was.
        seconds: ``trials`` in training and measuring trials, ``overhead`` in all else between the first trial's
            beginning and the last one's end, waiting for other workers excepted.
        answer: of the runs that confirm the winner; None where there were none.
        note: why there is no answer.
    """

    folder: Path
    trials: tuple[Trial, ...]
    best: int
    recipe: Recipe
    front: tuple[int, ...]
    importance: dict[str, float]
    space: dict[str, str]
    rung: int | None
    seconds: dict[str, float]
    answer: Confirmation | None = None
    note: str = ""

    @property
    def winner(self) -> Trial:
        """The trial that won."""
        return next(trial for trial in self.trials if trial.number == self.best)

    @property
    def verdict(self) -> str:
        """The answer in one sentence, or why there is none."""
        return self.answer.sentence if self.answer else self.note

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``tune.json``."""
        values = asdict(self) | {"recipe": saved_values(self.recipe), "folder": str(self.folder)}
        return values | {"verdict": self.verdict}


def winner_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the finished trial with the highest accuracy, then the lowest loss, then the lowest number."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.accuracy is not None]
    return max(finished, key=lambda trial: (trial.accuracy, -(trial.loss or 0.0), -trial.number), default=None)


def front_of(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Return the numbers of the finished trials that no other one beats in both aims, the fastest first (Pareto).

    One trial beats another where it is at least as accurate and as fast, and in one of the two better.
    """
    aims = [
        (trial.ms_per_image, -trial.accuracy, trial.number)
        for trial in trials
        if trial.state == "finished" and trial.accuracy is not None and trial.ms_per_image is not None
    ]
    front: list[tuple[float, float, int]] = []
    # From the fastest on: a trial belongs to the front if it is more accurate than all faster ones.
    for aim in sorted(aims):
        if not front or aim[1] < front[-1][1]:
            front.append(aim)
    return tuple(number for _, _, number in front)


def table_of(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return the rows of ``trials.csv``."""
    rows = []
    for trial in trials:
        row = asdict(trial)
        values, curve = row.pop("values"), row.pop("curve")
        rows.append({**row, "epochs": curve[-1][0] if curve else None, **values})
    return rows
