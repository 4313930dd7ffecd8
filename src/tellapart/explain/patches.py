"""Which part of the picture carries which class? Knows nothing about how that is shown."""

from __future__ import annotations

import keras
import numpy as np

from tellapart.explain.maps import Targets, blurred, log_probability
from tellapart.models.layers import Floats, Images


def patch_importance(
    model: keras.Model, images: Images, targets: Targets, num_classes: int, *, patches: int = 7
) -> Floats:
    """Cover each patch of a grid with the blurred picture and see what the network forgets.

    Args:
        model: maps uint8 pictures to probabilities.
        images: (num_images, height, width, 3) uint8; a few dozen of each class are enough.
        targets: (num_images,) their true class numbers.
        num_classes: of the network.
        patches: along a side.

    Returns:
        (num_classes, patches, patches) float32: by how much the log-probability of a class falls on its own photos
        when the patch is covered, on average (occlusion; Zeiler & Fergus 2014, section 4.2); 0 without photos.
    """
    cover = blurred(images)
    rows, columns = (np.linspace(0, length, patches + 1).round().astype(int) for length in images.shape[1:3])
    before = log_probability(model, images, targets)
    importance = np.zeros((num_classes, patches, patches), np.float32)
    # The mean of no photos would be NaN: absent classes stay at 0.
    present = np.unique(targets)
    for row in range(patches):
        for column in range(patches):
            patch = np.s_[:, rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
            covered = images.copy()
            covered[patch] = cover[patch]
            fall = before - log_probability(model, covered, targets)
            for number in present:
                importance[number, row, column] = fall[targets == number].mean()
    return importance
