"""The main job, top to bottom: photos become a run folder. Knows nothing about the command line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tellapart.data.cache import open_pictures
from tellapart.data.duplicates import near_duplicates, units
from tellapart.data.health import examine, to_json
from tellapart.data.scan import find_photos, scan
from tellapart.data.split import split
from tellapart.errors import InputError, RunError
from tellapart.evaluation.measure import measure
from tellapart.files import read_json, write_json, write_text
from tellapart.records import SPLITS, Manifest, Progress, no_progress
from tellapart.settings import Recipe, load_recipe, save_recipe
from tellapart.training.callbacks import Announce, write_log
from tellapart.training.checkpoint import load_weights
from tellapart.training.environment import data_hash, environment, peak_memory_mb
from tellapart.training.schedule import Segment
from tellapart.training.train import Photos, Replay, train_network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        metrics: the contents of ``metrics.json``.
    """

    path: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Reproduction:
    """How a run compares with the same run done again.

    Attributes:
        run: the new run.
        same_weights: every weight has the same bits.
        largest_difference: between two corresponding weights.
        accuracies: test accuracy of the old and the new run; NaN without test photos.
        changed: what differs in packages, processor or commit.
    """

    run: Run
    same_weights: bool
    largest_difference: float
    accuracies: tuple[float, float]
    changed: tuple[str, ...]


def default_cache() -> Path:
    """Return the folder for decoded pictures where none is named."""
    return Path.home() / ".cache" / "tellapart"


def train(
    photos: str | os.PathLike[str] | None = None,
    *,
    recipe: Recipe | str | Path | None = None,
    changes: Sequence[str] = (),
    time_budget: float | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    split_from: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    started: float | None = None,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
) -> Run:
    """Train a classifier on photos and measure it.

    Args:
        photos: a folder per class, train/val/test folders of those, or a table; not needed with `resume`.
        recipe: a `Recipe`, a TOML file or the name of one; None: "fast" with a `time_budget`, else
            "reference".
        changes: settings as "section.key=value".
        time_budget: seconds from `started` to the finished run; the number of epochs is fitted to it.
        out: the new run folder; None: ``runs/NAME-DATE``.
        resume: an interrupted run folder to go on with; its own recipe counts.
        split_from: an earlier run; photos it knows keep their side.
        cache: the folder for decoded pictures; None: the user's cache folder.
        started: when the time began to count, by `time.time`; None: now.
        progress: called often with (what, done, total).
        announce: called with single lines that say what comes next.

    Returns:
        The finished run.

    Raises:
        InputError: the photos or the recipe cannot be used.
        RunError: `out` is not empty, or `resume` is no run.
        TrainingStoppedError: the loss is no longer finite.

    Example:
        >>> run = tellapart.train("photos", time_budget=600)
        >>> run.metrics["test"]["accuracy"]
    """
    started = time.time() if started is None else started
    if resume is not None:
        folder, order = _reopen(Path(resume), photos)
    else:
        if photos is None:
            raise InputError("No photos were given. Expected a folder of photos, or a run to resume.")
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe or ("fast" if time_budget else None), changes)
        find_photos(Path(photos))  # a wrong folder is found out before a run folder exists
        folder = _new_folder(out, Path(photos))
        order = {
            "photos": os.path.abspath(photos),
            "time_budget": time_budget,
            "split_from": None if split_from is None else os.path.abspath(split_from),
        }
        _begin(folder, recipe, order)
    return _carry_out(folder, order, cache, started, progress, announce)


def reproduce(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = no_progress,
    announce: Announce = logger.info,
) -> Reproduction:
    """Train again from a run's own record and compare the weights.

    The photos must be where they were, with the same contents. The new run takes the old one's recipe,
    split, precision and segments.

    Args:
        run: a finished run folder.
        out: the new run folder; None: the old one's name with "-again".
        cache: the folder for decoded pictures; None: the user's cache folder.
        progress: called often with (what, done, total).
        announce: called with single lines that say what comes next.

    Raises:
        RunError: `run` is not a finished run.
        InputError: a photo that is not in the cache has changed or vanished.
    """
    old = Path(run)
    if not (old / "metrics.json").is_file():
        raise RunError(f"{old} is not a finished run. Finish it first: tellapart train --resume {old}.")
    record = read_json(old / "environment.json")
    recipe = load_recipe(old / "recipe.toml")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": record["precision"]})})
    folder = _new_folder(out or f"{old}-again", old)
    order = {
        "photos": record["order"]["photos"], "time_budget": None, "split_from": None,
        "replay": os.path.abspath(old),
    }  # fmt: skip
    _begin(folder, recipe, order)
    manifest = _read_manifest(old)
    write_json(
        folder / "environment.json",
        read_json(folder / "environment.json") | {name: record[name] for name in ("root", "classes", "num_photos")}
        | {"data_sha256": data_hash(manifest[manifest["error"] == ""])},
    )  # fmt: skip
    _write_manifest(folder, manifest)
    write_json(folder / "health.json", read_json(old / "health.json"))
    again = _carry_out(folder, order, cache, time.time(), progress, announce)
    return _compare(old, again, record)


def _carry_out(
    folder: Path, order: dict[str, Any], cache: str | os.PathLike[str] | None, started: float,
    progress: Progress, announce: Announce,
) -> Run:  # fmt: skip
    """Do what is not done yet: each stage leaves a file that says so."""
    if (folder / "metrics.json").exists():
        announce(f"{folder} is already finished.")
        return Run(folder, read_json(folder / "metrics.json"))
    recipe = load_recipe(folder / "recipe.toml")
    announce(f"Run folder: {folder}")

    # Photos
    if not (folder / "manifest.csv").exists():
        _prepare(folder, recipe, order, progress, announce)
    manifest = _read_manifest(folder)
    root = Path(read_json(folder / "environment.json")["root"])
    frame = manifest[manifest["error"] == ""].reset_index(drop=True)
    classes = sorted(manifest["label"].unique().tolist())
    sizes = recipe.data.image_px, recipe.train.source_px or recipe.data.image_px
    pictures, sources = (
        open_pictures(
            [root / path for path in frame["path"]],
            frame["sha256"].tolist(),
            image_px,
            folder=Path(cache) if cache is not None else default_cache(),
            limit_bytes=int(recipe.data.cache_limit_gb * 1e9),
            max_pixels=recipe.data.max_pixels,
            progress=progress,
        )
        for image_px in sizes
    )

    # Training
    spent = _seconds_spent(folder)
    budget = order.get("time_budget")
    replayed = order.get("replay")
    cached = pictures.num_cached
    with pictures, sources:
        training = train_network(
            folder,
            recipe,
            Photos(pictures, sources, frame, classes),
            deadline=started - spent + budget if budget else None,
            replay=_plan_of(Path(replayed)) if replayed else None,
            progress=progress,
            announce=announce,
        )

        # Measurement
        metrics = measure(folder, pictures, frame, classes, progress=progress)
    record = read_json(folder / "environment.json")
    record |= {
        "precision": training.precision.name,
        "precision_why": training.precision.reason,
        "precision_ms_per_image": training.precision.milliseconds_per_image,
        "segments": [segment.to_dict() for segment in training.plan.segments],
        "planned_steps": training.plan.steps,
        "cached_photos": cached,
    }
    write_json(folder / "environment.json", record)
    metrics |= {
        "best_epoch": training.best_epoch,
        "seconds_training": training.seconds,
        "seconds_total": time.time() - started + spent,
        "images_per_second": training.images_per_second,
        "peak_memory_mb": peak_memory_mb(),
    }
    write_json(folder / "metrics.json", metrics)
    write_log(folder, "finished", seconds_total=metrics["seconds_total"])
    return Run(folder, metrics)


def _prepare(folder: Path, recipe: Recipe, order: dict[str, Any], progress: Progress, announce: Announce) -> None:
    """Scan, check and split the photos; ``manifest.csv`` comes last, as the sign that all is done."""
    manifest = scan(order["photos"], max_pixels=recipe.data.max_pixels, progress=progress)
    pairs = near_duplicates(manifest)
    health = examine(manifest, pairs, seed=recipe.data.split_seed, progress=progress)
    write_json(folder / "health.json", to_json(health))
    serious = [finding for finding in health.findings if finding.severity != "note"]
    for finding in serious:
        announce(f"{finding.severity}: {finding.kind}: {finding.message.split('. ')[0]}.")
    if serious:
        announce(
            f"What follows, and how to mend it: tellapart check {order['photos']}, or health.json in the run folder."
        )
    earlier = _sides_of(Path(order["split_from"])) if order.get("split_from") else None
    sides = split(
        manifest,
        units(manifest, pairs),
        shares=recipe.data.split,
        seed=recipe.data.split_seed,
        earlier=earlier,
    )
    manifest = replace(manifest, frame=manifest.frame.assign(split=sides))
    _refuse_unusable(manifest)
    record = read_json(folder / "environment.json")
    record |= {
        "root": str(manifest.root),
        "classes": manifest.classes,
        "num_photos": len(manifest.readable),
        "data_sha256": data_hash(manifest.readable),
    }
    write_json(folder / "environment.json", record)
    counts = manifest.readable["split"].value_counts()
    announce("Split: " + ", ".join(f"{counts.get(side, 0):,} {side}" for side in SPLITS) + ".")
    _write_manifest(folder, manifest.frame)


def _refuse_unusable(manifest: Manifest) -> None:
    readable = manifest.readable
    if len(manifest.classes) < 2:
        raise InputError(
            f"{manifest.root} has only the class {manifest.classes[0]!r}. Expected at least two classes to tell apart."
        )
    empty = sorted(set(manifest.classes) - set(readable["label"][readable["split"] == "train"]))
    if empty:
        raise InputError(
            f"Class {empty[0]!r} has no readable photo to train on"
            + (f" (and {len(empty) - 1} more classes)" if len(empty) > 1 else "")
            + ". Add photos, or take the class out. tellapart check says more."
        )


def _begin(folder: Path, recipe: Recipe, order: dict[str, Any]) -> None:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, folder / "recipe.toml")
    record = {"order": order, "seed": recipe.train.seed, **environment()}
    write_json(folder / "environment.json", record)
    write_log(folder, "started", **order)


def _new_folder(out: str | os.PathLike[str] | None, photos: Path) -> Path:
    if out is None:
        name = f"{photos.resolve().stem or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
        return Path("runs") / name
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        hint = f" To go on with it: --resume {folder}." if (folder / "recipe.toml").exists() else ""
        raise RunError(f"{folder} already exists and is not empty. Name a new folder.{hint}")
    return folder


def _reopen(folder: Path, photos: str | os.PathLike[str] | None) -> tuple[Path, dict[str, Any]]:
    if not (folder / "recipe.toml").is_file() or not (folder / "environment.json").is_file():
        raise RunError(f"{folder} is not a run folder (no recipe.toml). Expected one made by tellapart train.")
    record = read_json(folder / "environment.json")
    if photos is not None:  # they have moved
        record["order"]["photos"] = os.path.abspath(photos)
        if "root" in record:
            record["root"] = str(find_photos(Path(photos))[0])
        write_json(folder / "environment.json", record)
    return folder, record["order"]


def _seconds_spent(folder: Path) -> float:
    """Return the seconds that earlier, interrupted tries trained for; 0 for a new run."""
    path = folder / "checkpoints" / "last.npz"
    return float(load_weights(path)[1].get("seconds_training", 0.0)) if path.exists() else 0.0


def _plan_of(run: Path) -> Replay:
    record = read_json(run / "environment.json")
    return Replay(tuple(Segment.from_dict(values) for values in record["segments"]), record["planned_steps"])


def _sides_of(run: Path) -> dict[str, str]:
    manifest = _read_manifest(run)
    known = manifest[manifest["split"] != ""]
    return dict(zip(known["sha256"], known["split"], strict=True))


def _write_manifest(folder: Path, frame: pd.DataFrame) -> None:
    """Escape names as JSON does where a line of a table could not hold them."""
    plain = frame.assign(path=[json.dumps(path)[1:-1] for path in frame["path"]])
    write_text(folder / "manifest.csv", plain.to_csv(index=False))


def _read_manifest(run: Path) -> pd.DataFrame:
    if not (run / "manifest.csv").is_file():
        raise RunError(f"{run} has no manifest.csv. Expected a run folder made by tellapart train.")
    text = dict.fromkeys(("path", "label", "split", "group", "sha256", "extension", "format", "mode", "error"), str)
    frame = pd.read_csv(run / "manifest.csv", dtype=text, keep_default_na=False)
    return frame.assign(path=[json.loads(f'"{path}"') for path in frame["path"]])


def _compare(old: Path, again: Run, record: dict[str, Any]) -> Reproduction:
    before, _ = load_weights(old / "checkpoints" / "best.npz")
    after, _ = load_weights(again.path / "checkpoints" / "best.npz")
    differences = [float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(before, after, strict=True)]
    now = read_json(again.path / "environment.json")
    keys = ("python", "backend", "processor", "cpu_count", "commit", "data_sha256")
    changed = [f"{key}: {record.get(key)} → {now.get(key)}" for key in keys if record.get(key) != now.get(key)]
    for name in sorted(set(record["packages"]) | set(now["packages"])):
        versions = record["packages"].get(name), now["packages"].get(name)
        if versions[0] != versions[1]:
            changed.append(f"{name}: {versions[0]} → {versions[1]}")
    accuracy = [
        metrics.get("test", {}).get("accuracy", float("nan"))
        for metrics in (read_json(old / "metrics.json"), again.metrics)
    ]
    return Reproduction(again, max(differences) == 0.0, max(differences), (accuracy[0], accuracy[1]), tuple(changed))
