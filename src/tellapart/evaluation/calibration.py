"""Can the probabilities be believed, and when should the model rather not answer? Knows nothing about models or files.

Throughout: `true` is (num_images,) int64 class numbers, `probabilities` (num_images, num_classes) float, rows adding up
to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.calibration_error import bin_of, calibration_error
from tellapart.evaluation.intervals import several, share_interval, share_intervals, skewed_mean_interval
from tellapart.evaluation.metrics import LOSS_BOUNDS, photo_losses
from tellapart.records import Interval

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]

_SMALLEST = float(np.finfo(np.float32).tiny)
"""Of a probability whose logarithm stands for a logit. Were it higher, a temperature would act on other numbers here
than inside the network."""


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
        ece: expected calibration error, 0 to 1, without the bias of the usual estimate (`calibration_error`).
        ece_plain: the usual estimate of Naeini et al. 2015 and Guo et al. 2017, too large for few photos.
        brier: mean squared distance to the one-hot truth, 0 to 2.
        log_loss: in nats.
        intervals: of ``ece``, ``brier`` and ``log_loss``.
    """

    bins: tuple[Bin, ...]
    ece: float
    ece_plain: float
    brier: float
    log_loss: float
    intervals: dict[str, Interval]


def calibration(
    true: Numbers, probabilities: Floats, groups: Numbers | None = None, *, num_bins: int = 15
) -> Calibration:
    """Measure how well probabilities say how often they are right.

    The expected calibration error is debiased, over `num_bins` bins of equal width; the Brier score is Brier's own sum
    over classes (1950). The intervals of Brier score and log loss are `skewed_mean_interval`.

    Args:
        true: class numbers.
        probabilities: of the same images.
        groups: (num_images,) of the images; None: each stands for itself.
        num_bins: of equal width.

    Raises:
        ValueError: no images.
    """
    if len(true) == 0:
        raise ValueError("Expected at least one image; got none.")
    groups = several(groups)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    error = calibration_error(right, sure, groups, num_bins=num_bins)
    one_hot_at = np.arange(len(true)), true
    brier = (probabilities**2).sum(axis=1) - 2 * probabilities[one_hot_at] + 1  # no table of ones: classes can be many
    losses = photo_losses(true, probabilities)
    return Calibration(
        bins=_bins(right, sure, groups, num_bins),
        ece=error.value,
        ece_plain=error.plain,
        brier=float(brier.mean()),
        log_loss=float(losses.mean()),
        intervals={
            "ece": error.interval,
            "brier": skewed_mean_interval(brier, groups, bounds=(0.0, 2.0)),
            "log_loss": skewed_mean_interval(losses, groups, bounds=LOSS_BOUNDS),
        },
    )


def _bins(right: NDArray[np.bool_], sure: Floats, groups: Numbers | None, num_bins: int) -> tuple[Bin, ...]:
    bin_numbers, edges = bin_of(sure, num_bins), np.linspace(0, 1, num_bins + 1)
    counts = np.bincount(bin_numbers, minlength=num_bins)
    sums = [np.bincount(bin_numbers, values, minlength=num_bins) for values in (sure, right)]
    confidence, accuracy = (np.divide(total, counts, out=np.full(num_bins, np.nan), where=counts > 0) for total in sums)
    ends = share_intervals(right, bin_numbers, num_bins, groups)
    return tuple(
        Bin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            num_images=int(counts[index]),
            confidence=float(confidence[index]),
            accuracy=float(accuracy[index]),
            interval=ends[index],
        )
        for index in range(num_bins)
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
    from scipy.special import log_softmax

    # Logarithms of probabilities are logits but for a constant per image, which softmax takes out again.
    logits = np.log(np.maximum(probabilities, _SMALLEST))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(true)), true].mean())

    # Over the logarithm: half and double are equally far from 1.
    minimum = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(minimum.x))


def at_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log(probabilities) / temperature): the same order, more or less sure."""
    from scipy.special import softmax

    return np.asarray(softmax(np.log(np.maximum(probabilities, _SMALLEST)) / temperature, axis=1))


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
    # Of n + 1, not n: the new image may take any place among the n known ones.
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


def abstention(true: Numbers, probabilities: Floats, groups: Numbers | None = None, *, points: int = 50) -> Abstention:
    """Return accuracy against the share answered, surest images first (El-Yaniv & Wiener 2010, section 2)."""
    sure = probabilities.max(axis=1)
    # Sorted once: the answers at each share are a prefix of this order.
    order = np.argsort(-sure, kind="stable")
    right, groups = (probabilities.argmax(axis=1) == true)[order], several(groups)
    hits = np.cumsum(right)
    counts = np.unique(np.linspace(1, len(true), points).round().astype(int))
    ends = [share_interval(right[:count], None if groups is None else groups[order[:count]]) for count in counts]
    return Abstention(
        answered=counts / len(true),
        accuracy=hits[counts - 1] / counts,
        low=np.array([end.low for end in ends]),
        high=np.array([end.high for end in ends]),
        threshold=sure[order][counts - 1],
    )
