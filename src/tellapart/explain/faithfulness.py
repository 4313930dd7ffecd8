"""Do heat maps say what the network looks at? Two tests that need no opinion. Knows nothing about how maps are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.intervals import mean_interval
from tellapart.explain.maps import Method, Targets, blurred
from tellapart.models.layers import Floats, Images
from tellapart.randomness import generator
from tellapart.records import Interval

Predict = Callable[[Images], Floats]

_STEPS = 16


@dataclass(frozen=True)
class Faithfulness:
    """How much the probability of a class hangs on the places that a method marks.

    Attributes:
        deletion: mean area under the curve while the hottest places are blurred first, 0 to 1; low is good.
        insertion: while the hottest places are uncovered first; high is good.
        deletion_gain: how much lower than with random maps, paired over images, with its interval.
        insertion_gain: how much higher than with random maps, likewise.
        deletion_interval: of ``deletion``.
        insertion_interval: of ``insertion``.
    """

    deletion: float
    insertion: float
    deletion_gain: tuple[float, Interval]
    insertion_gain: tuple[float, Interval]
    deletion_interval: Interval
    insertion_interval: Interval

    @property
    def score(self) -> float:
        """Insertion less deletion: by this methods are compared, high is good."""
        return self.insertion - self.deletion


class Faith:
    """Measures heat maps of some images by deletion and insertion (Petsiuk et al. 2018, "RISE", section 4.2).

    What is hidden is replaced by the blurred picture; places are taken in `_STEPS` equal steps, ties in random order.
    What random maps would do is found once, for all methods.

    Args:
        predict: maps uint8 pictures to probabilities.
        images: (num_images, height, width, 3) uint8.
        targets: (num_images,) class numbers.
    """

    def __init__(self, predict: Predict, images: Images, targets: Targets) -> None:
        self.predict, self.images, self.targets = predict, images, targets
        self._cover = blurred(images)
        # Both curves share their ends: nothing hidden, and everything hidden.
        self._ends = [self._probability(shown) for shown in (images, self._cover)]
        # As smooth as heat maps are, or the gain over chance would be that of smoothness alone.
        self._chance = self.areas(smooth_noise(images.shape[:3], generator(0, "random maps")))

    def of(self, heat: Floats) -> Faithfulness:
        """Measure a method's maps, (num_images, height, width)."""
        # Break ties at random, with a fixed seed: taking equally hot places in pixel order would favour the top of the
        # picture.
        ties = generator(0, "ties").random(heat.shape, np.float32)
        ours, chance = self.areas(heat + 1e-6 * ties), self._chance
        gains = chance[0] - ours[0], ours[1] - chance[1]
        intervals = [mean_interval(values.astype(np.float64)) for values in (*ours, *gains)]
        return Faithfulness(
            deletion=float(ours[0].mean()),
            insertion=float(ours[1].mean()),
            deletion_gain=(float(gains[0].mean()), intervals[2]),
            insertion_gain=(float(gains[1].mean()), intervals[3]),
            deletion_interval=intervals[0],
            insertion_interval=intervals[1],
        )

    def areas(self, heat: Floats) -> tuple[Floats, Floats]:
        """Return each image's areas under the deletion and the insertion curve, (num_images,) float32 each."""
        ranks = _ranks(heat)
        pixels, (uncovered, covered) = ranks.shape[1] * ranks.shape[2], self._ends
        deletion, insertion = [uncovered], [covered]
        for step in range(1, _STEPS):
            # By rank, not by heat: each step hides as many places, whatever the scale of the maps.
            hot = (ranks < round(step * pixels / _STEPS))[..., None]
            deletion.append(self._probability(np.where(hot, self._cover, self.images)))
            insertion.append(self._probability(np.where(hot, self.images, self._cover)))
        curves = [*deletion, covered], [*insertion, uncovered]
        below, above = (np.trapezoid(np.stack(curve), dx=1 / _STEPS, axis=0) for curve in curves)
        return np.asarray(below, np.float32), np.asarray(above, np.float32)

    def _probability(self, shown: Images) -> Floats:
        """Return the probability of each image's target class, (num_images,) float32."""
        return np.asarray(self.predict(shown)[np.arange(len(shown)), self.targets], np.float32)


def smooth_noise(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """Return random maps as smooth as class activation maps are: noise of 8 × 8 cells, enlarged."""
    import cv2

    cells = rng.random((shape[0], 8, 8), np.float32)
    return np.stack([cv2.resize(cell, (shape[2], shape[1]), interpolation=cv2.INTER_CUBIC) for cell in cells])


@dataclass(frozen=True)
class Sanity:
    """How maps change when the network forgets what it learned.

    Attributes:
        layers: names, from the output back; each is randomised together with all before it in this list.
        correlation: mean rank correlation of the maps with those of the trained network, one for each layer.
    """

    layers: tuple[str, ...]
    correlation: tuple[float, ...]


def weight_randomisation(model: keras.Model, images: Images, targets: Targets, method: Method) -> Sanity:
    """Randomise the network layer by layer from the output (Adebayo et al. 2018, "Sanity Checks", section 4.1).

    A method whose maps stay as they were does not show what was learned. The network gets its weights back.
    """
    from scipy.stats import spearmanr

    trained = method(model, images, targets)
    trained_weights, rng = model.get_weights(), generator(0, "forgetting")
    names, correlations = [], []
    # This overwrites the caller's network, so its weights must come back even if a method fails.
    try:
        for layer in reversed([layer for layer in model.layers if layer.weights]):
            # Layers stay shuffled, so each step forgets one more layer than the step before.
            layer.set_weights([_shuffled(weight, rng) for weight in layer.get_weights()])
            maps = method(model, images, targets)
            pairs = [_rank_correlation(spearmanr, a, b) for a, b in zip(trained, maps, strict=True)]
            names.append(layer.name)
            correlations.append(float(np.mean(pairs)))
    finally:
        model.set_weights(trained_weights)
    return Sanity(tuple(names), tuple(correlations))


def _rank_correlation(spearmanr, a: Floats, b: Floats) -> float:  # type: ignore[no-untyped-def]  # SciPy's function
    """Return the rank correlation of two maps; 0 where one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def _shuffled(weight: NDArray, rng: np.random.Generator) -> NDArray:
    """Return the same numbers at other places: scale and spread stay, what was learned goes."""
    return np.asarray(rng.permutation(weight.ravel()).reshape(weight.shape))


def _ranks(heat: Floats) -> NDArray[np.int64]:
    """Return for each place how many places of its map are hotter."""
    flat = heat.reshape(len(heat), -1)
    order = np.argsort(-flat, axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1])[None].repeat(len(flat), axis=0), axis=1)
    return ranks.reshape(heat.shape)
