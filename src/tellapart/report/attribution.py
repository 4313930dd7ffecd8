"""What a network looks at in the photos of a report, and whether that can be believed. Knows nothing about pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.explain.channels import Channels, channel_importance
from tellapart.explain.faithfulness import Faith, Faithfulness, Sanity, weight_randomisation
from tellapart.explain.maps import DEFAULT_METHOD, METHODS
from tellapart.explain.patches import patch_importance
from tellapart.randomness import generator
from tellapart.records import Progress
from tellapart.report.subject import Subject

# At 224 px these are 4, 16, 32 and 92 pictures; a report of 1,034 photos then takes 142 s, at 64 px 74 s. The number
# follows from the size, not from a clock, so that a run gets the same report on every machine.
FORGETTING, FEW, SOME, MANY = (4, 16), (16, 48), (32, 150), (80, 500)
"""Pictures, fewest and most, for maps of a network that forgets, hundreds of looks at each, about fifty, and a map."""
_FULL_PX = 96
"""Side of pictures up to which the most are looked at; the time of a look grows with the area."""
SUREST = 4
"""Photos of each class that the page shows with their maps."""


def how_many(bounds: tuple[int, int], image_px: int) -> int:
    """Return how many pictures of a size to look at, so that the time stays about the same."""
    fewest, most = bounds
    return max(fewest, min(most, round(most * (_FULL_PX / image_px) ** 2)))


@dataclass(frozen=True)
class Attributions:
    """What the network looks at.

    Attributes:
        method: that made `heat`.
        slots: (num_maps,) places among the pictures of those with a map, in rising order.
        heat: (num_maps, px, px) float32 in [0, 1], for the predicted classes.
        methods: how faithful each method is.
        sanity: what becomes of the maps when the network forgets.
        channels: which channel carries which class.
        channel_photos: positions of the photos that `channels` and `patches` looked at.
        patches: (num_classes, rows, columns), which part of the picture carries which class.
    """

    method: str
    slots: NDArray[np.int64]
    heat: NDArray[np.float32]
    methods: dict[str, Faithfulness]
    sanity: Sanity
    channels: Channels
    channel_photos: NDArray[np.int64]
    patches: NDArray[np.float32]

    def of(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the maps of those among `slots` that have one."""
        return self.heat[np.isin(self.slots, slots)]


def look(subject: Subject, pictures: NDArray[np.uint8], at: NDArray[np.int64], progress: Progress) -> Attributions:
    """Make the heat maps, test them, and silence channels.

    Args:
        subject: the network and its photos.
        pictures: (num_images, px, px, 3) uint8, those of one side.
        at: their positions.
        progress: called with ("comparing methods", done, total).

    Raises:
        InputError: the network has no feature maps, or does not begin by scaling the picture.
    """
    model, true, px = subject.model, subject.numbers[at], pictures.shape[1]
    probabilities = subject.probabilities[at]
    predicted = probabilities.argmax(axis=1)
    slots = _worth_a_map(true, predicted, probabilities.max(axis=1), how_many(MANY, px), how_many(SOME, px))
    # Maps of the predicted class, right or wrong: they explain the network's decision.
    heat = METHODS[DEFAULT_METHOD](model, pictures[slots], predicted[slots])
    # All methods on the same pictures, with one `Faith`, which measures the random maps only once.
    faith_sample, methods = spread(true, how_many(FEW, px)), {}
    faith = Faith(subject.predict, pictures[faith_sample], predicted[faith_sample])
    for number, (name, method) in enumerate(METHODS.items(), start=1):
        methods[name] = faith.of(method(model, pictures[faith_sample], predicted[faith_sample]))
        progress("comparing methods", number, len(METHODS))
    sanity_sample = faith_sample[: how_many(FORGETTING, px)]
    channel_sample = spread(true, how_many(SOME, px))
    return Attributions(
        method=DEFAULT_METHOD,
        slots=slots,
        heat=heat,
        methods=methods,
        # The Keras network itself, whose weights are shuffled and put back; what `subject.predict` asks may be a
        # converted copy, which would notice nothing.
        sanity=weight_randomisation(model, pictures[sanity_sample], predicted[sanity_sample], METHODS[DEFAULT_METHOD]),
        channels=channel_importance(model, pictures[channel_sample], true[channel_sample], len(subject.classes)),
        channel_photos=at[channel_sample],
        patches=patch_importance(model, pictures[channel_sample], true[channel_sample], len(subject.classes)),
    )


def _worth_a_map(
    true: NDArray[np.int64], predicted: NDArray[np.int64], sure: NDArray[np.float64], most: int, some: int
) -> NDArray[np.int64]:
    """Return at most about so many pictures in rising order: an even choice, each class's surest, then mistakes.

    Mistakes come before what is right, the surest first; of what is right the least sure come first.
    """
    right = predicted == true
    right_of_classes = [np.flatnonzero(right & (true == number)) for number in np.unique(true)]
    surest_of_classes = [places[np.argsort(-sure[places], kind="stable")[:SUREST]] for places in right_of_classes]
    # An even sample first, which the shortcuts part needs in full; then what the page shows.
    first = np.unique(np.concatenate([spread(true, some), *surest_of_classes]))
    order = np.lexsort((np.where(right, sure, -sure), right))
    rest = order[~np.isin(order, first)][: max(most - len(first), 0)]
    return np.sort(np.concatenate([first, rest]))


def spread(true: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` positions, as even over the classes as can be, the same each time, in rising order."""
    order = generator(0, "spread").permutation(len(true))
    rank = pd.Series(order).groupby(true[order]).cumcount().to_numpy()  # rank within its class
    return np.sort(order[np.argsort(rank, kind="stable")][:count])
