"""Finds pictures that look the same, and the units that a split must not tear apart.

Knows nothing about labels or about what follows from a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_array
from scipy.sparse.csgraph import connected_components

from tellapart.data.scan import fingerprint
from tellapart.records import Manifest

MAX_BITS = 8
"""Fingerprints of near duplicates differ in at most so many of their 64 bits."""
MIN_CORRELATION = 0.97
"""Thumbnails of near duplicates correlate at least so much."""
_BLOCK = 1024
_MANY_PAIRS = 2_000_000
"""From so many pairs on, 32 MB of them, a photo's further look-alikes are listed only where they join two clusters."""
LISTED = 20
"""Look-alikes of a photo that are listed all the same."""


def near_duplicates(manifest: Manifest) -> NDArray[np.int64]:
    """Return pairs of photos that look the same, exact copies included: all that it takes to know all.

    A pair must pass two tests: fingerprints at most `MAX_BITS` apart (one of the two may be mirrored,
    since training mirrors pictures too), and 32 × 32 grey thumbnails that correlate at least
    `MIN_CORRELATION`. The first alone confuses pictures with the same rough layout.

    Of exact copies the first stands for all: it is compared with others, and each copy is paired with the one before.
    A thousand copies are 999 pairs, not 499,500; `tally` counts as if all were listed. Where nearly all photos look
    the same, each lists `LISTED` others and what joins clusters, so memory stays flat.

    Returns:
        (num_pairs, 2) int64 positions in ``manifest.frame``, first < second. Unreadable files are in no pair.
    """
    frame = manifest.frame
    # From here on photos are numbered among the readable ones; `position` leads back to rows of the manifest.
    position = np.flatnonzero((frame["error"] == "").to_numpy())
    if len(position) < 2:
        return np.zeros((0, 2), np.int64)
    exact = _exact(frame["sha256"].to_numpy(object)[position])
    # Only the first of a set of copies is compared: what it resembles, they all do.
    first = np.setdiff1d(np.arange(len(position)), exact[:, 1])
    prints = frame["fingerprint"].to_numpy(np.uint64)[position[first]]
    alike = _alike(prints, manifest.thumbnails[position[first]])
    pairs = np.unique(np.concatenate([first[alike], exact]), axis=0)
    return np.asarray(position[pairs], np.int64)


@dataclass(frozen=True)
class Tally:
    """How many photos look like another.

    Attributes:
        exact_pairs: pairs of copies, byte by byte.
        near_pairs: other pairs; at least so many where photos have more look-alikes than are listed.
        exact: (num_rows,) bool, the photos with a copy.
        near: (num_rows,) bool, those with another look-alike.
        complete: False where `near_pairs` may be more.
    """

    exact_pairs: int
    near_pairs: int
    exact: NDArray[np.bool_]
    near: NDArray[np.bool_]
    complete: bool


def tally(manifest: Manifest, pairs: NDArray[np.int64], kinds: NDArray | None = None) -> Tally:
    """Count pairs of photos that look the same, each copy for itself.

    Args:
        manifest: the photos.
        pairs: from `near_duplicates`.
        kinds: (num_rows,) such as labels; only pairs of two kinds count. None: all pairs.
    """
    digests = manifest.frame["sha256"].to_numpy(object)
    numbers = np.arange(len(digests)) if kinds is None else pd.factorize(kinds)[0]
    paired = np.zeros(len(digests), bool)
    paired[pairs.ravel()] = True
    # Photos in no pair, unreadable ones among them, are alone even where their digests are the same: none was made.
    copies = pd.factorize(np.where(paired, digests, np.arange(len(digests)).astype(object)))[0]
    # How many photos of each kind there are in each set of copies. Pairs are counted from it, not listed.
    table = csr_array((np.ones(len(copies)), (copies, numbers)), shape=(copies.max() + 1, numbers.max() + 1))
    table.sum_duplicates()
    sizes, squares = table.sum(axis=1), (table**2).sum(axis=1)
    several = np.diff(table.indptr) > 1  # kinds among the copies
    # Pairs of sets of copies, each once and without those within a set.
    links = copies[pairs]
    links = np.unique(np.sort(links[links[:, 0] != links[:, 1]], axis=1), axis=0)
    left, right = links[:, 0], links[:, 1]
    # Of two sets that look alike, pairs of one kind do not count.
    same = (table[left] * table[right]).sum(axis=1)
    # A photo with as many look-alikes as are listed at most may have more.
    listed = np.bincount(pairs[:, 0], minlength=1)
    return Tally(
        exact_pairs=int(((sizes**2 - squares) / 2).sum()),
        near_pairs=int((sizes[left] * sizes[right] - same).sum()),
        exact=several[copies],
        near=_beside_another_kind(np.concatenate([links, links[:, ::-1]]), copies, numbers, several),
        complete=bool(listed.max() < LISTED),
    )


def _beside_another_kind(
    links: NDArray[np.int64], copies: NDArray[np.int64], numbers: NDArray[np.int64], several: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which photos have a look-alike, other than a copy, of another kind than theirs."""
    kind = np.zeros(len(several), np.int64)
    kind[copies] = numbers  # of clusters of several kinds any one: those count for all beside them
    least, most = np.full(len(several), np.iinfo(np.int64).max), np.full(len(several), -1)
    mixed = np.zeros(len(several), bool)
    np.minimum.at(least, links[:, 0], kind[links[:, 1]])
    np.maximum.at(most, links[:, 0], kind[links[:, 1]])
    np.logical_or.at(mixed, links[:, 0], several[links[:, 1]])
    beside = most >= 0
    return np.asarray(
        (beside & mixed)[copies] | beside[copies] & ((least[copies] != numbers) | (most[copies] != numbers))
    )


def units(manifest: Manifest, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row of the manifest the number of its unit: photos that must stay in one split.

    A unit joins near duplicates, and all photos of one group (the ``group`` column) with them.
    """
    frame = manifest.frame
    links = [pairs]
    grouped = pd.Series(np.arange(len(frame))).groupby(frame["group"].to_numpy(object))
    for group, members in grouped:
        if group:
            rows = members.to_numpy()
            # A star, not all pairs: it joins the group as well, in memory that grows with its size alone.
            links.append(np.stack([np.full(len(rows) - 1, rows[0]), rows[1:]], axis=1))
    edges = np.concatenate(links)
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(frame), len(frame)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _alike(prints: NDArray[np.uint64], pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Compare all with all in square blocks, as they are and mirrored; of dense blocks not all pairs are kept."""
    mirrored = _mirrored(pictures)
    pairs: list[NDArray[np.int64]] = []
    listed, cluster, total = np.zeros(len(prints), np.int64), np.arange(len(prints)), 0
    # Blocks of 1,024 × 1,024 keep the comparisons' memory flat however many photos there are.
    for rows, columns in _blocks(len(prints)):
        for turned, others in ((False, prints), (True, mirrored)):
            close = np.bitwise_count(prints[rows, None] ^ others[None, columns]) <= MAX_BITS
            if rows == columns:
                # On the diagonal each pair comes twice, and each photo meets itself.
                close &= np.tri(len(close), dtype=bool).T & ~np.eye(len(close), dtype=bool)
            if not close.any():
                continue
            left, right = _correlated(
                pictures[rows], pictures[columns, :, ::-1] if turned else pictures[columns], close
            )
            left, right = left + rows.start, right + columns.start
            # Nearly all photos look the same here: listing all pairs would take memory with their square.
            if total + len(left) > _MANY_PAIRS or len(left) > 2 * LISTED * _BLOCK:
                selected = _worth_listing(left, right, listed, cluster)
                left, right = left[selected], right[selected]
            if len(left):
                pairs.append(np.stack([left, right], axis=1))
                listed += np.bincount(left, minlength=len(listed))
                total += len(left)
                cluster = _joined(cluster, left, right)
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def _blocks(count: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, count, _BLOCK):
        for column in range(row, count, _BLOCK):
            yield slice(row, min(row + _BLOCK, count)), slice(column, min(column + _BLOCK, count))


def _correlated(
    left_pictures: NDArray[np.uint8], right_pictures: NDArray[np.uint8], close: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of the close pairs correlate; 64 bits and one popcount told most of them apart."""
    left, right = np.nonzero(close)
    if len(left) > close.size // 100:  # one product of matrices is cheaper than so many single ones
        first, second = _standardised(left_pictures), _standardised(right_pictures)
        left, right = np.nonzero(close & (first @ second.T / first.shape[1] >= MIN_CORRELATION))
        return left.astype(np.int64), right.astype(np.int64)
    good = np.zeros(len(left), bool)
    for start in range(0, len(left), _BLOCK):
        part = slice(start, start + _BLOCK)
        products = _standardised(left_pictures[left[part]]) * _standardised(right_pictures[right[part]])
        good[part] = products.mean(axis=1) >= MIN_CORRELATION
    return left[good].astype(np.int64), right[good].astype(np.int64)


def _worth_listing(
    left: NDArray[np.int64], right: NDArray[np.int64], listed: NDArray[np.int64], cluster: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return which pairs to keep of too many: the first of each photo, and one for each two clusters that they join."""
    starts = np.flatnonzero(np.append(True, np.diff(left) != 0))
    # How many pairs of the same left photo come before each one; `left` is sorted.
    rank = np.arange(len(left)) - np.repeat(starts, np.diff(np.append(starts, len(left))))
    few = np.flatnonzero(rank + listed[left] < LISTED)
    ends = np.sort(np.stack([cluster[left], cluster[right]]), axis=0)
    apart = np.flatnonzero(ends[0] != ends[1])
    # One number for each pair of clusters, so that `unique` finds the first link of each.
    keys = ends[0, apart] * len(cluster) + ends[1, apart]
    return np.union1d(few, apart[np.unique(keys, return_index=True)[1]])


def _joined(cluster: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the clusters' numbers after pairs have joined some of them."""
    ends = cluster[left], cluster[right]
    graph = coo_matrix((np.ones(len(left)), ends), shape=(len(cluster), len(cluster)))
    return np.asarray(connected_components(graph, directed=False)[1][cluster], np.int64)


def _exact(digests: NDArray) -> NDArray[np.int64]:
    # Stable: each copy is paired with the one before it in the manifest.
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
    # The mean of products of standardised pictures is their correlation; a picture of one colour has none, and must
    # not divide by 0.
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(flat.std(axis=1, keepdims=True), 1e-6), np.float32)
