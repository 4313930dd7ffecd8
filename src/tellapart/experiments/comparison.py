"""The result of a comparison as plain values, and its words. Knows nothing about how it was made or is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tellapart.evaluation.wording import p_text, points
from tellapart.experiments.cost import Cost
from tellapart.records import Interval, plain

MEASURES = ("accuracy", "f1_macro", "loss")
_CHANCE = 0.05
"""A corrected p-value below this is a detectable difference."""


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class RunResult:
    """One run in the comparison.

    Attributes:
        name: what it is called here.
        folder: the run folder.
        measures: ``accuracy``, ``f1_macro`` and ``loss`` on the compared photos.
        left_out: test photos of the run that are not compared.
        cost: what it took to train and what it takes to use.
    """

    name: str
    folder: str
    measures: dict[str, Measured]
    left_out: int
    cost: Cost


@dataclass(frozen=True)
class Flip:
    """A photo that one model got right and the other wrong.

    Attributes:
        path: as the first run of the comparison knows it.
        sha256: of its content.
        label: the true class.
        first_said: what the first model of the pair named.
        second_said: what the second named.
    """

    path: str
    sha256: str
    label: str
    first_said: str
    second_said: str


@dataclass(frozen=True)
class SliceDifference:
    """How two models differ on the photos that share a property.

    Attributes:
        column: the property: "class" or "short side".
        value: what it is.
        num_images: how many photos.
        accuracies: of the first and the second model there.
        difference: second less first.
        p_value: McNemar's, exact.
        corrected_p_value: with all slices of all pairs accounted for (Holm 1979).
    """

    column: str
    value: str
    num_images: int
    accuracies: tuple[float, float]
    difference: Measured
    p_value: float
    corrected_p_value: float

    @property
    def is_detectable(self) -> bool:
        """True where the models differ by more than chance explains."""
        return self.corrected_p_value < _CHANCE


@dataclass(frozen=True)
class Pair:
    """Two runs, photo by photo.

    Attributes:
        first: name of the one.
        second: name of the other.
        differences: second less first, of `MEASURES`; a loss below 0 is better.
        only_first: photos that only the first got right, the most striking first.
        only_second: photos that only the second got right.
        p_value: of both being right equally often (McNemar 1947, exact; photos of a group count together).
        corrected_p_value: with all pairs of the comparison accounted for (Holm 1979).
        slices: by class and by size.
    """

    first: str
    second: str
    differences: dict[str, Measured]
    only_first: tuple[Flip, ...]
    only_second: tuple[Flip, ...]
    p_value: float
    corrected_p_value: float
    slices: tuple[SliceDifference, ...]

    @property
    def winner(self) -> str | None:
        """The better run's name; None where no difference can be detected."""
        if self.corrected_p_value >= _CHANCE:
            return None
        # By the photos that the test counts: their numbers and the difference of accuracies have one sign.
        return self.second if len(self.only_second) > len(self.only_first) else self.first

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        gained, p_value_text = self.differences["accuracy"], p_text(self.corrected_p_value)
        low, high = gained.interval.low, gained.interval.high
        if self.winner is None:
            interval_text = f"{points(low)} to {points(high)} points"
            return f"No detectable difference between {self.first} and {self.second} ({interval_text}), {p_value_text}."
        value, other = gained.value, self.first
        if self.winner == self.first:
            value, low, high, other = -value, -high, -low, self.second
        # Without plus signs, unlike `points`: the sentence says already who is better.
        interval_text = f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "−")
        return f"{self.winner} is better than {other}: {points(value)} points ({interval_text}), {p_value_text}."


@dataclass(frozen=True)
class Comparison:
    """The result of `tellapart.compare`.

    Attributes:
        runs: those compared, in their order.
        pairs: each with every other, or each with the first.
        num_photos: that all were judged on: in every run's test split, and in no run's training or validation split.
        num_groups: in how many groups they stand, of near copies or of one object, in any of the runs; tests and
            intervals count these.
        relabelled: photos left out since their label is not the same everywhere.
    """

    runs: tuple[RunResult, ...]
    pairs: tuple[Pair, ...]
    num_photos: int
    num_groups: int
    relabelled: int

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``compare.json``; intervals are [low, high]."""
        values = plain(self)
        for pair, judged in zip(values["pairs"], self.pairs, strict=True):
            pair |= {"winner": judged.winner, "verdict": judged.verdict}
        return dict(values)
