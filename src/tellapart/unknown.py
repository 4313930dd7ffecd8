"""Whether a photo shows none of the known classes: is it near any photo that the model learned from?

NumPy alone: a server decides by it. Knows nothing about networks, runs, bundles or servers.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.files import atomic_file
from tellapart.randomness import generator

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

REFUSED = 0.05
"""Share of photos of known classes that may be called unknown: one in twenty."""

_MOST_BYTES = 2_000_000
"""Of all references, so that a bundle stays small; each class has one at least."""
_ROUNDS = 15
_MOST_PER_REFERENCE = 10
"""Photos that are clustered: of tens of thousands a random part, so that it takes seconds of a time budget."""
_BLOCK = 1024
_SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class UnknownDetector:
    """References of the known classes, and how near to one of them a photo must be.

    A photo's similarity is the cosine between its embedding and the nearest reference: the deep nearest neighbours of
    Sun et al. 2022 ("Out-of-Distribution Detection with Deep Nearest Neighbors"), of means of small clusters
    instead of all training photos.

    Attributes:
        references: (num_references, num_features) float16 of norm 1, those of a class one behind the other.
        classes: (num_references,) int64, the class number of each, in ascending order.
        threshold: similarity below which a photo is unknown, -1 to 1.
        refused: share of photos of known classes that the threshold promises to call unknown at most, 0 to 1.
        num_held_out: validation photos that the threshold comes from.

    Example:
        >>> apart = UnknownDetector(np.eye(2, dtype=np.float16), np.array([0, 1]), 0.9, 0.05, 100)
        >>> apart.is_unknown(apart.similarity(np.array([[3.0, 0.0], [1.0, 1.0]], np.float32))).tolist()
        [False, True]
    """

    references: NDArray[np.float16]
    classes: Numbers
    threshold: float
    refused: float
    num_held_out: int

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        return int(self.references.shape[1])

    @cached_property
    def _columns(self) -> Floats:
        # float32 once, for all calls: NumPy multiplies float16 without BLAS.
        return np.ascontiguousarray(self.references.T, np.float32)

    def similarity(self, embeddings: Floats) -> Floats:
        """Map (num_images, num_features) float32 to (num_images,) float32: the cosine to the nearest reference."""
        # In blocks: all photos by all references at once may take gigabytes.
        blocks = range(0, len(embeddings), _BLOCK)
        parts = [(_unit(embeddings[at : at + _BLOCK]) @ self._columns).max(axis=1) for at in blocks]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def similarity_by_class(self, embeddings: Floats) -> tuple[Numbers, Floats]:
        """Return the cosine to the nearest reference of each class, and whose they are.

        Args:
            embeddings: (num_images, num_features) float32.

        Returns:
            (num_known,) numbers of the classes that have references, ascending, and (num_images, num_known) cosines.
        """
        # References of a class lie together, so `reduceat` takes the largest from each class's first to the next one's.
        known, first = np.unique(self.classes, return_index=True)
        blocks = range(0, len(embeddings), _BLOCK)
        parts = [
            np.maximum.reduceat(_unit(embeddings[at : at + _BLOCK]) @ self._columns, first, axis=1) for at in blocks
        ]
        return known, np.concatenate(parts) if parts else np.zeros((0, len(known)), np.float32)

    def is_unknown(self, similarity: Floats) -> NDArray[np.bool_]:
        """Return which similarities are those of unknown photos; what is not a number is unknown."""
        # Not "less than": every comparison with NaN is false.
        return np.asarray(~(similarity >= self.threshold))

    def save(self, path: Path) -> None:
        """Write it as one file of NumPy arrays, without anything pickled."""
        with atomic_file(path) as stream:
            np.savez_compressed(
                stream, schema_version=_SCHEMA_VERSION, references=self.references, classes=self.classes,
                threshold=self.threshold, refused=self.refused, num_held_out=self.num_held_out,
            )  # fmt: skip


def fit_detector(
    embeddings: Floats, numbers: Numbers, held_out: Floats, *, refused: float = REFUSED, seed: int = 0
) -> UnknownDetector:
    """Condense training photos to references, and set the threshold on photos that nothing was learned from.

    The threshold is the similarity of the k-th least similar of n held-out photos, k = refused · (n + 1) rounded down:
    of new photos like these at most the share `refused` is less similar, on average over such sets of n (split
    conformal prediction, Vovk et al. 2005). With few photos k is smaller, and fewer are refused than may be.

    Args:
        embeddings: (num_images, num_features) float32 of the training photos, what the network's last layer sees.
        numbers: (num_images,) their class numbers.
        held_out: (num_held_out, num_features) of validation photos, all of known classes.
        refused: share of them that may be called unknown, 0 to 1.
        seed: of the references.

    Raises:
        InputError: there are too few held-out photos for any threshold that keeps the promise.
    """
    # The small term: 0.05 · (n + 1) may come out just below a whole number, which is meant.
    rank = int(np.floor(refused * (len(held_out) + 1) + 1e-9))
    if rank < 1:
        enough = int(np.ceil(1 / refused - 1e-9)) - 1
        have = f"only {len(held_out)} validation photos" if len(held_out) else "no validation photos"
        raise InputError(
            f"There are {have} to set a threshold on that refuses {refused:.0%} of known photos at most; that takes "
            f"{enough}. Train with more photos, or with a larger validation split."
        )
    references, classes = condensed(embeddings, numbers, seed=seed)
    unset = UnknownDetector(references, classes, -1.0, refused, len(held_out))
    threshold = float(np.sort(unset.similarity(held_out))[rank - 1])
    return UnknownDetector(references, classes, threshold, refused, len(held_out))


def condensed(
    embeddings: Floats, numbers: Numbers, *, most_bytes: int = _MOST_BYTES, seed: int = 0
) -> tuple[NDArray[np.float16], Numbers]:
    """Return references of each class: all its photos where they are few, else the means of as many clusters.

    Clusters by cosine, spherical k-means (Dhillon & Modha 2001), from photos drawn at random.

    Args:
        embeddings: (num_images, num_features) float32.
        numbers: (num_images,) class numbers.
        most_bytes: of all references, an equal part for each class.
        seed: of the draws.

    Returns:
        (num_references, num_features) float16 of norm 1, and (num_references,) class numbers, ascending.
    """
    known = np.unique(numbers)
    # Two bytes for each float16.
    share = max(1, most_bytes // (2 * embeddings.shape[1] * len(known)))
    parts = [
        _cluster_means(_unit(embeddings[numbers == number]), share, generator(seed, "references", int(number)))
        for number in known
    ]
    classes = np.repeat(known, [len(part) for part in parts]).astype(np.int64)
    return np.concatenate(parts).astype(np.float16), classes


def load_detector(path: Path) -> UnknownDetector | None:
    """Read what `UnknownDetector.save` wrote; None where there is no such file.

    Raises:
        InputError: the file is damaged or of a later version.
    """
    if not path.is_file():
        return None
    try:
        # Never pickled: a bundle may come from a stranger, and unpickling runs code.
        with np.load(path, allow_pickle=False) as archive:
            version = int(archive["schema_version"])
            detector = UnknownDetector(
                archive["references"], archive["classes"], float(archive["threshold"]), float(archive["refused"]),
                int(archive["num_held_out"]),
            )  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}). Restore it, or train or export again.") from error
    if version > _SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema {version}; this tellapart reads up to {_SCHEMA_VERSION}. Install a later one."
        )
    return detector


def decide(
    detector: UnknownDetector | None, embeddings: Floats | None, num_images: int
) -> list[tuple[bool, float | None]]:
    """Return for each image whether it is unknown, and its similarity; (False, None) where nothing can tell.

    Args:
        detector: None: the model has none.
        embeddings: (num_images, num_features) float32; None: the model gives none.
        num_images: how many there are.
    """
    if detector is None or embeddings is None:
        return [(False, None)] * num_images
    similarity = detector.similarity(embeddings)
    return list(zip(detector.is_unknown(similarity).tolist(), similarity.tolist(), strict=True))


def _cluster_means(points: Floats, count: int, random: np.random.Generator) -> Floats:
    """Return (count, num_features) of norm 1: means of clusters of points of norm 1; all points where they are few."""
    if len(points) <= count:
        return points
    if len(points) > _MOST_PER_REFERENCE * count:
        points = points[np.sort(random.choice(len(points), _MOST_PER_REFERENCE * count, replace=False))]
    means = points[np.sort(random.choice(len(points), count, replace=False))]
    for _ in range(_ROUNDS):
        nearest = np.concatenate([
            (points[at : at + _BLOCK] @ means.T).argmax(axis=1) for at in range(0, len(points), _BLOCK)
        ])  # fmt: skip
        # Sorted by cluster, each cluster's points lie together and `reduceat` adds them up.
        order = np.argsort(nearest, kind="stable")
        filled, first = np.unique(nearest[order], return_index=True)
        means = means.copy()  # a cluster that lost all its points keeps its mean
        means[filled] = _unit(np.add.reduceat(points[order], first, axis=0))
    return means


def _unit(vectors: Floats) -> Floats:
    vectors = np.asarray(vectors, np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
