"""Photos become a table with a split, and pictures: what every run begins with. Knows nothing about networks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tellapart.data.cache import default_cache, open_rows
from tellapart.data.duplicates import near_duplicates, units
from tellapart.data.health import examine, to_json
from tellapart.data.scan import find_photos, scan
from tellapart.data.split import split
from tellapart.errors import InputError
from tellapart.evaluation.predictions import refuse_leak, teacher_for
from tellapart.files import write_json
from tellapart.records import SPLITS, Manifest, Observer, Progress
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.settings import Machine, Recipe
from tellapart.training.environment import data_hash, environment
from tellapart.training.inputs import Photos


def prepared_folder(photos: str | os.PathLike[str], folder: Path, recipe: Recipe, observer: Observer) -> Path:
    """Scan, check and split photos once, for many runs with the same ``data.split`` to begin from.

    Args:
        photos: as `train` takes them.
        folder: where the table goes; where it lies already, nothing is done.
        recipe: only its section ``data`` counts.
        observer: whom to tell, also what is wrong with the photos.

    Returns:
        `folder`.
    """
    run = RunFolder(folder)
    if not run.has_photos:
        find_photos(Path(photos))
        run.create(recipe, RunRequest(photos=os.path.abspath(photos)), environment())
        prepare(run, recipe, observer)
    return folder


def prepare(folder: RunFolder, recipe: Recipe, observer: Observer, cache: Path | None = None) -> None:
    """Scan, check and split the photos of a folder that was created; ``manifest.csv`` comes last: then all is done.

    Args:
        folder: of the run.
        recipe: only its section ``data`` counts.
        observer: whom to tell, also what is wrong with the photos.
        cache: the folder for caches, so that photos which were seen before are not read; None: all are.
    """
    record = folder.record()
    request = record.request
    manifest = scan(
        request.photos,
        max_pixels=recipe.data.max_pixels,
        share=(record.time_plan or {}).get("share", 1.0),
        seed=recipe.data.split_seed,
        cache=cache,
        progress=observer.progress,
    )
    # Near copies first: the split keeps them together, and the checks report them.
    pairs = near_duplicates(manifest)
    health = examine(manifest, pairs, seed=recipe.data.split_seed, progress=observer.progress)
    write_json(folder.health_path, to_json(health))
    serious = [finding for finding in health.findings if finding.severity != "note"]
    for finding in serious:
        observer.announce(f"{finding.severity}: {finding.kind}: {finding.message.split('. ')[0]}.")
    if serious:
        observer.announce(
            f"What follows, and how to fix it: tellapart check {request.photos}, or health.json in the run folder."
        )
    earlier = RunFolder(Path(request.split_from)).splits() if request.split_from else None
    groups = units(manifest, pairs)
    splits = split(manifest, groups, shares=recipe.data.split, seed=recipe.data.split_seed, earlier=earlier)
    manifest = replace(manifest, frame=manifest.frame.assign(split=splits, unit=groups))
    # Before the manifest is written: a refused run must not look like one whose photos are ready.
    _refuse_unusable(manifest)
    folder.update_record(
        root=str(manifest.root),
        classes=manifest.classes,
        num_photos=len(manifest.readable),
        data_sha256=data_hash(manifest.readable),
    )
    counts = manifest.readable["split"].value_counts()
    observer.announce("Split: " + ", ".join(f"{counts.get(name, 0):,} {name}" for name in SPLITS) + ".")
    # Last: where the manifest stands, a resumed run scans and splits nothing again.
    folder.write_manifest(manifest.frame)


def open_photos(
    folder: RunFolder,
    recipe: Recipe,
    cache: str | os.PathLike[str] | None,
    progress: Progress,
    machine: Machine,
    *,
    ahead: bool = False,
) -> Photos:
    """Open the readable photos of the manifest, decoding what the cache lacks; `ahead`: while the caller goes on."""
    manifest = folder.manifest()
    frame = manifest[manifest["error"] == ""].reset_index(drop=True)
    cache_folder = Path(cache) if cache is not None else default_cache()
    # The order of the network's outputs must be that of the record's classes, which `Manifest.classes` has sorted so.
    classes = sorted(manifest["label"].unique().tolist())
    # Here and not when the run began: only now the split is known that its weights must not have seen. Once training
    # has begun the earlier run is not needed any more, and may be gone.
    origin = folder.record().request.begin_from
    if origin and not folder.last_checkpoint.is_file():
        refuse_leak(Path(origin), frame, "run to begin from")
    teacher = teacher_for(Path(recipe.distill.teacher), frame, classes) if recipe.distill.teacher else None
    # After all that may refuse the photos: nobody would close what has begun to decode ahead.
    pictures, sources = (
        open_rows(
            folder.root,
            frame,
            image_px,
            folder=cache_folder,
            limit_bytes=machine.cache_limit_bytes,
            max_pixels=recipe.data.max_pixels,
            progress=progress,
            ahead=ahead,
        )
        # What the network sees, and what training crops from.
        for image_px in (recipe.data.image_px, recipe.train.source_px or recipe.data.image_px)
    )
    features_cache = cache_folder if machine.cache_limit_gb else None
    return Photos(pictures, sources, frame, classes, teacher, machine.workers, features_cache)


def refuse_one_class(root: Path, classes: Sequence[str]) -> None:
    """Refuse photos with nothing to tell apart.

    Raises:
        InputError: there is one class.
    """
    if len(classes) < 2:
        raise InputError(f"{root} has only the class {classes[0]!r}. Expected at least two classes to tell apart.")


def _refuse_unusable(manifest: Manifest) -> None:
    readable = manifest.readable
    refuse_one_class(manifest.root, manifest.classes)
    empty = sorted(set(manifest.classes) - set(readable["label"][readable["split"] == "train"]))
    if empty:
        raise InputError(
            f"Class {empty[0]!r} has no readable photo to train on"
            + (f" (and {len(empty) - 1} more classes)" if len(empty) > 1 else "")
            + ". Add photos, or take the class out. tellapart check says more."
        )
