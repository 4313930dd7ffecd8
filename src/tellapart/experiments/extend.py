"""New photos, or new classes, join a finished run: what it knows already is not learned again.

The photos of both become one table; those of the earlier run keep their split. A head on pretrained features is fitted
again in seconds, for the features of old photos are in the cache; other networks begin with the earlier run's weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tellapart.data.scan import find_photos
from tellapart.errors import RunError
from tellapart.evaluation.paired import grouped_difference, grouped_mcnemar
from tellapart.files import write_json, write_text
from tellapart.records import Interval
from tellapart.run_folder import RunFolder, RunRequest, new_folder
from tellapart.settings import Recipe


@dataclass(frozen=True)
class Extension:
    """What joining new photos did to what the earlier run could do, on its own test photos.

    Attributes:
        new_classes: that it did not know.
        num_photos: photos in all, readable ones.
        num_new: of them, those that it did not know.
        num_test: its test photos, which are test photos still.
        before: share of them that the earlier run names rightly.
        after: share that the new one does.
        interval: of the difference, paired by photo.
        p_value: of no difference (exact, photos of a group counting together).
    """

    new_classes: tuple[str, ...]
    num_photos: int
    num_new: int
    num_test: int
    before: float
    after: float
    interval: Interval
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return vars(self) | {"interval": [self.interval.low, self.interval.high], "new_classes": list(self.new_classes)}


def extended_photos(new: Path, run: RunFolder, out: str | os.PathLike[str] | None) -> tuple[Path, Path]:
    """Write a table of an earlier run's photos and of new ones, beside the folder of the run that is to learn them.

    Args:
        new: as `train` takes photos.
        run: finished; its photos must still be where they were.
        out: the folder of the new run; None: ``runs/NAME-DATE``.

    Returns:
        The table, and the folder of the new run, which is not made yet.

    Raises:
        InputError: there are no new photos.
        RunError: the run is not finished, its photos are gone, or `out` is not empty.
    """
    if not run.is_finished:
        raise RunError(f"{run.path} is not a finished run. Expected one made by tellapart train, to be extended.")
    root, files, _ = find_photos(new)
    old = run.readable()
    # All of them, before anything is written: a run that finds a photo missing after an hour is worth less than this
    # look.
    missing = [path for path in old["path"] if not (run.root / path).is_file()]
    if missing:
        raise RunError(
            f"{len(missing):,} of the {len(old):,} photos of {run.path} are gone, as {run.root / missing[0]}. Expected "
            "them where they were: what is learned must hold for old and new photos together."
        )
    folder = new_folder(out, new)
    # A table gives a split to all photos or to none; where it gives none, the earlier run's is found by their contents.
    parts = [_rows(run.root, old if files["split"].any() else old.assign(split="")), _rows(root, files)]
    # The earlier run's rows come first: a file in both keeps that run's label and split.
    table = pd.concat(parts, ignore_index=True).drop_duplicates("path")
    # Beside the new run folder, not in it: a folder that holds something is refused when the run begins.
    path = folder.with_name(f"{folder.name}.photos.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.to_csv(index=False))  # plain, as users write such tables: nothing in it is for a spreadsheet
    return path, folder


def _rows(root: Path, frame: pd.DataFrame) -> pd.DataFrame:
    paths = [os.path.abspath(root / path) for path in frame["path"]]
    return pd.DataFrame({"path": paths, **{name: frame[name].to_numpy(object) for name in ("label", "split", "group")}})


def extended_request(table: Path, run: RunFolder, time_budget: float | None) -> tuple[Recipe | None, RunRequest]:
    """Return how to learn old and new photos: the run's recipe and what it begins from; None: a race, as the run was.

    Args:
        table: of `extended_photos`.
        run: the earlier run.
        time_budget: seconds for the new run; None: as long as the recipe says.

    Raises:
        RunError: the run was joined from others, and is no race.
    """
    record = run.record()
    # Always with the earlier split: a test photo of that run that was trained on now would make this one look better
    # than it is.
    request = RunRequest(
        photos=str(table), time_budget=time_budget, split_from=str(run.path), extends=os.path.abspath(run.path)
    )
    if record.request.ensemble:
        if record.request.race is None:
            # Raises: nobody can train an ensemble again by one recipe.
            run.refuse_ensemble()
        return None, request
    recipe = run.recipe()
    if recipe.distill.teacher:
        # The teacher has said nothing of the new photos. A race makes its own again; else the labels alone teach.
        if record.request.race is not None:
            return None, request
        recipe = recipe.model_copy(update={"distill": type(recipe.distill)()})
    # A head that was only fitted is fitted again, in seconds, from cached features: its weights are of no use.
    is_fitted_head = bool(recipe.model.weights) and not run.metrics().get("best_epoch")
    if is_fitted_head or not run.best_weights.is_file():
        return recipe, request
    return recipe, request.model_copy(update={"begin_from": str(run.path)})


def measure_extension(run: RunFolder) -> Extension | None:
    """Hold a finished run against the one that it extends, and write that into ``metrics.json``.

    Returns:
        None where it extends no run, or one that is gone.
    """
    extends = run.record().request.extends
    if not extends or not RunFolder(Path(extends)).is_finished:
        return None
    earlier = RunFolder(Path(extends))
    tables = []
    for run_folder in (earlier, run):
        photos, classes, probabilities = run_folder.predictions()
        predicted = np.asarray(classes, object)[probabilities.argmax(axis=1)]
        # By content, once each: copies would be joined with each other and count several times.
        tables.append(photos.assign(right=predicted == photos["label"].to_numpy(object)).drop_duplicates("sha256"))
    old, new = tables
    # Photos that are test photos in both runs: neither network has learned from them.
    test = old[old["split"] == "test"].merge(new[new["split"] == "test"], on="sha256", suffixes=("", "_after"))
    before, after = test["right"].to_numpy(bool), test["right_after"].to_numpy(bool)
    # The earlier run's groups: of columns that both tables have, the new run's got the suffix.
    groups = test["unit"].to_numpy(np.int64) if "unit" in test else None
    extension = Extension(
        new_classes=tuple(sorted(set(run.record().classes) - set(earlier.record().classes))),
        num_photos=len(run.readable()),
        num_new=int((~new["sha256"].isin(old["sha256"])).sum()),
        num_test=len(test),
        before=float(before.mean()) if len(test) else 0.0,
        after=float(after.mean()) if len(test) else 0.0,
        interval=grouped_difference(before, after, groups),
        p_value=grouped_mcnemar(before, after, groups),
    )
    # The file that marks the run as finished is replaced whole: a kill leaves the old one, and `go_on` comes here
    # again.
    write_json(run.metrics_path, run.metrics() | {"extension": extension.to_dict()})
    return extension
