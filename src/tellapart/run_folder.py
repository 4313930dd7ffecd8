"""A run folder: the one door to the files of a run. Knows neither Keras nor how runs are made.

A run can be moved and renamed: nothing in it names its own place. What is absolute is where the photos lie.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from tellapart.errors import RunError
from tellapart.files import read_json, write_json, write_text
from tellapart.settings import Recipe, load_saved_recipe, save_recipe
from tellapart.tables import csv_text, read_csv

SCHEMA_VERSION = 2
"""Of ``environment.json``. 1: what was asked for stood under ``order``, and runs had no id."""
_TEXT = (
    "path", "label", "split", "group", "sha256", "extension", "format", "mode", "error", "true_label",
    "predicted_label",
)  # fmt: skip
"""Columns that hold text: a class may be called NA, which pandas would take for a missing value."""


class RunRequest(BaseModel):
    """What a run was asked to do, beside its recipe.

    Attributes:
        photos: the photos, or their table; absolute where it is recorded.
        time_budget: seconds for the whole run.
        split_from: a run folder whose photos keep their split.
        begin_from: a run folder whose weights training begins with.
        replay: a run folder whose training plan is done again.
        ensemble: weights by name of the members; such a run was not trained.
        race: settings that the candidates of a race share, each as "section.key=value"; None: the recipe was given.
        extends: a run folder whose photos are learned again, with new ones.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    photos: str = ""
    time_budget: float | None = None
    split_from: str | None = None
    begin_from: str | None = None
    replay: str | None = None
    ensemble: dict[str, float] | None = None
    race: list[str] | None = None
    extends: str | None = None

    def absolute(self, **changes: Any) -> RunRequest:
        """Return it with some fields changed, and with absolute paths: a run goes on from any folder."""
        values = self.model_dump() | changes
        # A new field that holds a path belongs into this list, or a run that goes on in another folder looks for it in
        # the wrong place.
        paths = {
            name: values[name] for name in ("photos", "split_from", "begin_from", "replay", "extends") if values[name]
        }
        return RunRequest(**values | {name: os.path.abspath(path) for name, path in paths.items()})


class RunRecord(BaseModel):
    """``environment.json``: what was asked, of which photos, on which machine, and how training went.

    Fields are unset until their stage is done. Files of older versions open: what they lack is unset.

    Attributes:
        schema_version: of the file.
        run_id: 32 hexadecimal digits, drawn when the run began; "" in files of version 1.
        parents: ids of the runs that it was made from: a teacher, members, a run that it repeats.
        request: what was asked.
        seed: of the recipe.
        root: the folder that the manifest's paths are relative to.
        classes: in the order of the network's outputs.
        num_photos: readable ones.
        data_sha256: of contents, labels and splits.
        precision: "float32" or "mixed_bfloat16".
        segments: of the training that was done, each as `training.schedule.Segment.to_dict` gives it.
        planned_steps: that the weight average took its length from.
        time_plan: how a time budget was divided before the photos were scanned.
        machine: what the run may use of its machine: threads, and room for decoded pictures.
        python: version of the interpreter; packages, backend, processor and so on are the machine's.
    """

    # Fields that this version does not know are kept: `update_record` writes the whole file again.
    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: int = 1
    run_id: str = ""
    parents: tuple[str, ...] = ()
    request: RunRequest = Field(default=RunRequest(), validation_alias=AliasChoices("request", "order"))
    seed: int = 0
    root: str = ""
    classes: list[str] = Field(default_factory=list)
    num_photos: int = 0
    data_sha256: str = ""
    precision: str = ""
    segments: list[dict[str, Any]] = Field(default_factory=list)
    planned_steps: int = 0
    time_plan: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    python: str = ""
    backend: str = ""
    processor: str = ""
    cpu_count: int | None = None
    commit: str = ""
    packages: dict[str, str] = Field(default_factory=dict)

    def known(self, *names: str) -> dict[str, Any]:
        """Return those of the named fields that the file has."""
        values = self.model_dump(mode="json", exclude_unset=True)
        return {name: values[name] for name in names if name in values}


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, by name.

    Attributes:
        path: the folder.
    """

    path: Path

    # Where things are ---------------------------------------------------------------------------------------

    @property
    def recipe_path(self) -> Path:
        """What was to be done."""
        return self.path / "recipe.toml"

    @property
    def record_path(self) -> Path:
        """Of `record`."""
        return self.path / "environment.json"

    @property
    def manifest_path(self) -> Path:
        """A row for each photo. It is written last of what is known of the photos: where it stands, all of it is."""
        return self.path / "manifest.csv"

    @property
    def health_path(self) -> Path:
        """What `tellapart check` finds in the photos."""
        return self.path / "health.json"

    @property
    def predictions_path(self) -> Path:
        """Probabilities of each readable photo."""
        return self.path / "predictions.csv"

    @property
    def metrics_path(self) -> Path:
        """It is written last of all: where it stands, the run is finished."""
        return self.path / "metrics.json"

    @property
    def history_path(self) -> Path:
        """A row for each epoch."""
        return self.path / "history.csv"

    @property
    def log_path(self) -> Path:
        """What happened when."""
        return self.path / "log.jsonl"

    @property
    def model_path(self) -> Path:
        """The trained network, calibrated, of plain Keras layers."""
        return self.path / "model.keras"

    @property
    def features_path(self) -> Path:
        """Features and probabilities of all photos, kept by a report for the next one."""
        return self.path / "features.npz"

    @property
    def unknown_path(self) -> Path:
        """What tells photos of no known class (`tellapart.unknown`); missing where there is no threshold for it."""
        return self.path / "unknown.npz"

    @property
    def checkpoints(self) -> Path:
        """The folder of weights."""
        return self.path / "checkpoints"

    @property
    def best_weights(self) -> Path:
        """The weights that were kept."""
        return self.checkpoints / "best.npz"

    @property
    def last_checkpoint(self) -> Path:
        """Weights and state after the last epoch, for a resumed run."""
        return self.checkpoints / "last.npz"

    @property
    def head_features(self) -> Path:
        """What a pretrained network gave for each photo."""
        return self.checkpoints / "features.npy"

    @property
    def tensorboard(self) -> Path:
        """The folder for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def is_begun(self) -> bool:
        """Whether this is a run folder at all."""
        return self.recipe_path.is_file() and self.record_path.is_file()

    @property
    def has_photos(self) -> bool:
        """Whether its photos were scanned and split."""
        return self.manifest_path.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether it was trained and measured."""
        return self.metrics_path.is_file()

    # What they say ------------------------------------------------------------------------------------------

    def create(
        self, recipe: Recipe, request: RunRequest, environment: Mapping[str, Any], parents: tuple[str, ...] = ()
    ) -> None:
        """Make the folder, with the recipe and the first of the record.

        Args:
            recipe: what is to be done.
            request: what was asked.
            environment: of the machine.
            parents: ids of the runs that it is made from.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        # The recipe first: `is_begun` asks for both files, so a kill between the two leaves a folder that is no run.
        save_recipe(recipe, self.recipe_path)
        request_values = request.model_dump(mode="json", exclude_none=True)
        identity = {"schema_version": SCHEMA_VERSION, "run_id": uuid.uuid4().hex, "parents": list(parents)}
        write_json(self.record_path, {**identity, "request": request_values, "seed": recipe.train.seed, **environment})
        self.log("started", **request_values)

    def recipe(self) -> Recipe:
        """Return the recipe; the defaults where an old run has none."""
        return load_saved_recipe(self.recipe_path) if self.recipe_path.is_file() else Recipe()

    def record(self) -> RunRecord:
        """Return what ``environment.json`` says.

        Raises:
            RunError: there is none, or it was made by a later version.
        """
        if not self.record_path.is_file():
            raise RunError(f"{self.path} has no environment.json. Expected a run folder made by tellapart train.")
        try:
            record = RunRecord.model_validate(read_json(self.record_path))
        except ValidationError as error:
            raise RunError(f"{self.record_path} cannot be read: {error}") from error
        # A later version may mean something else by the same field: refuse instead of guessing.
        if record.schema_version > SCHEMA_VERSION:
            raise RunError(
                f"{self.record_path} has schema {record.schema_version}; this version of tellapart reads up to "
                f"{SCHEMA_VERSION}. Install a later one."
            )
        return record

    def update_record(self, **values: Any) -> RunRecord:
        """Write fields into the record, and return it."""
        # Read and written again without a lock: only one process may work on a run folder.
        # Unset fields stay out of the file: a field that is there says that its stage is done.
        write_json(self.record_path, self.record().model_dump(mode="json", exclude_unset=True) | values)
        return self.record()

    @property
    def root(self) -> Path:
        """The folder that the manifest's paths are relative to; the photos may be gone."""
        return Path(self.record().root)

    def manifest(self) -> pd.DataFrame:
        """Return the table of photos.

        Raises:
            RunError: there is none.
        """
        if not self.has_photos:
            raise RunError(f"{self.path} has no manifest.csv. Expected a run folder made by tellapart train.")
        return _with_paths(read_csv(self.manifest_path, _TEXT))

    def readable(self) -> pd.DataFrame:
        """Return the rows of `manifest` whose photos could be read, numbered from 0."""
        # predictions.csv, features.npz and checkpoints/features.npy are matched to these rows by their order alone.
        manifest = self.manifest()
        return manifest[manifest["error"] == ""].reset_index(drop=True)

    def write_manifest(self, frame: pd.DataFrame) -> None:
        """Write the table of photos; names are escaped as JSON does where a line of a table could not hold them."""
        # A file name may hold a line break, or bytes that are not UTF-8; JSON escapes both in ASCII.
        escaped = pd.Series([json.dumps(path)[1:-1] for path in frame["path"]], frame.index, dtype=object)
        write_text(self.manifest_path, csv_text(frame.assign(path=escaped)))

    def splits(self) -> dict[str, str]:
        """Return "train", "validation" or "test" for each photo that the run knows, by SHA-256."""
        manifest = self.manifest()
        known = manifest[manifest["split"] != ""]
        # Of photos with the same content the last row counts; copies are in one group, and so in one split, unless the
        # source gave the split.
        return dict(zip(known["sha256"], known["split"], strict=True))

    def predictions(self) -> tuple[pd.DataFrame, list[str], NDArray[np.float64]]:
        """Return (photos, classes, probabilities).

        Returns:
            The rows of `readable`, the names of the classes, and (num_photos, num_classes) probabilities in the order
            of both; rows that were not finite are even.

        Raises:
            RunError: ``manifest.csv`` and ``predictions.csv`` are not of one run.
        """
        photos, table = self.readable(), read_csv(self.predictions_path, _TEXT)
        columns = [column for column in map(str, table) if column.startswith("p:")]
        # The two tables are joined by their order alone, so check what both of them hold.
        rows_match = len(photos) == len(table) and all(
            photos[ours].tolist() == table[theirs].tolist()
            for ours, theirs in (("label", "true_label"), ("split", "split"))
        )
        if not rows_match or not columns:
            raise RunError(
                f"{self.predictions_path} does not match manifest.csv. Expected a row for each readable photo, in the "
                "same order: restore the run's own files, or train again."
            )
        # Numbers that were NaN are empty cells, and make their column text: `read_csv` knows no missing values.
        probabilities = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        finite = np.isfinite(probabilities).all(axis=1)
        probabilities = np.where(finite[:, None], probabilities, 1 / len(columns))
        classes = [column.removeprefix("p:") for column in columns]
        # The file holds float32: its rows add up to 1 up to rounding only.
        return photos, classes, probabilities / probabilities.sum(axis=1, keepdims=True)

    def metrics(self) -> dict[str, Any]:
        """Return ``metrics.json``; nothing where the run is not finished."""
        return read_json(self.metrics_path) if self.is_finished else {}

    def history(self) -> pd.DataFrame:
        """Return a row for each epoch, with ``epoch``, ``loss``, ``accuracy``, ``val_loss`` and so on."""
        return pd.read_csv(self.history_path)

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write a row for each epoch."""
        write_text(self.history_path, pd.DataFrame(rows).to_csv(index=False))

    def log(self, event: str, **values: Any) -> None:
        """Append one line to ``log.jsonl``."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
        # Appended, unlike all other files of a run: a kill may leave half a line at the end.
        with open(self.log_path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")

    def copy_photos_from(self, other: RunFolder) -> None:
        """Take over the table of photos, the split and the health of another run; the table comes last.

        Raises:
            RunError: the other run has none.
        """
        frame, record = other.manifest(), other.record()
        if other.health_path.is_file():
            write_json(self.health_path, read_json(other.health_path))
        self.update_record(**record.known("root", "classes", "num_photos", "data_sha256"))
        # Last: from here on `has_photos` is true, and a resumed run scans nothing.
        self.write_manifest(frame)

    def refuse_ensemble(self) -> None:
        """Refuse a run that was combined, not trained.

        Raises:
            RunError: it is an ensemble.
        """
        request = self.record().request
        if request.ensemble and request.race is not None:
            raise RunError(
                f"{self.path} is an ensemble that won a race: it was not trained by one recipe. Run the race again: "
                f"tellapart train {request.photos}."
            )
        if members := request.ensemble:
            raise RunError(
                f"{self.path} is an ensemble of {', '.join(members)}: it was not trained itself. Train or reproduce "
                "those runs, and combine them again with tellapart ensemble."
            )


def find_runs(folder: Path, depth: int = 3) -> list[RunFolder]:
    """Return the run folders in a folder, or the folder itself, in the order of their names.

    Args:
        folder: where to look; what is no folder holds none.
        depth: so many folders deep.
    """
    # No search below a run: the candidates of a race are runs too, and are not listed.
    if RunFolder(folder).is_begun:
        return [RunFolder(folder)]
    if depth == 0 or not folder.is_dir():
        return []
    # Hidden folders are unfinished: ensembles and bundles are built in `.NAME.part` and renamed when they are whole.
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [run for path in subfolders for run in find_runs(path, depth - 1)]


def new_folder(out: str | os.PathLike[str] | None, photos: Path) -> Path:
    """Return the folder of a new run: `out`, or an empty one that is made, named after the photos and the time.

    Raises:
        RunError: `out` holds something.
    """
    if out is None:
        name = f"{photos.resolve().stem or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
        # The time has whole seconds, and two processes may begin in one. So the name is taken by making the folder: to
        # look whether it is free would let both write into it.
        for number in itertools.count(1):
            new = Path("runs") / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                new.mkdir(parents=True)
                return new
    assert out is not None  # the loop above ends only by returning
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        hint = f" To resume it: --resume {folder}." if RunFolder(folder).is_begun else ""
        raise RunError(f"{folder} already exists and is not empty. Name a new folder.{hint}")
    return folder


def _with_paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Undo what `RunFolder.write_manifest` does to names."""
    paths = [json.loads(f'"{path}"') for path in frame["path"]]
    return frame.assign(path=pd.Series(paths, frame.index, dtype=object))
