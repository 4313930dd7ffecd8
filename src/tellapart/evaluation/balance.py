"""Rare classes: how far a network's logits are moved towards them. Knows nothing about networks.

A network that learned from a hundred photos of one class and a thousand of another names the second ten times as
readily where it is in doubt. Less the logarithm of the classes' shares its logits treat all classes alike (Menon et al.
2021, "Long-tail learning via logit adjustment", section 4.2, post-hoc). How far to go depends on what is wanted: all
the way is best for photos of which each class has as many, nowhere for photos as the training's. Validation's macro F1
decides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.averages import f1_macro

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
IMBALANCE = 10.0
"""Times the photos of the smallest class that the largest one has, from where on it is tried."""
_SMALLEST = 1e-12


def shift_of(counts: Numbers, strength: float) -> Floats:
    """Return what is added to the logits of each class, (num_classes,): 0 on average.

    Args:
        counts: training photos of each class, at least 1.
        strength: 0 leaves the logits alone, 1 takes the classes' shares out of them.
    """
    logs = np.log(counts / counts.sum())
    return np.asarray(-strength * (logs - logs.mean()), np.float64)


def shifted(probabilities: Floats, shift: Floats) -> Floats:
    """Return softmax(log(probabilities) + shift), (num_images, num_classes)."""
    from scipy.special import softmax

    return np.asarray(softmax(np.log(np.maximum(probabilities, _SMALLEST)) + shift, axis=1))


def choose_strength(true: Numbers, probabilities: Floats, counts: Numbers) -> float:
    """Return how far to go, by the macro F1 of photos that the network did not learn from; at equal F1 less far.

    Args:
        true: (num_images,) class numbers of validation photos.
        probabilities: (num_images, num_classes), what the network says of them.
        counts: training photos of each class.
    """
    # Below ten to one nothing is moved: accuracy would fall for a macro F1 that nobody asked for (docs/decisions.md).
    if counts.min() < 1 or counts.max() < IMBALANCE * counts.min():
        return 0.0
    classes = len(counts)
    scores = [
        f1_macro(true, shifted(probabilities, shift_of(counts, strength)).argmax(axis=1), classes).value
        for strength in STRENGTHS
    ]
    # argmax takes the first of equals, which goes least far.
    return STRENGTHS[int(np.argmax(scores))]
