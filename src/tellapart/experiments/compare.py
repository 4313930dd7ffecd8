"""The story of a comparison: finished runs, judged on the photos that are new to all. Reads top to bottom."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.errors import InputError
from tellapart.evaluation.metrics import classification_metrics
from tellapart.evaluation.paired import differences, grouped_difference, grouped_mcnemar, holm
from tellapart.evaluation.slices import SMALLEST
from tellapart.experiments.comparison import MEASURES, Comparison, Flip, Measured, Pair, RunResult, SliceDifference
from tellapart.experiments.cost import Cost, cost_of, with_speed
from tellapart.experiments.finished_run import FinishedRun, names_of, open_finished_run
from tellapart.experiments.shared_test_set import count_on, refuse_other_classes, shared_groups, shared_photos
from tellapart.files import write_json
from tellapart.records import Interval, Progress, no_progress


def compare(
    runs: Sequence[str | os.PathLike[str]],
    *,
    against: str = "first",
    out: str | os.PathLike[str] | None = None,
    speed: bool = False,
    progress: Progress = no_progress,
) -> Comparison:
    """Say which of several finished runs is better, by how much, and whether chance explains it.

    Photos are matched by content, and only those count that no run was trained or validated on, so runs with different
    splits, or of data sets that overlap, can be compared. Neither models nor photos are needed, but for `speed` and for
    the pictures in the page. The result is about these networks: training again with another seed gives another one.

    Args:
        runs: two or more finished run folders.
        against: "first": each run with the first one; "all": each with every other.
        out: the folder for ``compare.json`` and ``compare.html``; None: nothing is written.
        speed: also open each model and measure its milliseconds per image.
        progress: called with (what, done, total).

    Raises:
        RunError: a folder is no finished run.
        InputError: fewer than two runs, other classes, or no photo that is new to all.

    Example:
        >>> print(tellapart.compare(["runs/before", "runs/after"]).pairs[0].verdict)
        after is better than before: +1.2 points (0.4 to 2.0), p = 0.004.
    """
    if len(runs) < 2:
        raise InputError(f"Expected two or more finished run folders to compare; got {len(runs)}.")
    if against not in ("first", "all"):
        raise InputError(f"against is {against!r}. Expected 'first' or 'all'.")
    folders = [Path(run) for run in runs]
    finished = [open_finished_run(*named_folder) for named_folder in zip(folders, names_of(folders), strict=True)]
    refuse_other_classes(finished)
    costs = [cost_of(folder) for folder in folders]
    if speed:
        shared_photos(finished)  # what cannot be compared is refused before models are opened
        costs = with_speed(folders, costs, progress)
    comparison = compare_finished_runs(finished, costs, against=against, progress=progress)
    if out is not None:
        write_comparison(Path(out), comparison, finished, progress=progress)
    return comparison


def write_comparison(
    out: Path, comparison: Comparison, runs: Sequence[FinishedRun], *, progress: Progress = no_progress
) -> None:
    """Write ``compare.json`` and ``compare.html``.

    Args:
        out: their folder.
        comparison: what was found.
        runs: those compared; the page shows photos that still lie where a run had them.
        progress: called with (what, done, total).
    """
    from tellapart.experiments.compare_page import write_page

    write_json(out / "compare.json", comparison.to_dict())
    write_page(out / "compare.html", comparison, _whereabouts(runs), progress=progress)


def compare_finished_runs(
    runs: Sequence[FinishedRun],
    costs: Sequence[Cost],
    *,
    against: str = "first",
    progress: Progress = no_progress,
) -> Comparison:
    """Hold against each other what some networks said: `compare`, for those that are no run folders too.

    Raises:
        InputError: other classes, or no photo that is new to all.
    """
    # Again: ensembles and the registry call this without `compare`.
    refuse_other_classes(runs)
    rows, relabelled = shared_photos(runs)

    # Each on the common photos
    classes, photos = runs[0].classes, runs[0].photos.iloc[rows[0]]
    # The first run's labels hold for all: photos whose label differs were left out.
    true = np.array([classes.index(label) for label in photos["label"]], np.int64)
    groups = shared_groups(runs, rows)
    predictions = [run.probabilities[at] for run, at in zip(runs, rows, strict=True)]
    results = tuple(
        RunResult(
            name=run.name,
            folder=str(run.folder),
            measures=_measures(true, probabilities, classes, groups),
            left_out=count_on(run, "test") - len(true),
            cost=cost,
        )
        for run, probabilities, cost in zip(runs, predictions, costs, strict=True)
    )

    # Two at a time
    index_pairs = list(itertools.combinations(range(len(runs)), 2))
    index_pairs = [(a, b) for a, b in index_pairs if against == "all" or a == 0]
    pairs = []
    for done, (a, b) in enumerate(index_pairs):
        progress("comparing", done, len(index_pairs))
        pairs.append(
            _pair((results[a], results[b]), (predictions[a], predictions[b]), true, photos, groups, classes=classes)
        )
    progress("comparing", len(index_pairs), len(index_pairs))
    num_groups = len(true) if groups is None else len(np.unique(groups))
    return Comparison(results, _corrected(pairs), len(true), num_groups, relabelled)


def _measures(
    true: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    classes: list[str],
    groups: NDArray[np.int64] | None,
) -> dict[str, Measured]:
    metrics = classification_metrics(true, probabilities, classes, groups)
    return {name: Measured(metrics[name], Interval(*metrics["intervals"][name])) for name in MEASURES}


def _pair(
    results: tuple[RunResult, RunResult],
    predictions: tuple[NDArray[np.float64], NDArray[np.float64]],
    true: NDArray[np.int64],
    photos: pd.DataFrame,
    groups: NDArray[np.int64] | None,
    *,
    classes: list[str],
) -> Pair:
    """Compare two runs; the p-values are corrected later, when all are known."""
    first, second = results
    predicted = [probabilities.argmax(axis=1) for probabilities in predictions]
    right = predicted[0] == true, predicted[1] == true
    intervals = differences(true, *predictions, groups)
    gained = {
        name: Measured(second.measures[name].value - first.measures[name].value, intervals[name]) for name in MEASURES
    }
    of_truth = [probabilities[np.arange(len(true)), true] for probabilities in predictions]
    # By how far apart the two put the true class: a photo that one is sure of comes before a near miss.
    largest_change_first = np.argsort(-np.abs(of_truth[1] - of_truth[0]), kind="stable")

    def flips(selected: NDArray[np.bool_]) -> tuple[Flip, ...]:
        return tuple(
            Flip(
                path=str(photos["path"].iloc[at]),
                sha256=str(photos["sha256"].iloc[at]),
                label=classes[true[at]],
                first_said=classes[predicted[0][at]],
                second_said=classes[predicted[1][at]],
            )
            for at in largest_change_first
            if selected[at]
        )

    only_first, only_second = flips(right[0] & ~right[1]), flips(right[1] & ~right[0])
    p_value = grouped_mcnemar(*right, groups)
    slices = tuple(_slice(part, right, groups) for part in _parts(photos) if part[2].sum() >= SMALLEST)
    return Pair(first.name, second.name, gained, only_first, only_second, p_value, p_value, slices)


def _slice(
    part: tuple[str, str, NDArray[np.bool_]],
    both: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    groups: NDArray[np.int64] | None,
) -> SliceDifference:
    column, value, inside = part
    right = both[0][inside], both[1][inside]
    slice_groups = None if groups is None else groups[inside]
    accuracies = float(right[0].mean()), float(right[1].mean())
    gained = Measured(accuracies[1] - accuracies[0], grouped_difference(*right, slice_groups))
    p_value = grouped_mcnemar(*right, slice_groups)
    return SliceDifference(column, value, int(inside.sum()), accuracies, gained, p_value, p_value)


def _parts(photos: pd.DataFrame) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield the photos of each class, then three ranges of size with about as many; equal sizes stay together."""
    labels = photos["label"].to_numpy(object)
    yield from (("class", str(name), labels == name) for name in sorted(set(labels)))
    short_sides = photos[["width", "height"]].min(axis=1).to_numpy(np.float64)
    # Rounded, so that the page shows whole pixels; where most photos have one size, fewer than three ranges are left.
    edges = np.unique(np.quantile(short_sides, (0, 1 / 3, 2 / 3, 1)).round())
    # A single range would be all photos again, and one more test to correct for.
    if len(edges) < 3:
        return
    # The largest size lies on the last edge and belongs to the last range.
    range_numbers = np.clip(np.searchsorted(edges, short_sides, side="right") - 1, 0, len(edges) - 2)
    for number in range(len(edges) - 1):
        last = number == len(edges) - 2
        yield "short side", f"{edges[number]:.0f} to {edges[number + 1] - (not last):.0f} px", range_numbers == number


def _corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Correct the p-values of all pairs together, and those of all their slices together."""
    # Two families: the question which run is better must not pay for the many questions about slices.
    of_pairs = holm(np.array([pair.p_value for pair in pairs]))
    of_slices = iter(holm(np.array([part.p_value for pair in pairs for part in pair.slices])))
    # `of_slices` is used up below in the order in which it was filled: pair by pair, slice by slice.
    return tuple(
        replace(
            pair,
            corrected_p_value=float(p_value),
            slices=tuple(replace(part, corrected_p_value=float(next(of_slices))) for part in pair.slices),
        )
        for pair, p_value in zip(pairs, of_pairs, strict=True)
    )


def _whereabouts(runs: Sequence[FinishedRun]) -> dict[str, list[Path]]:
    """Return where each test photo may lie, by SHA-256."""
    paths: dict[str, list[Path]] = {}
    for run in runs:
        # Nothing but test photos is compared, so no others can be shown.
        tested = run.photos[run.photos["split"] == "test"]
        for path, digest in zip(tested["path"], tested["sha256"], strict=True):
            paths.setdefault(digest, []).append(run.root / path)
    return paths
