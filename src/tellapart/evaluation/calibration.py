"""Can the probabilities be believed, and when should the model rather not answer? Knows nothing about models or files.

Throughout: `true` is (num_images,) int64 class numbers, `probabilities` (num_images, num_classes) float, rows adding up
to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import bootstrap_means
from tellapart.records import Interval
from tellapart.shares import wilson

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]

_TINY = 1e-7
"""Probabilities are kept this far from 0 before a logarithm is taken, as in the loss."""


@dataclass(frozen=True)
class Bin:
    """Images whose largest probability lies in one range.

    Attributes:
        low: of the range, not included (but 0 is).
        high: of the range, included.
        num_images: how many.
        confidence: mean of their largest probabilities; NaN without images.
        accuracy: share that is right; NaN without images.
        interval: of the accuracy.
    """

    low: float
    high: float
    num_images: int
    confidence: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class Calibration:
    """How probabilities and truth go together.

    Attributes:
        bins: the reliability diagram.
        ece: expected calibration error, 0 to 1.
        brier: mean squared distance to the one-hot truth, 0 to 2.
        log_loss: in nats.
        intervals: of ``ece``, ``brier`` and ``log_loss``.
    """

    bins: tuple[Bin, ...]
    ece: float
    brier: float
    log_loss: float
    intervals: dict[str, Interval]


def calibration(true: Numbers, probabilities: Floats, *, num_bins: int = 15) -> Calibration:
    """Measure how well probabilities say how often they are right.

    The expected calibration error is that of Naeini et al. 2015 and Guo et al. 2017 (equation 5) over `num_bins` bins
    of equal width; the Brier score is Brier's own sum over classes (1950).

    Raises:
        ValueError: no images.
    """
    if len(true) == 0:
        raise ValueError("Expected at least one image; got none.")
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, num_bins - 1)
    bins = []
    for index in range(num_bins):
        inside = place == index
        count, hits = int(inside.sum()), int(right[inside].sum())
        bins.append(
            Bin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                num_images=count,
                confidence=float(sure[inside].mean()) if count else float("nan"),
                accuracy=hits / count if count else float("nan"),
                interval=wilson(hits, count) if count else Interval(0.0, 1.0),
            )
        )
    gap = right - sure
    losses = {
        "brier": ((probabilities - np.eye(probabilities.shape[1])[true]) ** 2).sum(axis=1),
        "log_loss": -np.log(np.clip(probabilities[np.arange(len(true)), true], _TINY, 1)),
    }

    def ece_of(counts: Floats) -> Floats:
        """Map (num_draws, num_images) counts of each image to (num_draws,) errors."""
        sums = np.stack([counts[:, place == index] @ gap[place == index] for index in range(num_bins)], axis=1)
        return np.asarray(np.abs(sums).sum(axis=1) / len(true))

    one = np.ones((1, len(true)))
    intervals = bootstrap_means(losses, {"ece": ece_of})
    return Calibration(
        bins=tuple(bins),
        ece=float(ece_of(one)[0]),
        brier=float(losses["brier"].mean()),
        log_loss=float(losses["log_loss"].mean()),
        intervals=intervals,
    )


def fit_temperature(true: Numbers, probabilities: Floats) -> float:
    """Return the temperature that makes the probabilities most likely (Guo et al. 2017, section 4.2).

    Args:
        true: of images that the network was not trained on: validation.
        probabilities: theirs.

    Returns:
        Between 0.05 and 20; above 1 where the network is too sure of itself.
    """
    from scipy.optimize import minimize_scalar

    logits = np.log(np.clip(probabilities, _TINY, 1))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(_log_sum_exp(scaled) - scaled[np.arange(len(true)), true]))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log(probabilities) / temperature): the same order, more or less sure."""
    scaled = np.log(np.clip(probabilities, _TINY, 1)) / temperature
    return np.asarray(np.exp(scaled - _log_sum_exp(scaled)[:, None]))


def conformal_threshold(true: Numbers, probabilities: Floats, coverage: float) -> float:
    """Return the probability above which classes belong into an image's set.

    Split conformal prediction with the score 1 - p(true class) (Vovk et al. 2005; Sadinle et al. 2019, "Least
    Ambiguous Set-Valued Classifiers"): on new images like these, sets of all classes at or above the threshold hold
    the true class in at least the share `coverage` of cases.

    Args:
        true: of images that the network was not trained on: validation.
        probabilities: theirs.
        coverage: 0 to 1.

    Returns:
        0 to 1; 0, so that sets hold all classes, where there are too few images for the coverage.
    """
    scores = np.sort(1 - probabilities[np.arange(len(true)), true])
    rank = int(np.ceil((len(true) + 1) * coverage))
    return float(1 - scores[rank - 1]) if rank <= len(true) else 0.0


def conformal_sets(probabilities: Floats, threshold: float) -> NDArray[np.bool_]:
    """Return which classes are in each image's set: (num_images, num_classes); a set can be empty."""
    return np.asarray(probabilities >= threshold)


@dataclass(frozen=True)
class Abstention:
    """What is gained by leaving the least sure images to a person.

    Attributes:
        answered: shares of the images that are answered, from few to all.
        accuracy: on those that are answered.
        low: of the accuracy's interval.
        high: of the accuracy's interval.
        threshold: the smallest largest-probability that is still answered.
    """

    answered: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    threshold: Floats


def abstention(true: Numbers, probabilities: Floats, *, points: int = 50) -> Abstention:
    """Return accuracy against the share answered, surest images first (El-Yaniv & Wiener 2010, section 2)."""
    sure = probabilities.max(axis=1)
    order = np.argsort(-sure, kind="stable")
    hits = np.cumsum(probabilities.argmax(axis=1)[order] == true[order])
    counts = np.unique(np.linspace(1, len(true), points).round().astype(int))
    ends = [wilson(int(hits[count - 1]), int(count)) for count in counts]
    return Abstention(
        answered=counts / len(true),
        accuracy=hits[counts - 1] / counts,
        low=np.array([end.low for end in ends]),
        high=np.array([end.high for end in ends]),
        threshold=sure[order][counts - 1],
    )


def _log_sum_exp(values: Floats) -> Floats:
    largest = values.max(axis=1)
    return np.asarray(largest + np.log(np.exp(values - largest[:, None]).sum(axis=1)))
