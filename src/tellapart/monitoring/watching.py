"""What is to be seen in the photos that a server keeps: drift, unknown photos, classes, accuracy without labels.

One look, as plain values, for the command line, the server's page, and what decides about retraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tellapart.bundles.bundle import Bundle
from tellapart.errors import InputError
from tellapart.monitoring.drift import Drift, Floats, find_drift, signals_of
from tellapart.monitoring.label_free import Estimate, estimate_accuracy, estimate_shares
from tellapart.records import Interval, plain
from tellapart.request_store import RequestStore

RECENT = 500
"""Photos at the end that stand for now."""


@dataclass(frozen=True)
class ClassChange:
    """A class that comes more or less often than it did.

    Attributes:
        name: of the class.
        before: its share among validation photos.
        now: its estimated share among recent photos, with a 95 % interval for all classes together.
    """

    name: str
    before: float
    now: Estimate


@dataclass(frozen=True, eq=False)
class Look:
    """What is to be seen.

    Attributes:
        model: its name.
        version: its digits.
        num_photos: that were looked at.
        first: when the first of them came, in seconds since 1970, UTC.
        last: when the last one did.
        drift: what the e-detector found.
        alarms: when there was an alarm, in seconds since 1970.
        accuracy: of recent photos, estimated without labels; None: the bundle has nothing to estimate it by.
        accuracy_before: measured on validation photos; None: the bundle has no probabilities of theirs.
        classes: whose share has changed, the largest change first.
    """

    model: str
    version: str
    num_photos: int
    first: float
    last: float
    drift: Drift
    alarms: tuple[float, ...]
    accuracy: Estimate | None
    accuracy_before: float | None
    classes: tuple[ClassChange, ...]

    @property
    def is_drifting(self) -> bool:
        """Whether an alarm was raised within the recent photos."""
        # Not whether there ever was one: evidence begins anew after each, so a change that lasts raises further alarms,
        # and one that has passed raises none.
        return bool(self.drift.alarms) and self.num_photos - self.drift.alarms[-1] < RECENT

    @property
    def sentence(self) -> str:
        """What there is to say about drift."""
        if self.is_drifting:
            return f"Photos are {self.drift.leading}, more often than those that the model was measured on."
        return "No drift now." if self.drift.alarms else "No drift."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the evidence after each photo."""
        return {
            "model": self.model,
            "version": self.version,
            "num_photos": self.num_photos,
            "first": self.first,
            "last": self.last,
            "is_drifting": self.is_drifting,
            "sentence": self.sentence,
            "evidence": float(self.drift.evidence[-1]) if len(self.drift.evidence) else 0.0,
            "alarms": list(self.alarms),
            "signals": {name: {"now": now, "usual": usual} for name, (now, usual) in self.drift.means.items()},
            "accuracy": plain(self.accuracy),
            "accuracy_before": self.accuracy_before,
            "classes": plain(self.classes),
        }


def look(
    bundle: Bundle,
    store: RequestStore,
    *,
    name: str | None = None,
    since: float = 0.0,
    most: int | None = None,
    false_alarm_every: float = 10_000,
) -> Look | None:
    """Return what is to be seen in the photos that a version answered.

    Args:
        bundle: of the version.
        store: that the server keeps them in.
        name: that it is served under; None: its own.
        since: seconds since 1970, included.
        most: the latest so many photos; None: all.
        false_alarm_every: photos until a false alarm of drift, on average, at the least.

    Returns:
        None where no photo is stored.

    Raises:
        InputError: the bundle has nothing that photos could be compared with.
        SQLAlchemyError: the database failed.
    """
    # Read from the bundle's folder at this moment, which must still hold the files of this very version.
    reference, name = bundle.reference_similarities(), name or bundle.record.name
    if bundle.detector is None or not len(reference):
        raise InputError(
            f"{bundle.folder} has nothing that photos could be compared with: its run had too few validation photos. "
            "Train with more photos, and export again."
        )
    # Of this version alone: what another one has stored are distances to other references, which cannot be ranked among
    # these.
    at, similarity = store.similarities(name, bundle.version, since=since, most=most)
    if not len(at):
        return None
    drift = find_drift(
        signals_of(bundle.detector, reference, similarity),
        photos_between_false_alarms=false_alarm_every,
        recent=RECENT,
    )
    accuracy, before, classes = _without_labels(bundle, *store.recent_answers(name, bundle.version, most=RECENT))
    return Look(
        model=name,
        version=bundle.version,
        num_photos=len(at),
        first=float(at[0]),
        last=float(at[-1]),
        drift=drift,
        alarms=tuple(float(at[number - 1]) for number in drift.alarms),
        accuracy=accuracy,
        accuracy_before=before,
        classes=classes,
    )


def _without_labels(
    bundle: Bundle, came: Floats, similarity: Floats
) -> tuple[Estimate | None, float | None, tuple[ClassChange, ...]]:
    known, true = bundle.reference_probabilities()
    if not len(known) or not len(came):
        return None, None, ()
    correctness = bundle.correctness()
    accuracy = None if correctness is None else estimate_accuracy(correctness, came, similarity)
    before = float((known.argmax(axis=1) == true).mean())
    shares = estimate_shares(known, true, came)
    if shares is None:
        return accuracy, before, ()
    changes = []
    for number in shares.changed:
        ends = Estimate(float(shares.now[number]), Interval(float(shares.low[number]), float(shares.high[number])))
        changes.append(ClassChange(bundle.record.classes[number], float(shares.before[number]), ends))
    return accuracy, before, tuple(changes)
