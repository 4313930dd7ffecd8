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
        where = first if alone and alone[0] in first.classes else other
        what = f"only {where.name} has the class {alone[0]!r}" if alone else "their order is different"
        raise InputError(
            f"{first.name} and {other.name} do not tell the same classes apart: {what}. Expected runs with the same "
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
    sides = shared_splits(runs)
    everywhere = [each.photos.drop_duplicates(["sha256", "label"]) for each in runs]
    labels = pd.concat(everywhere)[["sha256", "label"]].drop_duplicates()["sha256"].value_counts()
    known = [each.photos[each.photos["split"] != ""].drop_duplicates("sha256") for each in runs]
    common = {digest for digest, found in sides.items() if found == side}
    common &= set.intersection(*(set(photos["sha256"]) for photos in known))
    relabelled = {digest for digest in common if labels[digest] > 1}
    order = [digest for digest in known[0]["sha256"] if digest in common - relabelled]
    if not order:
        counts = ", ".join(f"{each.name} has {count_on(each, side):,}" for each in runs)
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
    known = [each.photos["unit"].to_numpy(np.int64)[at] for each, at in zip(runs, rows, strict=True)
             if "unit" in each.photos]  # fmt: skip
    if not known:
        return None
    count, place = len(known[0]), np.arange(len(known[0]))
    links, offset = [], count
    for groups in known:
        numbers = np.unique(groups, return_inverse=True)[1]
        links.append((place, numbers + offset))
        offset += int(numbers.max()) + 1
    photos, groups = (np.concatenate(ends) for ends in zip(*links, strict=True))
    graph = coo_matrix((np.ones(len(photos)), (photos, groups)), shape=(offset, offset))
    return np.asarray(connected_components(graph, directed=False)[1][:count], np.int64)


def shared_splits(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Return the side of each photo for all runs together, by SHA-256.

    "train" where any run was trained on it, else "validation" where any was validated on it, else "test".
    """
    sides: dict[str, str] = {}
    for side in ("test", "validation", "train"):
        for each in runs:
            sides |= dict.fromkeys(each.photos["sha256"][each.photos["split"] == side], side)
    return sides


def count_on(finished_run: FinishedRun, side: str) -> int:
    """Return how many photos a run has on a side."""
    return int((finished_run.photos["split"] == side).sum())
