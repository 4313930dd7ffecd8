"""The result of joining networks as plain values, and its words. Knows nothing about how it was made or is shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.experiments.comparison import Comparison, Pair
from tellapart.experiments.ensembling.ensemble_run import Agreement
from tellapart.records import plain

_LEAST_LOSS = 0.00005
"""Smaller differences are rounding: an ensemble of one member differs from it in the last bits."""


@dataclass(frozen=True)
class MemberScore:
    """One network that could be a member.

    Attributes:
        name: what it is called.
        run: its run folder.
        weight: in the ensemble, 0 to 1; 0: it is no part of it.
        loss: on the validation photos, nats.
        accuracy: on them.
    """

    name: str
    run: str
    weight: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class WeightingScore:
    """One way to weigh the networks.

    Attributes:
        method: "best member", "uniform", "greedy" or "fitted".
        members: how many have a weight.
        loss: on the validation photos that the weights were fitted to, nats.
        held_out_loss: on validation photos left out of the fit, in turn.
    """

    method: str
    members: int
    loss: float
    held_out_loss: float


@dataclass(frozen=True)
class Student:
    """A single network that learned from the ensemble.

    Attributes:
        path: its run folder.
        loss: that it was trained with, in words.
    """

    path: Path
    loss: str


@dataclass(frozen=True)
class Ensemble:
    """The result of `tellapart.ensemble`.

    Attributes:
        path: the run folder of the ensemble.
        name: what it is called.
        standings: all networks that were chosen from.
        ways: all ways to weigh them.
        method: the way that was kept.
        best: the name of the network with the lowest validation loss.
        num_validation: photos that the weights were fitted to: no member was trained on them.
        relabelled: photos left out of these since their label is not the same everywhere.
        loss: of the joined network on these photos, nats.
        accuracy: of the joined network on them.
        agreement: how the joined network differs from its members.
        test: the best network, the ensemble, and the student where there is one, on test photos that are new to all;
            None: there are no such photos.
        student: None: nothing was distilled.
    """

    path: Path
    name: str
    standings: tuple[MemberScore, ...]
    ways: tuple[WeightingScore, ...]
    method: str
    best: str
    num_validation: int
    relabelled: int
    loss: float
    accuracy: float
    agreement: Agreement
    test: Comparison | None
    student: Student | None = None

    @property
    def members(self) -> tuple[MemberScore, ...]:
        """Those with a weight."""
        return tuple(member for member in self.standings if member.weight > 0)

    @property
    def choice(self) -> str:
        """How the weights were chosen, in one sentence."""
        losses = {weighting.method: weighting.held_out_loss for weighting in self.ways}
        chosen_loss, best_loss = f"{losses[self.method]:.4f}", f"{losses['best member']:.4f}"
        if self.method == "best member":
            return (
                f"No way to join them is better on held-out photos than {self.best} alone: the ensemble is {self.best}."
            )
        against = f"held-out validation loss {chosen_loss}, the best member's {best_loss}"
        if self.method == "uniform":
            return f"Equal weights do best, nothing is fitted: {against}."
        return f"{'Greedy selection' if self.method == 'greedy' else 'Fitted weights'} did best: {against}."

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What the test photos say, a sentence for each pair."""
        if self.test is None:
            return ("There is no test photo that is new to every member: nothing was measured on new photos.",)
        return tuple(pair.verdict for pair in self.test.pairs)

    @property
    def losses(self) -> tuple[str, ...]:
        """Which log losses on test photos differ, a sentence for each pair where the interval leaves out 0."""
        sentences = []
        for pair in self.test.pairs if self.test is not None else ():
            gained = pair.differences["loss"]
            low, high = gained.interval.low, gained.interval.high
            if low >= _LEAST_LOSS or high <= -_LEAST_LOSS:
                names = (pair.second, pair.first) if high < 0 else (pair.first, pair.second)
                sizes = sorted((abs(low), abs(high)))
                sentences.append(
                    f"{names[0]} has a lower log loss than {names[1]}: by {abs(gained.value):.4f} "
                    f"({sizes[0]:.4f} to {sizes[1]:.4f}) nats."
                )
        return tuple(sentences)

    @property
    def decoding(self) -> str:
        """Where members see pictures shrunk in the network, what that changed, in one sentence; else nothing."""
        if not self.agreement.resized:
            return ""
        shift = self.agreement
        return (
            f"Smaller members get their pictures from the largest member's size, not from the decoder: of "
            f"{shift.num_images:,} photos {shift.other_class:.2%} get another class than by the members' own answers, "
            f"probabilities change by {shift.mean_difference:.4f} on average, {shift.largest_difference:.2f} at most."
        )

    def pair(self, first: str, second: str) -> Pair:
        """Return the comparison of two of the networks on test photos.

        Raises:
            KeyError: they were not compared.
        """
        for pair in self.test.pairs if self.test is not None else ():
            if (pair.first, pair.second) == (first, second):
                return pair
        raise KeyError((first, second))

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of ``ensemble.json``; intervals are [low, high]."""
        values = dict(plain(self)) | {
            "path": str(self.path),
            "choice": self.choice,
            "verdicts": [*self.verdicts, *self.losses],
        }
        # `plain` knows fields only; the winners and verdicts of the pairs are properties.
        values["test"] = None if self.test is None else self.test.to_dict()
        if self.student is not None:
            values["student"]["path"] = str(self.student.path)
        return values
