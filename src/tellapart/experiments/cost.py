"""What a finished run costs: training, parameters, bytes, time per image. Knows nothing about how good it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.records import Progress, no_progress
from tellapart.run_folder import RunFolder

BATCH_SIZES = (1, 32)
"""Pictures in one call, for which speed is measured."""
_ROUNDS = 15
_WARM_UP = 3
_PICTURE_PX = 224


@dataclass(frozen=True)
class Cost:
    """What one run took and what its model takes. None: the run folder does not say.

    Attributes:
        seconds_training: of the epochs alone.
        seconds_total: with scanning, decoding and measuring.
        images_per_second: in training.
        parameters: numbers in the network, BatchNorm's statistics among them.
        model_bytes: of ``model.keras``.
        image_px: side of the pictures that the network sees.
        precision: that it was trained in.
        ms_per_image: by pictures in one call; None where speed was not measured.
    """

    seconds_training: float | None
    seconds_total: float | None
    images_per_second: float | None
    parameters: int | None
    model_bytes: int | None
    image_px: int | None
    precision: str | None
    ms_per_image: dict[int, float] | None = None


def cost_of(run: Path) -> Cost:
    """Return what the files of a finished run say of its cost."""
    folder = RunFolder(run)
    metrics, model = folder.metrics(), folder.model_path
    return Cost(
        seconds_training=metrics.get("seconds_training"),
        seconds_total=metrics.get("seconds_total"),
        images_per_second=metrics.get("images_per_second"),
        parameters=_parameters(folder.best_weights),
        model_bytes=model.stat().st_size if model.is_file() else None,
        image_px=folder.recipe().data.image_px if folder.recipe_path.is_file() else None,
        precision=folder.record().precision or None,
    )


def _parameters(weights: Path) -> int | None:
    if not weights.is_file():
        return None
    with np.load(weights) as archive:
        # By the names that `training.checkpoint` gives: the optimiser's variables are no part of the network.
        return sum(int(archive[name].size) for name in archive.files if name.startswith("weights/"))


def with_speed(runs: Sequence[Path], costs: Sequence[Cost], progress: Progress = no_progress) -> list[Cost]:
    """Open each run's model and measure the median time of `predict`; the runs take turns.

    The time is that of one call from pictures in memory to answers, resizing among it, on this machine with Keras. A
    bundle is faster: `tellapart benchmark` measures it.

    Args:
        runs: the run folders.
        costs: what is known of them so far.
        progress: called with ("measuring", done, total).

    Raises:
        RunError: a run has no model.
    """
    from tellapart.evaluation.predict import load  # Keras: seconds to import, and only here

    # All are opened before the first is timed, for they take turns below.
    classifiers = [load(run) for run in runs]
    # Noise: what is on a picture does not change how long a network takes.
    pictures = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES), _PICTURE_PX, _PICTURE_PX, 3), np.uint8)
    laps: list[dict[int, list[float]]] = [{count: [] for count in BATCH_SIZES} for _ in runs]
    for done in range(_WARM_UP + _ROUNDS):
        progress("measuring", done, _WARM_UP + _ROUNDS)
        # In turns: whatever else the machine does slows all runs alike. The first laps compile and fill caches, and
        # do not count.
        for classifier, lap_times in zip(classifiers, laps, strict=True):
            for count in BATCH_SIZES:
                lap_times[count].append(_seconds(classifier, list(pictures[:count])))
    progress("measuring", _WARM_UP + _ROUNDS, _WARM_UP + _ROUNDS)
    return [
        replace(
            cost,
            parameters=int(classifier.model.count_params()),
            image_px=classifier.image_px,
            ms_per_image={count: 1000 * float(np.median(lap_times[count][_WARM_UP:])) / count for count in BATCH_SIZES},
        )
        for cost, classifier, lap_times in zip(costs, classifiers, laps, strict=True)
    ]


def _seconds(classifier: Any, pictures: list[Any]) -> float:
    start = time.perf_counter()
    classifier.predict(pictures)
    return time.perf_counter() - start
