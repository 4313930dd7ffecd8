"""What several runs have in common: the classes, and the photos on which none has an advantage. Knows no models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tellapart.errors import InputError
from tellapart.experiments.finished_run import FinishedRun

_WANTED = {"test": "is in the test split of all", "validation": "one was validated on and none trained on"}


def refuse_other_classes(runs: Sequence[FinishedRun]) -> None:
    """Refuse runs whose classes are not the same, in the same order.

    Raises:
        InputError: names a class that only one of them has.
    """
    first = runs[0]
    for other in runs[1:]:
        if other.classes == first.classes:
            continue
        alone = sorted(set(first.classes) ^ set(other.classes))
        holder = first if alone and alone[0] in first.classes else other
        reason = f"only {holder.name} has the class {alone[0]!r}" if alone else "their order is different"
        # Order counts too: predictions are compared by the number of their column.
        raise InputError(
            f"{first.name} and {other.name} do not tell the same classes apart: {reason}. Expected runs with the same "
            f"classes ({', '.join(first.classes)})."
        )


def shared_photos(runs: Sequence[FinishedRun], side: str = "test") -> tuple[list[NDArray[np.int64]], int]:
    """Return for each run the rows of the photos that all know and none learned from, and how many have two labels.

    Photos are matched by content. "test": those in the test split of all, which none was trained or validated on.
    "validation": those that none was trained on, and at least one was validated on.

    Args:
        runs: the runs.
        side: "test" or "validation".

    Returns:
        Rows of each run's `photos`, in one order: that of the first run. Photos with two labels are not among them.

    Raises:
        InputError: there are none.
    """
    splits = shared_splits(runs)
    # A photo whose label was corrected between two runs has no truth that both were measured against.
    everywhere = [run.photos.drop_duplicates(["sha256", "label"]) for run in runs]
    labels = pd.concat(everywhere)[["sha256", "label"]].drop_duplicates()["sha256"].value_counts()
    known = [run.photos[run.photos["split"] != ""].drop_duplicates("sha256") for run in runs]
    common = {digest for digest, split in splits.items() if split == side}
    common &= set.intersection(*(set(photos["sha256"]) for photos in known))
    relabelled = {digest for digest in common if labels[digest] > 1}
    # One order for all runs, so that row n is the same photo in each.
    order = [digest for digest in known[0]["sha256"] if digest in common - relabelled]
    if not order:
        counts = ", ".join(f"{run.name} has {count_on(run, side):,}" for run in runs)
        raise InputError(
            f"The runs have no photo in common that {_WANTED[side]}, with one label ({counts} {side} photos). Expected "
            "runs of the same photos: train one with --split-from the other, so that photos stay in their split."
        )
    return [pd.Series(photos.index, photos["sha256"])[order].to_numpy(np.int64) for photos in known], len(relabelled)


def shared_groups(runs: Sequence[FinishedRun], rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """Return the number of each common photo's group, (num_photos,), or None where no run knows groups.

    Photos that stand in one group in any of the runs stand in one here: a run sees only its own photos' likeness.

    Args:
        runs: the runs.
        rows: of each run's photos, as `shared_photos` gives them.
    """
    known = [run.photos["unit"].to_numpy(np.int64)[at] for run, at in zip(runs, rows, strict=True)
             if "unit" in run.photos]  # fmt: skip
    if not known:
        return None
    count, positions = len(known[0]), np.arange(len(known[0]))
    links, offset = [], count
    # Photos and all runs' groups are the nodes of one graph; what hangs together is a group here.
    for groups in known:
        numbers = np.unique(groups, return_inverse=True)[1]
        links.append((positions, numbers + offset))
        offset += int(numbers.max()) + 1
    photos, groups = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_matrix((np.ones(len(photos)), (photos, groups)), shape=(offset, offset))
    return np.asarray(connected_components(graph, directed=False)[1][:count], np.int64)


def shared_splits(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Return the side of each photo for all runs together, by SHA-256.

    "train" where any run was trained on it, else "validation" where any was validated on it, else "test".
    """
    splits: dict[str, str] = {}
    # Later ones overwrite earlier ones: one run that has learned from a photo spoils it for all.
    for split in ("test", "validation", "train"):
        for run in runs:
            splits |= dict.fromkeys(run.photos["sha256"][run.photos["split"] == split], split)
    return splits


def count_on(finished_run: FinishedRun, side: str) -> int:
    """Return how many photos a run has on a side; copies are one photo, as in `shared_photos`."""
    photos = finished_run.photos
    return int(photos["sha256"][photos["split"] == side].nunique())
