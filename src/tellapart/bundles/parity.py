"""The parity gate: does an artefact say what the Keras model says? Knows nothing about files or runtimes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tellapart.bundles.bundle import Proof

Floats = NDArray[np.float32]

AGREEMENT = 0.999
REDUCED_AGREEMENT = 0.995
TOLERANCE = 1e-3
"""Of a probability at full precision. float32 sums in another order differ by about 1e-6."""
NEAR_TIE = 0.1
"""In reduced precision a disagreement is forgiven where Keras' own two best classes lie this near to each other."""
SIGNIFICANT = 0.05


def parity(keras: Floats, found: Floats, true: NDArray[np.int64] | None, *, reduced: bool) -> Proof:
    """Compare an artefact's probabilities with the Keras model's.

    At full precision the first classes must agree in 99.9 % of the pictures and no probability may differ by more than
    `TOLERANCE`. In reduced precision 99.5 % are enough, when each disagreement is a near tie and the accuracy shows no
    detectable loss (exact McNemar test, one-sided; McNemar 1947).

    Args:
        keras: (num_images, num_classes), the Keras model's.
        found: the artefact's.
        true: (num_images,) class numbers, -1 where unknown; None: unknown.
        reduced: whether the artefact computes in less than float32.
    """
    if found.shape != keras.shape:
        reason = f"it gives {found.shape}, Keras {keras.shape}"
        return Proof(passed=False, reason=reason, num_images=len(keras), agreement=0.0, largest_difference=1.0)
    first, ours = keras.argmax(axis=1), found.argmax(axis=1)
    finite = bool(np.isfinite(found).all())
    difference = float(np.abs(keras - found).max()) if finite else 1.0
    agreement = float((first == ours).mean())
    accuracies: tuple[float | None, float | None] = (None, None)
    p_value = None
    if true is not None and (known := true >= 0).any():
        right, wrong = (first == true)[known], (ours == true)[known]
        accuracies = float(right.mean()), float(wrong.mean())
        p_value = _mcnemar(int((right & ~wrong).sum()), int((~right & wrong).sum()))
    reason = _reason(keras, first != ours, agreement, difference, p_value, reduced) if finite else "not finite"
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


def _reason(
    keras: Floats,
    differs: NDArray[np.bool_],
    agreement: float,
    difference: float,
    p_value: float | None,
    reduced: bool,
) -> str:
    """Return why the artefact is refused, or nothing."""
    needed = REDUCED_AGREEMENT if reduced else AGREEMENT
    if agreement < needed:
        return f"it agrees with Keras in {agreement:.2%} of the pictures; {needed:.1%} are needed"
    if not reduced:
        return f"a probability differs by {difference:.1g}; {TOLERANCE:g} is allowed" if difference > TOLERANCE else ""
    if differs.any():
        two = np.sort(keras[differs], axis=1)[:, -2:]
        gap = float((two[:, 1] - two[:, 0]).max())
        if gap > NEAR_TIE:
            return f"it disagrees where Keras' two best classes are {gap:.2f} apart; {NEAR_TIE} is allowed"
    if p_value is not None and p_value < SIGNIFICANT:
        return f"it is less accurate (p = {p_value:.3f})"
    return ""


def _mcnemar(lost: int, won: int) -> float:
    """Return the probability of so many losses among the changes, or more, if losses and wins were equally likely."""
    from scipy.stats import binom

    return float(binom.sf(lost - 1, lost + won, 0.5)) if lost + won else 1.0
