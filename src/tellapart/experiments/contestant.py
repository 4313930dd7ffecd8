"""A finished run as it stands in a comparison: what it said of its photos. Knows nothing about the other runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.errors import RunError
from tellapart.files import read_json

_NEEDED = ("metrics.json", "environment.json", "manifest.csv", "predictions.csv")
_TEXT = ("path", "split", "label", "sha256", "error", "true_label", "predicted_label")


@dataclass(frozen=True)
class Contestant:
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


def open_contestant(folder: Path, name: str) -> Contestant:
    """Read what a finished run said of its photos; neither its model nor its photos are opened.

    Raises:
        RunError: it is no finished run, or its files are not of one run.
    """
    missing = [file for file in _NEEDED if not (folder / file).is_file()]
    if missing:
        hint = f" Finish it: tellapart train --resume {folder}." if (folder / "recipe.toml").is_file() else ""
        raise RunError(
            f"{folder} is not a finished run: it has no {missing[0]}. Expected a run folder made by tellapart train."
            + hint
        )
    manifest, table = _table(folder / "manifest.csv"), _table(folder / "predictions.csv")
    manifest = manifest[manifest["error"] == ""].reset_index(drop=True)
    columns = [column for column in map(str, table) if column.startswith("p:")]
    same = len(manifest) == len(table) and all(
        manifest[ours].tolist() == table[theirs].tolist()
        for ours, theirs in (("label", "true_label"), ("split", "split"))
    )
    if not same or not columns:
        raise RunError(
            f"{folder / 'predictions.csv'} does not speak of the photos in manifest.csv. Expected a row for each "
            "readable photo, in the same order: restore the run's own files, or train again."
        )
    probabilities = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    finite = np.isfinite(probabilities).all(axis=1)
    probabilities = np.where(finite[:, None], probabilities, 1 / len(columns))
    return Contestant(
        name=name,
        folder=folder,
        root=Path(read_json(folder / "environment.json").get("root", "")),
        classes=[column.removeprefix("p:") for column in columns],
        photos=manifest.assign(path=[json.loads(f'"{path}"') for path in manifest["path"]]),
        probabilities=probabilities / probabilities.sum(axis=1, keepdims=True),
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's, with as much of the path as tells it from the others."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name if names.index(name) == place else f"{name} (again)" for place, name in enumerate(names)]


def _table(path: Path) -> pd.DataFrame:
    """Read a table of a run folder; a class may be called NA, so nothing is taken for missing."""
    return pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, encoding_errors="surrogateescape")
