"""Whether the photos that come in are still those that a model was measured on; false alarms are rare by design.

Each photo gives values from 0 to 1 whose mean is known where nothing has changed: how far its similarity to the
training photos lies below those of the validation photos, and whether it is unknown. An e-detector adds up the evidence
that a mean has risen, whenever that began. Pure functions of NumPy arrays: no store, no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.proportions import wilson
from tellapart.unknown import UnknownDetector

Floats = NDArray[np.float64]

_BETS = np.geomspace(0.02, 0.8, 12)
"""Shares of the largest bet: small ones find small changes late, large ones find large changes soon."""
_CAUTION = 3.0
"""Standard errors by which a mean that was measured on few validation photos may be too low."""


@dataclass(frozen=True, eq=False)
class Signal:
    """A value of each photo.

    Attributes:
        name: what it is.
        values: (num_photos,) float64, 0 to 1, in the order of the photos' arrival.
        usual: the largest mean that it has where nothing has changed, below 1.
    """

    name: str
    values: Floats
    usual: float


@dataclass(frozen=True, eq=False)
class Drift:
    """What an e-detector found.

    Attributes:
        evidence: (num_photos,) float64, after each photo; an alarm is raised at 1 and begins it anew.
        alarms: (num_alarms,) numbers of the photos, counted from 1, at which there was one.
        leading: name of the signal that holds most of the evidence after the last photo.
        means: name of each signal → (mean over the recent photos, what is usual at most).
    """

    evidence: Floats
    alarms: tuple[int, ...]
    leading: str
    means: dict[str, tuple[float, float]]


def signals_of(detector: UnknownDetector, reference: Floats, similarity: Floats) -> list[Signal]:
    """Return what tells drift, from the similarities of photos to the nearest training photos.

    Args:
        detector: of the model.
        reference: (num_validation,) similarities of photos that the model was validated on.
        similarity: (num_photos,) of those that came, in the order of their arrival.

    Raises:
        ValueError: there is no reference.
    """
    if not len(reference):
        raise ValueError("no validation photos to compare with")
    ordered, count = np.sort(reference), len(reference)
    # The share of validation photos that are more similar: uniform, with the mean 1/2, for photos like them. Ties count
    # half, or a value that repeats would look like a change.
    above = count - np.searchsorted(ordered, similarity, side="right")
    equal = np.searchsorted(ordered, similarity, side="right") - np.searchsorted(ordered, similarity, side="left")
    ranks = (above + 0.5 * equal) / count
    # The validation photos are a sample themselves: their own distribution is known up to this only.
    slack = _CAUTION * math.sqrt(1 / (12 * count))
    refused = int(detector.is_unknown(np.asarray(reference, np.float32)).sum())
    is_unknown = detector.is_unknown(np.asarray(similarity, np.float32)).astype(np.float64)
    return [
        # Never 1, however few the validation photos are: no mean could rise above that, and nothing would ever be
        # found.
        Signal("less similar to the training photos", ranks, min(0.5 + slack, 0.95)),
        Signal("unknown", is_unknown, min(wilson(refused, count).high, 0.95)),
    ]


def find_drift(signals: list[Signal], *, photos_between_false_alarms: float, recent: int = 500) -> Drift:
    """Return when the photos stopped being the usual ones, as far as the evidence goes.

    The e-detector of Shin, Ramdas & Rinaldo 2023, "E-detectors: a nonparametric framework for sequential change
    detection", in the form of Shiryaev and Roberts, for means of bounded values: each photo multiplies what was
    gathered so far, plus one for a change that begins with it, by a bet that does not pay where nothing has changed.
    Whatever the distribution of the values, as long as no mean is above the usual one, the mean number of photos until
    an alarm is at least `photos_between_false_alarms`. Signals and sizes of bets share the evidence, so several of them
    cost no guarantee.

    Args:
        signals: at least one, all of the same photos.
        photos_between_false_alarms: on average, at the least.
        recent: photos at the end whose means are given.
    """
    usual = np.array([signal.usual for signal in signals])
    # (num_signals, num_bets): no bet takes all of the evidence.
    bets = _BETS[None] / usual[:, None]
    values = np.stack([signal.values for signal in signals], axis=1)
    gathered, evidence, alarms = np.zeros_like(bets), np.empty(len(values)), []
    for number, row in enumerate(values):
        gathered = (gathered + 1) * (1 + bets * (row - usual)[:, None])
        evidence[number] = gathered.mean() / photos_between_false_alarms
        if evidence[number] >= 1:
            alarms.append(number + 1)
            held, gathered = gathered, np.zeros_like(bets)
    # Right after an alarm nothing is gathered yet, and what raised it is meant.
    last = held if alarms and alarms[-1] == len(values) else gathered
    leading = signals[int(last.sum(axis=1).argmax())].name if len(values) else ""
    means = {
        signal.name: (float(signal.values[-recent:].mean()) if len(values) else 0.0, signal.usual) for signal in signals
    }
    return Drift(evidence, tuple(alarms), leading, means)
