"""A run folder: how it begins, is found again, and what it says of its run. Knows nothing about how runs are made."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from tellapart.data.scan import find_photos
from tellapart.errors import RunError
from tellapart.files import read_json, write_json, write_text
from tellapart.settings import Recipe, save_recipe
from tellapart.tables import csv_text, read_csv
from tellapart.training.callbacks import write_log
from tellapart.training.checkpoint import load_weights
from tellapart.training.environment import environment
from tellapart.training.planning import TrainingPlan
from tellapart.training.schedule import Segment


def new_folder(out: str | os.PathLike[str] | None, photos: Path) -> Path:
    """Return the folder of a new run: `out`, or one named after the photos and the time.

    Raises:
        RunError: `out` holds something.
    """
    if out is None:
        name = f"{photos.resolve().stem or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
        return Path("runs") / name
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        hint = f" To go on with it: --resume {folder}." if (folder / "recipe.toml").exists() else ""
        raise RunError(f"{folder} already exists and is not empty. Name a new folder.{hint}")
    return folder


def begin(folder: Path, recipe: Recipe, order: dict[str, Any]) -> None:
    """Make the folder with the recipe, the environment and the order, that is what was asked for."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, folder / "recipe.toml")
    record = {"order": order, "seed": recipe.train.seed, **environment()}
    write_json(folder / "environment.json", record)
    write_log(folder, "started", **order)


def reopen(folder: Path, photos: str | os.PathLike[str] | None) -> tuple[Path, dict[str, Any]]:
    """Return an interrupted run's folder and its order; `photos` names where they are now, if they have moved.

    Raises:
        RunError: it is no run folder, or an ensemble.
    """
    if not (folder / "recipe.toml").is_file() or not (folder / "environment.json").is_file():
        raise RunError(f"{folder} is not a run folder (no recipe.toml). Expected one made by tellapart train.")
    record = read_json(folder / "environment.json")
    refuse_ensemble(folder, record)
    if photos is not None:  # they have moved
        record["order"]["photos"] = os.path.abspath(photos)
        if "root" in record:
            record["root"] = str(find_photos(Path(photos))[0])
        write_json(folder / "environment.json", record)
    return folder, record["order"]


def refuse_ensemble(run: Path, record: dict[str, Any]) -> None:
    """Refuse a run folder that was joined, not trained.

    Args:
        run: the folder.
        record: its ``environment.json``.

    Raises:
        RunError: it is an ensemble.
    """
    if members := record["order"].get("ensemble"):
        raise RunError(
            f"{run} is an ensemble of {', '.join(members)}: it was not trained itself. Train or reproduce those runs, "
            "and join them again with tellapart ensemble."
        )


def copy_from(folder: Path, prepared: Path) -> None:
    """Give a run that begins the table of photos, the split and the health of another run; the table comes last.

    Raises:
        RunError: `prepared` has none.
    """
    frame, known = read_manifest(prepared), read_json(prepared / "environment.json")
    if (prepared / "health.json").is_file():
        write_json(folder / "health.json", read_json(prepared / "health.json"))
    about_photos = {name: known[name] for name in ("root", "classes", "num_photos", "data_sha256")}
    write_json(folder / "environment.json", read_json(folder / "environment.json") | about_photos)
    write_manifest(folder, frame)


def seconds_spent(folder: Path) -> float:
    """Return the seconds that earlier, interrupted tries trained for; 0 for a new run."""
    path = folder / "checkpoints" / "last.npz"
    return float(load_weights(path)[1].get("seconds_training", 0.0)) if path.exists() else 0.0


def plan_of(run: Path) -> TrainingPlan:
    """Return what a finished run did, for another to do the same."""
    record = read_json(run / "environment.json")
    return TrainingPlan(tuple(Segment.from_dict(values) for values in record["segments"]), record["planned_steps"])


def splits_of(run: Path) -> dict[str, str]:
    """Return the side of the split of each photo that a run knows, by SHA-256."""
    manifest = read_manifest(run)
    known = manifest[manifest["split"] != ""]
    return dict(zip(known["sha256"], known["split"], strict=True))


def write_manifest(folder: Path, frame: pd.DataFrame) -> None:
    """Write ``manifest.csv``; names are escaped as JSON does where a line of a table could not hold them."""
    escaped = pd.Series([json.dumps(path)[1:-1] for path in frame["path"]], frame.index, dtype=object)
    write_text(folder / "manifest.csv", csv_text(frame.assign(path=escaped)))


def read_manifest(run: Path) -> pd.DataFrame:
    """Read what `write_manifest` wrote.

    Raises:
        RunError: there is none.
    """
    if not (run / "manifest.csv").is_file():
        raise RunError(f"{run} has no manifest.csv. Expected a run folder made by tellapart train.")
    text = ("path", "label", "split", "group", "sha256", "extension", "format", "mode", "error")
    frame = read_csv(run / "manifest.csv", text)
    return frame.assign(path=pd.Series([json.loads(f'"{path}"') for path in frame["path"]], frame.index, dtype=object))
