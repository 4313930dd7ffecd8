"""Divides photos into train, validation and test by what they show. Knows nothing about files or training."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.randomness import uniform_from_content
from tellapart.records import SPLITS, Manifest


def split(
    manifest: Manifest,
    units: NDArray[np.int64],
    *,
    shares: tuple[float, float, float] = (0.7, 0.2, 0.1),
    seed: int = 0,
    earlier: dict[str, str] | None = None,
) -> pd.Series:
    """Give every readable photo a side.

    A unit (near duplicates and groups, see `duplicates.units`) stays in one split. Its side follows
    from the content of its photos and `seed` alone: the smallest SHA-256 among them becomes a number
    in [0, 1), and the number falls into a side. So a photo's side does not depend on the other
    photos, and adding photos moves none, with one exception that no rule without memory can avoid: a
    new photo that looks like an old one joins its unit, and may bring the smaller SHA-256. `earlier`
    closes that gap: units with a known photo keep the side it had.

    Every class is drawn by the same rule, so shares hold per class up to chance. A class that chance
    would leave without a photo on some side gives that side the unit whose number lies nearest to it;
    it may go back when the class grows, unless `earlier` keeps it.

    Args:
        manifest: the photos; sides given in its ``split`` column are kept as they are.
        units: the unit of each row.
        shares: of train, validation and test.
        seed: another seed gives another split.
        earlier: SHA-256 → side, from the manifest of an earlier run.

    Returns:
        "train", "validation" or "test" per row, "" for unreadable photos.

    Raises:
        InputError: no photo can be read, or the given sides have no train photos.
    """
    frame = manifest.frame
    readable = (frame["error"] == "").to_numpy()
    if not readable.any():
        raise InputError(f"None of the {len(frame)} files in {manifest.root} can be read as an image.")
    # A source that says where its photos belong is believed, copies across splits and all: `check` warns of those.
    if (frame["split"] != "").any():
        source_splits = frame["split"].where(readable, "")
        if not (source_splits == "train").any():
            raise InputError("The given split has no train photos.")
        return source_splits
    table = _group_table(frame, units, readable, seed)
    # A group's number is fixed by its content: larger shares only move the bounds, and other photos move nothing.
    bounds = np.cumsum(shares)[:2]
    table["side"] = np.asarray(SPLITS, object)[np.searchsorted(bounds, table["number"], side="right")]
    # First the rule, then the exceptions to it; what an earlier run says comes last and always holds.
    _fill_empty_splits(table, bounds, shares)
    if earlier:
        _keep_earlier(table, frame, units, readable, earlier)
    assigned = pd.Series(table["side"].reindex(units).to_numpy(object), index=frame.index)
    return assigned.where(readable, "")


def _group_table(frame: pd.DataFrame, groups: NDArray[np.int64], readable: NDArray, seed: int) -> pd.DataFrame:
    # Sorted by digest, so that the smallest one stands for the group however files are named.
    rows = pd.DataFrame({
        "unit": groups,
        "label": frame["label"].to_numpy(object),
        "sha256": frame["sha256"].to_numpy(object),
    })[readable].sort_values("sha256")  # fmt: skip
    table = rows.groupby("unit").agg(sha256=("sha256", "first"), label=("label", "first"))
    # The same in all versions: by another rule photos that an earlier run has learned from would be tested on.
    table["number"] = [uniform_from_content(seed, digest) for digest in table["sha256"]]
    return table


def _fill_empty_splits(table: pd.DataFrame, bounds: NDArray, shares: tuple[float, float, float]) -> None:
    """Small classes only: move the nearest unit from a side that can spare one. Changes `table`."""
    for _, members in table.groupby("label"):
        wanted = [name for name, share in zip(SPLITS, shares, strict=True) if share > 0]
        if len(members) < len(wanted):
            continue
        edges = dict(zip(SPLITS, ((0.0, bounds[0]), (bounds[0], bounds[1]), (bounds[1], 1.0)), strict=True))
        for name in wanted:
            assigned = table.loc[members.index, "side"]
            if (assigned == name).any():
                continue
            low, high = edges[name]
            # 0 or less inside the range, else how far the number lies outside of it.
            distance = np.maximum(low - members["number"], members["number"] - high)
            # Never the last one of another split, or that would be the next to be filled.
            spare = assigned.map(assigned.value_counts()) > 1
            table.loc[distance[spare].idxmin(), "side"] = name


def _keep_earlier(
    table: pd.DataFrame,
    frame: pd.DataFrame,
    groups: NDArray[np.int64],
    readable: NDArray,
    earlier: dict[str, str],
) -> None:
    """Give each unit the side of its photos in the earlier run, test before validation before train."""
    known = pd.DataFrame({"unit": groups, "side": frame["sha256"].map(earlier).to_numpy(object)})[readable].dropna()
    # Test first: what joined a known test photo since must not be learned from, or the test is of its copies.
    known["rank"] = known["side"].map({"test": 0, "validation": 1, "train": 2})
    first = known.sort_values("rank").groupby("unit")["side"].first()
    table.loc[first.index, "side"] = first
