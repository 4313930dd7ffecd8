"""How accuracy falls with the quality of pictures: artificial corruption, and the quality that real photos have.

Knows nothing about networks: a predictor maps (num_images, image_px, image_px, 3) uint8 to probabilities.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.correctness import CorrectnessModel, learn_correctness
from tellapart.data.corrupt import CORRUPTIONS, corrupt
from tellapart.data.decode import decode_square, resize
from tellapart.data.image_file import read_file
from tellapart.data.quality import DIRECTIONS
from tellapart.errors import DecodeError
from tellapart.evaluation.intervals import several, share_interval, share_intervals, skewed_mean_interval
from tellapart.randomness import generator
from tellapart.records import Interval, Progress, no_progress
from tellapart.unknown import UnknownDetector

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
PredictorWithEmbedding = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTED_PX = 224
"""Pictures are corrupted at this size, for which the corruptions are defined, and then shrunk for the network."""
_BINS = 5
_NUM_DAMAGED = 300
"""Damaged photos, the same ones again where there are fewer, from which it is learned how likely answers are right;
more tell no more (docs/experiments.md)."""
_CLEAN_FOR_EACH_DAMAGED = 0.3
_AT_ONCE = 64


@dataclass(frozen=True)
class Robustness:
    """Accuracy on corrupted pictures.

    Attributes:
        runs: a row for each of 15 corruptions at 5 severities: ``corruption``, ``group``, ``severity``, ``accuracy``,
            ``low``, ``high``.
        num_images: in each run.
        clean_accuracy: of the same pictures as they are.
        mean_corruption_error: mean error over all runs (Hendrycks & Dietterich 2019, section 4.1, without division by
            another network's errors, for there is none that everybody trains on these photos).
        interval: of ``mean_corruption_error``, over pictures.
        relative: mean error over all runs less the error on clean pictures.
        relative_interval: of ``relative``, paired over pictures.
    """

    runs: pd.DataFrame
    num_images: int
    clean_accuracy: float
    mean_corruption_error: float
    interval: Interval
    relative: float
    relative_interval: Interval


def robustness(
    predict: Predictor,
    pictures: NDArray[np.uint8],
    true: NDArray[np.int64],
    image_px: int,
    groups: NDArray[np.int64] | None = None,
    *,
    progress: Progress = no_progress,
) -> Robustness:
    """Predict the pictures under all corruptions.

    Args:
        predict: the network.
        pictures: (num_images, px, px, 3) uint8, at `CORRUPTED_PX` or the network's size if that is larger.
        true: (num_images,) class numbers.
        image_px: side of the pictures that `predict` takes.
        groups: (num_images,) of the pictures; None: each stands for itself.
        progress: called with ("corrupting pictures", done, total).
    """
    clean = _correct(predict, _shrunk(pictures, image_px), true)
    wrong, rows, total = np.zeros(len(true)), [], len(CORRUPTIONS) * len(SEVERITIES)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        kinds = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
        # Threads damage the pictures of the next kind while the network predicts these.
        pending = [pool.submit(_corrupted, pictures[at], kinds[0], at, image_px) for at in range(len(true))]
        for number, (name, severity) in enumerate(kinds, start=1):
            corrupted = np.stack([part.result() for part in pending])
            if number < total:  # the next are made while these are predicted
                pending = [
                    pool.submit(_corrupted, pictures[at], kinds[number], at, image_px) for at in range(len(true))
                ]
            correct = _correct(predict, corrupted, true)
            wrong += ~correct
            interval = share_interval(correct, groups)
            rows.append((name, CORRUPTIONS[name], severity, float(correct.mean()), interval.low, interval.high))
            progress("corrupting pictures", number, total)
    mean_wrong = wrong / total
    columns = ["corruption", "group", "severity", "accuracy", "low", "high"]
    return Robustness(
        runs=pd.DataFrame(rows, columns=columns),
        num_images=len(true),
        clean_accuracy=float(clean.mean()),
        mean_corruption_error=float(mean_wrong.mean()),
        interval=skewed_mean_interval(mean_wrong, groups, bounds=(0.0, 1.0)),
        relative=float((mean_wrong - ~clean).mean()),
        relative_interval=skewed_mean_interval(mean_wrong - ~clean, groups, bounds=(-1.0, 1.0)),
    )


def learn_under_corruption(
    outputs: PredictorWithEmbedding,
    detector: UnknownDetector,
    photos: Sequence[Path],
    true: NDArray[np.int64],
    image_px: int,
    *,
    max_pixels: int,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    progress: Progress = no_progress,
) -> CorrectnessModel | None:
    """Learn how likely a network's answers are right, from photos as they are and damaged in many ways.

    Args:
        outputs: the network, from (num_images, image_px, image_px, 3) uint8 to probabilities and embeddings.
        detector: of unknown photos, which gives similarities.
        photos: files that the network did not learn from; those that cannot be read are left out.
        true: (num_photos,) numbers of their classes.
        image_px: side of the pictures that `outputs` takes.
        max_pixels: photos that declare more are left out.
        corruptions: names of `CORRUPTIONS`, each at five severities.
        progress: called with ("damaging photos", done, total).

    Returns:
        None where all answers are right, or none is.
    """
    kinds = [(name, severity) for name in corruptions for severity in SEVERITIES]
    rng = generator(0, "learn-under-corruption")
    # Photos are in the order of their classes: each kind of damage must meet all of them.
    positions = np.resize(rng.permutation(len(photos)), _NUM_DAMAGED)
    damage: list[tuple[str, int] | None] = [kinds[at] for at in rng.permutation(np.arange(_NUM_DAMAGED) % len(kinds))]
    num_clean = min(len(photos), round(_CLEAN_FOR_EACH_DAMAGED * _NUM_DAMAGED))
    positions, damage = np.concatenate([positions, positions[:num_clean]]), damage + [None] * num_clean
    large_px = max(CORRUPTED_PX, image_px)

    def picture(at: int) -> NDArray[np.uint8] | None:
        try:
            large = decode_square(read_file(photos[positions[at]]), large_px, max_pixels=max_pixels)
        except DecodeError:  # it was there when the run was trained
            return None
        kind = damage[at]
        return resize(large, image_px) if kind is None else _corrupted(large, kind, at, image_px)

    rows, kept = [], []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(positions), _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, len(positions)))
            made = [(at, square) for at, square in zip(numbers, pool.map(picture, numbers), strict=True)
                    if square is not None]  # fmt: skip
            if made:
                rows.append(outputs(np.stack([square for _, square in made])))
                kept += [at for at, _ in made]
            progress("damaging photos", numbers.stop, len(positions))
    if not rows:
        return None
    probabilities = np.concatenate([part for part, _ in rows]).astype(np.float64)
    embeddings = np.concatenate([part for _, part in rows])
    of_photos = positions[kept]
    return learn_correctness(
        probabilities,
        np.asarray(detector.similarity(embeddings), np.float64),
        np.asarray(probabilities.argmax(axis=1) == true[of_photos]),
        of_photos,
    )


@dataclass(frozen=True)
class QualityRange:
    """The quality of photos for which the measured accuracy holds.

    Attributes:
        limits: for each measure of `tellapart.data.quality`, (low, high); infinite where nothing limits it.
        bins: a row for each measure and range: ``measure``, ``low``, ``high``, ``num_images``, ``accuracy``,
            ``accuracy_low`` and ``accuracy_high`` (its interval), ``inside`` (whether it belongs to the range).
        accuracy: of all photos.
    """

    limits: Mapping[str, tuple[float, float]]
    bins: pd.DataFrame
    accuracy: float

    def outside(self, quality: Mapping[str, float]) -> list[str]:
        """Return the measures for which a photo is worse than what was measured."""
        return [name for name, (low, high) in self.limits.items() if not low <= quality[name] <= high]


def find_quality_range(
    qualities: pd.DataFrame, correct: NDArray[np.bool_], groups: NDArray[np.int64] | None = None
) -> QualityRange:
    """Find out how good photos must be for the accuracy to hold.

    For each measure the photos are cut into ranges of equal number. From each bad end inwards, ranges are left out
    whose accuracy is below that of all of them by more than its interval explains. Beyond the worst photo that
    was looked at (the most extreme hundredth left aside) nothing is known, so the range ends there too.

    Args:
        qualities: a row per photo, a column per measure of `Quality`; rows with NaN are left out, and where there are
            no others nothing is limited.
        correct: (num_images,) whether the photo was classified correctly.
        groups: (num_images,) of the photos; None: each stands for itself.
    """
    overall, rows = float(correct.mean()), []
    limits = dict.fromkeys(DIRECTIONS, (-np.inf, np.inf))
    known = qualities.notna().all(axis=1).to_numpy()
    qualities, correct = qualities[known], correct[known]
    groups = several(None if groups is None else groups[known])
    for measure, bad in DIRECTIONS.items() if known.any() else ():
        values = qualities[measure].to_numpy(np.float64)
        # Equal numbers stay together: a measure that most photos share has fewer ranges.
        edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)))
        bin_numbers = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
        counts = [int((bin_numbers == index).sum()) for index in range(max(len(edges) - 1, 1))]
        hits = [int(correct[bin_numbers == index].sum()) for index in range(len(counts))]
        ends = share_intervals(correct, bin_numbers, len(counts), groups)
        inside = [end.high >= correct.mean() for end in ends]
        # From a bad end inwards only: a range in the middle that happens to be worse stays inside.
        first = next((index for index, good in enumerate(inside) if good), 0) if bad != "high" else 0
        last = next((index for index in reversed(range(len(inside))) if inside[index]), 0) if bad != "low" else None
        stop = len(inside) - 1 if last is None else last
        observed = np.quantile(values, (0.01, 0.99))
        low = max(float(edges[first]), float(observed[0])) if bad != "high" else -np.inf
        high = min(float(edges[min(stop + 1, len(edges) - 1)]), float(observed[1])) if bad != "low" else np.inf
        limits[measure] = (low, high)
        for index, (count, hit, end) in enumerate(zip(counts, hits, ends, strict=True)):
            is_inside = first <= index <= stop
            top = float(edges[min(index + 1, len(edges) - 1)])
            share = hit / count if count else np.nan
            rows.append((measure, float(edges[index]), top, count, share, end.low, end.high, is_inside))
    columns = ["measure", "low", "high", "num_images", "accuracy", "accuracy_low", "accuracy_high", "inside"]
    return QualityRange(limits, pd.DataFrame(rows, columns=columns), overall)


def _corrupted(picture: NDArray[np.uint8], kind: tuple[str, int], at: int, image_px: int) -> NDArray[np.uint8]:
    name, severity = kind
    # The same damage for every network, so that networks are compared on the same pictures.
    return resize(corrupt(picture, name, severity, generator(0, "corrupt", name, severity, at)), image_px)


def _shrunk(pictures: NDArray[np.uint8], image_px: int) -> NDArray[np.uint8]:
    return np.stack([resize(picture, image_px) for picture in pictures])


def _correct(predict: Predictor, pictures: NDArray[np.uint8], true: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(predict(pictures).argmax(axis=1) == true)
