"""What a part of a report is, and what all parts look at. Knows no part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.evaluation.measure import groups_of
from tellapart.records import Interval, Progress, no_progress
from tellapart.report.subject import Subject


@dataclass(frozen=True)
class Advice:
    """Something to do next.

    Attributes:
        urgency: 1 comes first.
        text: a sentence.
    """

    urgency: int
    text: str


@dataclass
class Examination:
    """A network, its photos, and what the parts of a report have found so far.

    Attributes:
        subject: the network and its photos.
        run: the run folder.
        own_photos: whether the network was trained on some of the photos.
        health: the findings of ``health.json``; empty for photos that were not checked.
        progress: called often with (what, done, total).
        found: part → what it computed; None where it could not.
        missing: what is not there → why.
        seconds: part → how long it took.
    """

    subject: Subject
    run: Path
    own_photos: bool
    health: Sequence[Mapping[str, Any]] = ()
    progress: Progress = no_progress
    found: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def at(self) -> NDArray[np.int64]:
        """Positions of the photos that the report is about."""
        return self.subject.at(self.subject.main)

    @cached_property
    def true(self) -> NDArray[np.int64]:
        """Their class numbers."""
        return np.asarray(self.subject.numbers[self.at])

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(num_images, num_classes) of them."""
        return np.asarray(self.subject.probabilities[self.at])

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Their most probable class."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @cached_property
    def groups(self) -> NDArray[np.int64] | None:
        """Their groups; None where they are not known."""
        return self.groups_at(self.at)

    @cached_property
    def held_out(self) -> NDArray[np.int64]:
        """Positions of the validation photos, where the report is about others."""
        return self.subject.at("validation") if self.subject.main != "validation" else np.zeros(0, np.int64)

    def groups_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the groups of the photos at these positions, or None where they are not known."""
        groups = groups_of(self.subject.frame)
        return None if groups is None else groups[positions]


def nothing(_: Any) -> dict[str, Any]:
    """Put nothing into JSON."""
    return {}


def no_view(_: Examination, __: Any) -> dict[str, Any]:
    """Need nothing on the page but what was computed."""
    return {}


def no_advice(_: Examination, __: Any) -> Sequence[Advice]:
    """Know nothing to do."""
    return ()


@dataclass(frozen=True)
class Part:
    """A part of a report.

    Attributes:
        name: of its section, and of what it computed.
        title: on the page.
        link: in the page's list of parts.
        compute: returns what the part is about; an `InputError` says why it cannot.
        fragment: the template of its section; it gets ``value`` (what was computed), what `view` returns, and what all
            fragments get (see `tellapart.report.page`).
        absence: what is not there where `compute` raises, as the page calls it.
        to_json: what of it goes into ``evaluation.json``; called with None where it could not be computed.
        view: what its fragment needs beside: figures, pictures.
        advice: what to do about it.
    """

    name: str
    title: str
    link: str
    compute: Callable[[Examination], Any]
    fragment: str
    absence: str = ""
    to_json: Callable[[Any], dict[str, Any]] = nothing
    view: Callable[[Examination, Any], dict[str, Any]] = no_view
    advice: Callable[[Examination, Any], Sequence[Advice]] = no_advice

    def run(self, examination: Examination) -> None:
        """Compute the part, and keep what it found, or why it could not."""
        start = time.perf_counter()
        try:
            examination.found[self.name] = self.compute(examination)
        # No other error: what a part cannot compute is told, what is wrong in its code must be seen.
        except InputError as error:
            examination.found[self.name] = None
            examination.missing[self.absence or self.name] = str(error)
        # Also for a part that failed: it is worth knowing what took long for nothing.
        examination.seconds[self.title.lower()] = time.perf_counter() - start


def ends(interval: Interval) -> list[float]:
    """Return an interval as JSON holds it."""
    return [interval.low, interval.high]
