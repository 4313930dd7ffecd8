"""Does the network look at the thing or at what surrounds it? Knows nothing about pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import share_interval
from tellapart.explain.maps import blurred
from tellapart.records import Interval

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

CENTRE_SHARE = 0.5
"""Of the picture's area: the square in its middle that is hidden, or kept."""


@dataclass(frozen=True)
class Shortcuts:
    """Where the heat lies, and what is left without the centre.

    Attributes:
        heat_on_border: mean share of the heat outside the centre.
        heat_on_background: mean share of the heat on what GrabCut takes for background.
        background_area: mean share of the area that is background: heat without preference would lie there.
        accuracy: on the whole pictures.
        without_centre: accuracy when only the surroundings are shown, with its interval.
        only_centre: accuracy when only the centre is shown, with its interval.
        chance: accuracy of always naming the most frequent class.
        num_images: how many pictures were looked at.
    """

    heat_on_border: float
    heat_on_background: float
    background_area: float
    accuracy: float
    without_centre: tuple[float, Interval]
    only_centre: tuple[float, Interval]
    chance: float
    num_images: int

    @property
    def alarm(self) -> bool:
        """True where the surroundings alone give away more than half of what the network knows above chance."""
        # The lower end of the interval: with few photos chance alone must raise no alarm.
        return self.without_centre[1].low > self.chance + 0.5 * max(self.accuracy - self.chance, 0)


def shortcuts(
    predict: Predictor,
    pictures: NDArray[np.uint8],
    true: NDArray[np.int64],
    heat: NDArray[np.float32],
    groups: NDArray[np.int64] | None = None,
) -> Shortcuts:
    """Hide the centre, then all but the centre, behind the blurred picture.

    Args:
        predict: the network.
        pictures: (num_images, px, px, 3) uint8, at the network's size.
        true: (num_images,) class numbers.
        heat: (num_images, px, px) float32, for the predicted classes.
        groups: (num_images,) of the pictures; None: each stands for itself.
    """
    centre = centre_mask(pictures.shape[1])
    # Blurred, not black: a black patch would itself be a shape.
    cover = blurred(pictures)
    background = np.stack([background_of(picture) for picture in pictures])
    # A map may be 0 everywhere; its shares are 0 then, not NaN.
    total = np.maximum(heat.sum(axis=(1, 2)), 1e-9)

    def accuracy(shown: NDArray[np.uint8]) -> tuple[float, Interval]:
        right = predict(shown).argmax(axis=1) == true
        return float(right.mean()), share_interval(right, groups)

    return Shortcuts(
        heat_on_border=float(((heat * ~centre).sum(axis=(1, 2)) / total).mean()),
        heat_on_background=float(((heat * background).sum(axis=(1, 2)) / total).mean()),
        background_area=float(background.mean()),
        accuracy=accuracy(pictures)[0],
        without_centre=accuracy(np.where(centre[..., None], cover, pictures)),
        only_centre=accuracy(np.where(centre[..., None], pictures, cover)),
        chance=float(np.bincount(true).max() / len(true)),
        num_images=len(true),
    )


def centre_mask(side: int) -> NDArray[np.bool_]:
    """Return (side, side), True in the square in the middle that has half of the area."""
    margin = round(side * (1 - np.sqrt(CENTRE_SHARE)) / 2)
    mask = np.zeros((side, side), bool)
    mask[margin : side - margin, margin : side - margin] = True
    return mask


def background_of(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return (height, width), True where GrabCut (Rother et al. 2004) sees background.

    It starts from the picture's edge as background and the rest as unknown; where it finds no foreground at all, the
    edge is the background.
    """
    height, width = picture.shape[:2]
    margin = max(1, round(0.05 * min(height, width)))
    mask = np.full((height, width), cv2.GC_PR_FGD, np.uint8)
    mask[:margin] = mask[-margin:] = cv2.GC_BGD
    mask[:, :margin] = mask[:, -margin:] = cv2.GC_BGD
    edge = mask == cv2.GC_BGD
    # Room for GrabCut's two colour models, in the shape that OpenCV demands.
    colour_models = np.zeros((1, 65), np.float64), np.zeros((1, 65), np.float64)
    cv2.setRNGSeed(0)  # GrabCut draws random numbers; with a fixed seed a picture always gets the same background
    try:
        cv2.grabCut(picture, mask, None, *colour_models, 2, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # a picture of one colour
        return np.asarray(edge)
    background = (mask == cv2.GC_BGD) | (mask == cv2.GC_PR_BGD)
    return np.asarray(edge if background.all() else background)
