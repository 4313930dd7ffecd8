"""A finished run as it stands in a comparison: what it said of its photos. Knows nothing about the other runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.errors import RunError
from tellapart.run_folder import RunFolder

# A registry keeps `registry._RUN_FILES` of each run: a file that is added here must be added there, or versions could
# not be compared any more.
_NEEDED = ("metrics.json", "environment.json", "manifest.csv", "predictions.csv")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        name: what it is called in the comparison.
        folder: the run folder.
        root: the folder that paths are relative to; the photos may be gone.
        classes: names in the order of the columns of `probabilities`.
        photos: a row for each readable photo: ``path``, ``label``, ``split``, ``sha256``, ``width``, ``height``.
        probabilities: (num_photos, num_classes) float64; rows that were not finite are even.
    """

    name: str
    folder: Path
    root: Path
    classes: list[str]
    photos: pd.DataFrame
    probabilities: NDArray[np.float64]


def open_finished_run(folder: Path, name: str) -> FinishedRun:
    """Read what a finished run said of its photos; neither its model nor its photos are opened.

    Raises:
        RunError: it is not a finished run, or its files are not of one run.
    """
    run = RunFolder(folder)
    missing = [file for file in _NEEDED if not (folder / file).is_file()]
    if missing:
        hint = f" Finish it: tellapart train --resume {folder}." if run.recipe_path.is_file() else ""
        raise RunError(
            f"{folder} is not a finished run: it has no {missing[0]}. Expected a run folder made by tellapart train."
            + hint
        )
    photos, classes, probabilities = run.predictions()
    return FinishedRun(
        name=name,
        folder=folder,
        root=run.root,
        classes=classes,
        photos=photos,
        probabilities=probabilities,
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's, with as much of the path as tells it from the others."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    longest = max(map(len, parts))
    # Two runs may be called alike in different folders: take as many folders above as tell them apart.
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name if names.index(name) == index else f"{name} (again)" for index, name in enumerate(names)]
