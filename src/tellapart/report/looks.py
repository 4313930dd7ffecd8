"""What a network looks at in the photos of a report, and whether that can be believed. Knows nothing about pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.explain.channels import Channels, channel_importance
from tellapart.explain.faithfulness import Faithfulness, Sanity, faithfulness, weight_randomisation
from tellapart.explain.maps import DEFAULT_METHOD, METHODS
from tellapart.explain.patches import patch_importance
from tellapart.randomness import generator
from tellapart.records import Progress
from tellapart.report.subject import Subject

FEW = 48
"""Pictures for what takes many looks at each."""
SOME = 200
_FORGETTING = 16


@dataclass(frozen=True)
class Looks:
    """What the network looks at.

    Attributes:
        method: that made `heat`.
        heat: (num_images, px, px) float32 in [0, 1], for the predicted classes.
        methods: how faithful each method is.
        sanity: what becomes of the maps when the network forgets.
        channels: which channel carries which class.
        channel_photos: positions of the photos that `channels` and `patches` looked at.
        patches: (num_classes, rows, columns), which part of the picture carries which class.
    """

    method: str
    heat: NDArray[np.float32]
    methods: dict[str, Faithfulness]
    sanity: Sanity
    channels: Channels
    channel_photos: NDArray[np.int64]
    patches: NDArray[np.float32]


def look(subject: Subject, pictures: NDArray[np.uint8], at: NDArray[np.int64], progress: Progress) -> Looks:
    """Make the heat maps, test them, and silence channels.

    Args:
        subject: the network and its photos.
        pictures: (num_images, px, px, 3) uint8, those of one side.
        at: their positions.
        progress: called with ("comparing methods", done, total).

    Raises:
        InputError: the network has no feature maps, or does not begin by scaling the picture.
    """
    model, true = subject.model, subject.numbers[at]
    predicted = subject.probabilities[at].argmax(axis=1)
    heat = METHODS[DEFAULT_METHOD](model, pictures, predicted)
    few, methods = spread(true, FEW), {}
    for number, (name, method) in enumerate(METHODS.items(), start=1):
        maps = method(model, pictures[few], predicted[few])
        methods[name] = faithfulness(model, pictures[few], predicted[few], maps)
        progress("comparing methods", number, len(METHODS))
    fewer = few[:_FORGETTING]
    some = spread(true, SOME)
    return Looks(
        method=DEFAULT_METHOD,
        heat=heat,
        methods=methods,
        sanity=weight_randomisation(model, pictures[fewer], predicted[fewer], METHODS[DEFAULT_METHOD]),
        channels=channel_importance(model, pictures[some], true[some], len(subject.classes)),
        channel_photos=at[some],
        patches=patch_importance(model, pictures[some], true[some], len(subject.classes)),
    )


def spread(true: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` positions, as even over the classes as can be, the same each time, in rising order."""
    order = generator(0, "spread").permutation(len(true))
    rank = pd.Series(order).groupby(true[order]).cumcount().to_numpy()  # the how-many-eth of its class
    return np.sort(order[np.argsort(rank, kind="stable")][:count])
