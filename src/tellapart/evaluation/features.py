"""What the network makes of pictures before it names them: the inputs of its last layer, and who is near whom."""

from __future__ import annotations

import zipfile

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.data.batches import CleanBatches, pictures_ahead
from tellapart.data.cache import Pictures
from tellapart.files import atomic_file
from tellapart.models.embedding import feature_model
from tellapart.models.forward import Forward, pays
from tellapart.records import Progress, no_progress
from tellapart.run_folder import RunFolder

Floats = NDArray[np.float32]

_BLOCK = 1024
_MOST_KEPT_BYTES = 100 * 10**6
_SAME = 1e-3
"""Of a probability, or of the largest feature, between two looks of the same network."""


def features_and_probabilities(
    model: keras.Model, pictures: Pictures, progress: Progress = no_progress
) -> tuple[Floats, Floats]:
    """Return (num_images, num_features) and (num_images, num_classes), both float32, for all pictures of a data set."""
    batches, flat, probabilities, done = CleanBatches(pictures, np.arange(len(pictures))), [], [], 0
    forward = Forward(feature_model(model), is_converted=pays(len(pictures), pictures.image_px))
    for features, batch_probabilities in forward(pictures_ahead(batches)):
        flat.append(features.reshape(len(features), -1))
        probabilities.append(batch_probabilities)
        done += len(batch_probabilities)
        progress("predicting", done, len(pictures))
    return np.concatenate(flat), np.concatenate(probabilities)


def save_outputs(run: RunFolder, features: Floats, probabilities: Floats) -> None:
    """Keep what the final measurement found for the report, which would need the network for minutes; not if large."""
    if features.nbytes <= _MOST_KEPT_BYTES:
        with atomic_file(run.features_path) as stream:
            np.savez(stream, features=features, probabilities=probabilities)


def read_outputs(run: RunFolder) -> tuple[Floats, Floats] | None:
    """Return what `save_outputs` kept, in the order of the run's readable photos; None where it is lost or damaged."""
    try:
        with np.load(run.features_path) as archive:
            features, probabilities = archive["features"], archive["probabilities"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return (features, probabilities) if len(features) == len(probabilities) else None


def saved_outputs(run: RunFolder, model: keras.Model, pictures: Pictures) -> tuple[Floats, Floats] | None:
    """Return what `save_outputs` kept of these pictures; None where it is missing, or the model says something else."""
    if (outputs := read_outputs(run)) is None or len(outputs[0]) != len(pictures):
        return None
    features, probabilities = outputs
    # A few photos through the network: the file may be of other weights, or of other photos in the same number.
    sample = np.linspace(0, len(pictures) - 1, min(len(pictures), 32)).astype(np.int64)
    embeddings, predicted = feature_model(model).predict_on_batch(pictures.batch(sample))
    flat = np.asarray(embeddings).reshape(len(sample), -1)
    if flat.shape[1] != features.shape[1]:
        return None
    same_features = np.abs(flat - features[sample]).max() <= _SAME * np.abs(features).max()
    return (
        (features, probabilities)
        if same_features and np.abs(predicted - probabilities[sample]).max() <= _SAME
        else None
    )


def nearest_neighbours(queries: Floats, references: Floats, count: int = 3) -> tuple[NDArray[np.int64], Floats]:
    """Return the most similar references of each query, by the cosine of their features.

    Args:
        queries: (num_queries, num_features).
        references: (num_references, num_features).
        count: how many; fewer where there are fewer references.

    Returns:
        Positions among the references, nearest first, and their cosines: (num_queries, count) each.
    """
    count = min(count, len(references))
    unit_queries, unit_references = unit_rows(queries), unit_rows(references)
    positions = np.empty((len(unit_queries), count), np.int64)
    cosines = np.empty((len(unit_queries), count), np.float32)
    # In blocks: all queries by all references at once may take gigabytes.
    for start in range(0, len(unit_queries), _BLOCK):
        similarity = unit_queries[start : start + _BLOCK] @ unit_references.T
        # The nearest few first, then those few in order: sorting all would take most of the time.
        best = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(similarity, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        positions[start : start + _BLOCK] = np.take_along_axis(best, order, axis=1)
        cosines[start : start + _BLOCK] = np.take_along_axis(values, order, axis=1)
    return positions, cosines


def unit_rows(features: Floats) -> Floats:
    """Return features with each row divided by its norm."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), np.float32)
