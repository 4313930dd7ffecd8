"""Finds pictures that look the same, and the units that a split must not tear apart.

Knows nothing about labels or about what follows from a duplicate.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tellapart.data.scan import fingerprint
from tellapart.records import Manifest

MAX_BITS = 8
"""Fingerprints of near duplicates differ in at most so many of their 64 bits."""
MIN_CORRELATION = 0.97
"""Thumbnails of near duplicates correlate at least so much."""
_BLOCK = 1024


def near_duplicates(manifest: Manifest) -> NDArray[np.int64]:
    """Return the pairs of photos that look the same, exact copies included.

    A pair must pass two tests: fingerprints at most `MAX_BITS` apart (one of the two may be mirrored,
    since training mirrors pictures too), and 32 × 32 grey thumbnails that correlate at least
    `MIN_CORRELATION`. The first alone confuses pictures with the same rough layout.

    Returns:
        (num_pairs, 2) int64 positions in ``manifest.frame``, first < second. Unreadable files are in no pair.
    """
    frame = manifest.frame
    position = np.flatnonzero((frame["error"] == "").to_numpy())
    if len(position) < 2:
        return np.zeros((0, 2), np.int64)
    prints = frame["fingerprint"].to_numpy(np.uint64)[position]
    pictures = manifest.thumbnails[position]
    standard = _standardised(pictures)
    found = []
    for mirrored in (False, True):
        others = _mirrored(pictures) if mirrored else prints
        pairs = _close(prints, others)
        left = standard[pairs[:, 0]].reshape(-1, *pictures.shape[1:])
        right = standard[pairs[:, 1]].reshape(-1, *pictures.shape[1:])
        if mirrored:
            right = right[:, :, ::-1]
        found.append(pairs[(left * right).mean(axis=(1, 2)) >= MIN_CORRELATION])
    exact = _exact(frame["sha256"].to_numpy(object)[position])
    pairs = np.unique(np.concatenate([*found, exact]), axis=0)
    return position[pairs]


def units(manifest: Manifest, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row of the manifest the number of its unit: photos that must stay on one side.

    A unit joins near duplicates, and all photos of one group (the ``group`` column) with them.
    """
    frame = manifest.frame
    links = [pairs]
    grouped = pd.Series(np.arange(len(frame))).groupby(frame["group"].to_numpy(object))
    for group, members in grouped:
        if group:
            rows = members.to_numpy()
            links.append(np.stack([np.full(len(rows) - 1, rows[0]), rows[1:]], axis=1))
    edges = np.concatenate(links)
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(frame), len(frame)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _close(prints: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Compare all with all in blocks: 64 bits and one popcount a pair, 0.1 s for 10,000 photos."""
    found = []
    for start in range(0, len(prints), _BLOCK):
        block = prints[start : start + _BLOCK, None]
        left, right = np.nonzero(np.bitwise_count(block ^ others[None, start:]) <= MAX_BITS)
        found.append(np.stack([left + start, right + start], axis=1)[left < right])
    return np.concatenate(found)


def _exact(digests: NDArray) -> NDArray[np.int64]:
    order = np.argsort(digests, kind="stable")
    same = digests[order[:-1]] == digests[order[1:]]
    return np.sort(np.stack([order[:-1][same], order[1:][same]], axis=1), axis=1).astype(np.int64)


def _mirrored(pictures: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the fingerprints of the mirrored pictures.

    Computed again, not by changing the sign of odd columns: the median changes too, and 4 of the 8 bits
    that may differ would be lost to that.
    """
    return np.array([fingerprint(np.ascontiguousarray(picture[:, ::-1])) for picture in pictures], np.uint64)


def _standardised(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    flat = pictures.reshape(len(pictures), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(flat.std(axis=1, keepdims=True), 1e-6), np.float32)
