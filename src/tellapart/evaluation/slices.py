"""Where is the model worse than elsewhere? Slices of the photos, worst first, corrected for many looks.

Knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.evaluation.intervals import effective_sizes, several, share_interval
from tellapart.evaluation.paired import holm
from tellapart.records import Interval

SMALLEST = 20
"""Slices with fewer photos are not looked at: their intervals would say nothing."""
_MOST_VALUES = 30
"""A column of text with more values than this is a name, not a property."""
_QUARTERS = 4


@dataclass(frozen=True)
class Slice:
    """Photos that share a property.

    Attributes:
        column: the property.
        value: what it is in this slice.
        num_images: how many photos.
        accuracy: on them.
        interval: of the accuracy.
        accuracy_elsewhere: on all other photos; NaN where there are none.
        p_value: of the two accuracies being equal (Fisher 1922, exact, two-sided; where photos stand in groups, with
            as many photos as the groups are worth), times the number of slices still in question (Holm 1979); at most
            1. Below 0.05: the slice is different, with all looks accounted for.
    """

    column: str
    value: str
    num_images: int
    accuracy: float
    interval: Interval
    accuracy_elsewhere: float
    p_value: float

    @property
    def is_worse(self) -> bool:
        """True where the slice is worse than the rest by more than chance explains."""
        return self.p_value < 0.05 and self.accuracy < self.accuracy_elsewhere


def slices(
    correct: NDArray[np.bool_], properties: pd.DataFrame, groups: NDArray[np.int64] | None = None
) -> list[Slice]:
    """Return all slices with at least `SMALLEST` photos: those that differ first, worst first.

    Args:
        correct: (num_images,) whether each photo was classified correctly.
        properties: a row per photo. Numbers are cut into quarters, text and truth values are taken as they are;
            columns with one value or with too many names are left out.
        groups: (num_images,) of the photos; None: each stands for itself.
    """
    groups, results = several(groups), []
    for column, value, inside in _parts(properties):
        count, hits = int(inside.sum()), int(correct[inside].sum())
        rest, rest_hits = len(correct) - count, int(correct.sum()) - hits
        # Left out before the correction: what is not looked at must not cost the others their power.
        if count < SMALLEST or rest == 0:
            continue
        interval = share_interval(correct[inside], None if groups is None else groups[inside])
        p_value = equality_p_value(correct, inside, groups)
        results.append(Slice(column, value, count, hits / count, interval, rest_hits / rest, p_value))
    # All slices of all columns are one family: correcting each column alone would find too much.
    corrected = holm(np.array([part.p_value for part in results]))
    results = [
        Slice(**{**vars(part), "p_value": float(p_value)}) for part, p_value in zip(results, corrected, strict=True)
    ]
    return sorted(results, key=lambda part: (not part.is_worse, part.accuracy))


def equality_p_value(
    correct: NDArray[np.bool_], inside: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> float:
    """Return the p-value of accuracy being the same inside and outside of a slice.

    Fisher's exact test. With groups it is asked of the counts divided by the design effect of the difference (Rao &
    Scott 1981), rounded down: a group that lies in both parts can make the effect smaller, one that lies in one part
    makes it larger.

    Args:
        correct: (num_images,) whether each photo was classified correctly.
        inside: (num_images,) whether it belongs to the slice.
        groups: (num_images,) of the photos; None: each stands for itself.
    """
    from scipy.stats import fisher_exact

    parts = [correct[inside], correct[~inside]]
    shrink = 1.0
    if (numbers := several(groups)) is not None:
        middle = (correct.sum() + 2) / (len(correct) + 4)  # as if they were equal, and never 0 or 1
        residuals = (correct - middle) * np.where(inside, 1 / len(parts[0]), -1 / len(parts[1]))
        size = effective_sizes(residuals, np.zeros(len(correct), np.int64), 1, numbers)[0]
        shrink = float(size) / len(correct)
    # Rounded down, a hair above: 20.0 must not become 19 by the arithmetic.
    sizes = [max(int(shrink * len(part) + 1e-9), 1) for part in parts]
    hits = [round(float(part.mean()) * size) for part, size in zip(parts, sizes, strict=True)]
    return float(fisher_exact([[hit, size - hit] for hit, size in zip(hits, sizes, strict=True)]).pvalue)


def _parts(properties: pd.DataFrame) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    for column in properties:
        values = properties[column]
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            yield from _quarters(str(column), values.to_numpy(np.float64))
        else:
            texts = np.array([str(value) for value in values], object)
            names = sorted(set(texts))
            if 1 < len(names) <= _MOST_VALUES:
                yield from ((str(column), name, texts == name) for name in names)


def _quarters(column: str, values: NDArray[np.float64]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield up to four ranges of about as many photos; equal numbers stay together."""
    finite = np.isfinite(values)
    edges = np.unique(np.quantile(values[finite], np.linspace(0, 1, _QUARTERS + 1))) if finite.any() else np.zeros(0)
    if len(edges) < 2:
        return
    quarters = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    for index in range(len(edges) - 1):
        yield column, f"{edges[index]:.4g} to {edges[index + 1]:.4g}", finite & (quarters == index)
