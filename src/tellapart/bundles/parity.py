"""The parity gate: does an artefact say what the Keras model says? Knows nothing about files or runtimes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Proof
from tellapart.proportions import difference_interval

Floats = NDArray[np.float32]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Tolerance:
    """How far an artefact may be from the Keras model.

    Attributes:
        agreement: share of the pictures in which the first classes must agree, 0 to 1.
        largest_difference: that a probability may differ by; None: any.
        near_tie: a disagreement is forgiven where Keras' own two best classes lie this near each other; None: each is.
        margin: share of the pictures by which it may be less accurate. This must be shown: the upper end of the 95 %
            interval of the loss lies below it. 0: a loss must not be detectable. None: accuracy is not looked at.
    """

    agreement: float = 0.0
    largest_difference: float | None = None
    near_tie: float | None = None
    margin: float | None = None


EXACT = Tolerance(agreement=0.999, largest_difference=1e-3)
"""For float32: sums in another order differ by about 1e-6."""
REDUCED = Tolerance(agreement=0.995, near_tie=0.1, margin=0.0)
"""For the same weights in arithmetic of less than float32."""
SAME_HEAT, SIMILAR_HEAT = 1e-3, 0.1
"""How far heat maps in float32, or in fewer bits, may be from the whole network's: shares of the strongest heat."""


def no_worse(margin: float) -> Tolerance:
    """Return the tolerance of other weights, quantized or pruned: accuracy alone counts, and may fall by `margin`."""
    return Tolerance(margin=margin)


def parity(keras: Floats, exported: Floats, true: NDArray[np.int64] | None, tolerance: Tolerance) -> Proof:
    """Compare an artefact's probabilities with the Keras model's.

    A loss of accuracy is tested one-sided (exact McNemar test; McNemar 1947), or, with a margin, bounded by Newcombe's
    interval of a paired difference (1998, method 10).

    Args:
        keras: (num_images, num_classes), the Keras model's.
        exported: the artefact's.
        true: (num_images,) class numbers, -1 where unknown; None: unknown.
        tolerance: what is let through.
    """
    if exported.shape != keras.shape:
        reason = f"it gives {exported.shape}, Keras {keras.shape}"
        return Proof(passed=False, reason=reason, num_images=len(keras), agreement=0.0, largest_difference=1.0)
    keras_classes, exported_classes = keras.argmax(axis=1), exported.argmax(axis=1)
    # Comparisons with NaN are false, so a NaN would never exceed a tolerance: test for it.
    finite = bool(np.isfinite(exported).all())
    difference = float(np.abs(keras - exported).max()) if finite else 1.0
    agreement = float((keras_classes == exported_classes).mean())
    accuracies: tuple[float | None, float | None] = (None, None)
    # The first reason counts: numbers that are none, then accuracy, then single differences.
    p_value, reason = None, "" if finite else "not finite"
    if true is not None and (known := true >= 0).any():
        before, after = (keras_classes == true)[known], (exported_classes == true)[known]
        accuracies = float(before.mean()), float(after.mean())
        p_value = _mcnemar(int((before & ~after).sum()), int((~before & after).sum()))
        reason = reason or _loss(before, after, p_value, tolerance.margin)
    # That a margin holds must be shown, which takes labels; `check_reference_images` has none, and takes the margin
    # away first.
    elif tolerance.margin:
        reason = reason or "its accuracy is not known: there are no labelled photos"
    reason = reason or _difference(keras, keras_classes != exported_classes, agreement, difference, tolerance)
    return Proof(
        passed=not reason,
        reason=reason or "equal within the tolerance",
        num_images=len(keras),
        agreement=agreement,
        largest_difference=difference,
        accuracy_of_keras=accuracies[0],
        accuracy=accuracies[1],
        p_value=p_value,
    )


def _difference(
    keras: Floats, differs: NDArray[np.bool_], agreement: float, difference: float, tolerance: Tolerance
) -> str:
    """Return in which way the probabilities are too different, or nothing."""
    if agreement < tolerance.agreement:
        return f"it agrees with Keras in {agreement:.2%} of the pictures; {tolerance.agreement:.1%} are needed"
    limit = tolerance.largest_difference
    if limit is not None and difference > limit:
        return f"a probability differs by {difference:.1g}; {limit:g} is allowed"
    if tolerance.near_tie is not None and differs.any():
        # Reduced precision may swap two classes that are almost equally probable, but no others.
        top_two = np.sort(keras[differs], axis=1)[:, -2:]
        gap = float((top_two[:, 1] - top_two[:, 0]).max())
        if gap > tolerance.near_tie:
            return f"it disagrees where Keras' two best classes are {gap:.2f} apart; {tolerance.near_tie} is allowed"
    return ""


def _loss(before: NDArray[np.bool_], after: NDArray[np.bool_], p_value: float, margin: float | None) -> str:
    """Return how much accuracy is lost where that is too much, or nothing."""
    if margin is None:
        return ""
    if margin:
        counts = [int(part.sum()) for part in (after & before, after & ~before, before & ~after, ~after & ~before)]
        largest_loss = difference_interval(*counts).high
        # The end of the interval, not the loss that was seen: with few photos a large loss can look small.
        return (
            f"it may be less accurate by {largest_loss:.2%}; {margin:.2%} is allowed" if largest_loss > margin else ""
        )
    return f"it is less accurate (p = {p_value:.3f})" if p_value < SIGNIFICANT else ""


def _mcnemar(lost: int, won: int) -> float:
    """Return the probability of so many losses among the changes, or more, if losses and wins were equally likely."""
    from scipy.stats import binom  # imported here: SciPy comes with training only, and opening a bundle never gets here

    # sf is strict: P(X > lost - 1) is P(X >= lost).
    return float(binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0
