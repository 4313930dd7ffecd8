"""Heat maps: how much each place of a picture speaks for a class. Knows nothing about files or how maps are shown.

Every method is a function (model, images, targets) → heat maps: uint8 pictures (num_images, height, width, 3) and class
numbers (num_images,) in, (num_images, height, width) float32 in [0, 1] out. The largest value of a map is 1, or 0 where
nothing speaks for the class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.evaluation.predict import predict_arrays
from tellapart.explain.overlay import to_heat
from tellapart.models.layers import Floats, Images, LayerReader, Reading, first_layer

Targets = NDArray[np.int64]
Method = Callable[[keras.Model, Images, Targets], Floats]

DEFAULT_METHOD = "integrated-gradients"
"""The most faithful on photos9, by measurement: docs/experiments.md."""

# Insertion less deletion on 96 validation photos: 0.592 with 12 points and the smoothing below (21 ms a photo), 0.464
# without smoothing, 0.590 with 24 points (37 ms).
_INTEGRATION_STEPS = 12
_REACH = 0.02
"""Standard deviation of the surroundings, as a share of the picture's side (docs/experiments.md)."""
_OCCLUDERS = 12
"""Patches along a side, each two of these steps wide."""


def grad_cam(model: keras.Model, images: Images, targets: Targets) -> Floats:
    """Weigh each feature map by the mean of its gradient (Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2)."""
    return to_heat(grad_cam_values(_probe(model).read(images, targets)), images)


def hires_cam(model: keras.Model, images: Images, targets: Targets) -> Floats:
    """Multiply each feature with its own gradient (Draelos & Carin 2020, "HiResCAM", equation 4)."""
    return to_heat(hires_cam_values(_probe(model).read(images, targets)), images)


def layer_cam(model: keras.Model, images: Images, targets: Targets) -> Floats:
    """Multiply each feature with its gradient where that is positive (Jiang et al. 2021, "LayerCAM", equation 6)."""
    return to_heat(layer_cam_values(_probe(model).read(images, targets)), images)


def integrated_gradients(model: keras.Model, images: Images, targets: Targets) -> Floats:
    """Integrate the gradient on the way from a blurred picture to the picture (Sundararajan et al. 2017).

    A place's heat is the sum over its channels and its surroundings, what speaks against the class left out: single
    pixels are noise to the eye, and to the network as well when they are shown one by one.
    """
    shares = integrated_gradients_values(model, images, targets)
    reach = _REACH * max(images.shape[1:3])
    return to_heat(np.stack([cv2.GaussianBlur(share, (0, 0), reach) for share in shares]), images)


def occlusion(model: keras.Model, images: Images, targets: Targets) -> Floats:
    """Cover places with the blurred picture and see how far the score falls (Zeiler & Fergus 2014, section 4.2)."""
    return to_heat(occlusion_values(model, images, targets), images)


METHODS: Mapping[str, Method] = {
    "grad-cam": grad_cam,
    "hires-cam": hires_cam,
    "layer-cam": layer_cam,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
}


def grad_cam_values(reading: Reading) -> Floats:
    """Return the map at the size of the layer, before ReLU and scaling: (num_images, height, width) float32."""
    weights = reading.gradients.mean(axis=(1, 2), keepdims=True)  # equation 1; ReLU and scaling are `to_heat`'s
    return np.asarray((reading.outputs * weights).sum(axis=-1), np.float32)


def hires_cam_values(reading: Reading) -> Floats:
    """Return the map at the size of the layer, before ReLU and scaling: (num_images, height, width) float32."""
    return np.asarray((reading.outputs * reading.gradients).sum(axis=-1), np.float32)


def layer_cam_values(reading: Reading) -> Floats:
    """Return the map at the size of the layer, before ReLU and scaling: (num_images, height, width) float32."""
    return np.asarray((reading.outputs * np.maximum(reading.gradients, 0)).sum(axis=-1), np.float32)


def integrated_gradients_values(
    model: keras.Model, images: Images, targets: Targets, *, steps: int = _INTEGRATION_STEPS
) -> Floats:
    """Return each place's share of score(picture) - score(blurred picture): (num_images, height, width) float32.

    The integral is Gauss-Legendre's sum, which needs a tenth of the points of a Riemann sum. The shares add up to
    the difference of the scores (completeness, proposition 1 of the paper) as far as the sum is exact.
    """
    # Along the way the picture is moved behind its scaling: uint8 has no numbers between two pictures, and no gradient.
    layer = first_layer(model)
    reader = _probe(model, layer)
    picture, baseline = (
        np.asarray(keras.ops.convert_to_numpy(layer(pixels)), np.float32) for pixels in (images, blurred(images))
    )
    difference = picture - baseline
    points, weights = np.polynomial.legendre.leggauss(steps)
    total = np.zeros_like(difference)
    # Gauss-Legendre points and weights for [-1, 1], moved to [0, 1]. `read` adds its argument to the output of the
    # first layer: (point - 1) * difference moves the picture (1) towards the blurred one (0).
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        total += np.float32(weight) * reader.read(images, targets, np.float32(point - 1) * difference).gradients
    return np.asarray((total * difference).sum(axis=-1), np.float32)


def occlusion_values(model: keras.Model, images: Images, targets: Targets, *, occluders: int = _OCCLUDERS) -> Floats:
    """Return how far the log-probability falls when the surroundings of a place are covered, on average.

    Returns:
        (num_images, height, width) float32.
    """
    height, width = images.shape[1:3]
    cover = blurred(images)
    # Rounded edges, not a fixed step: patches cover the whole picture, whatever its size.
    rows, columns = (np.linspace(0, length, occluders + 1).round().astype(int) for length in (height, width))
    before = log_probability(model, images, targets)
    # Patches overlap, and each place gets the mean over those that covered it: a single grid would show its edges.
    total, counts = np.zeros((len(images), height, width), np.float32), np.zeros((height, width), np.float32)
    for row in range(occluders - 1):
        for column in range(occluders - 1):
            patch = np.s_[rows[row] : rows[row + 2], columns[column] : columns[column + 2]]
            covered = images.copy()
            covered[:, *patch] = cover[:, *patch]
            fall = before - log_probability(model, covered, targets)
            total[:, *patch] += fall[:, None, None]
            counts[patch] += 1
    return np.asarray(total / counts, np.float32)


def blurred(images: Images) -> Images:
    """Return (num_images, height, width, 3) uint8 pictures without detail: what is shown in place of what is hidden.

    A grey patch would itself be a shape; a blurred picture keeps the colours and loses the object.
    """
    sigma = max(images.shape[1:3]) / 8
    return np.stack([cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE) for image in images])


def log_probability(model: keras.Model, images: Images, targets: Targets) -> Floats:
    """Return the logarithm of each image's probability of its target class, (num_images,) float32."""
    probabilities = predict_arrays(model, images)
    return np.asarray(np.log(np.maximum(probabilities[np.arange(len(images)), targets], 1e-7)), np.float32)


# Few: each entry keeps its network in memory.
@functools.lru_cache(maxsize=4)
def _probe(model: keras.Model, layer: keras.layers.Layer | None = None) -> LayerReader:
    """Return the probe of a network, compiled once: all explanations of a network go through the same few."""
    # Weights are read at each call, so a network whose weights change keeps its probe (`weight_randomisation`).
    return LayerReader(model, layer)
