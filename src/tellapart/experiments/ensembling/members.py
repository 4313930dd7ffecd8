"""What an ensemble can be made of: finished runs, and the further networks that a run kept on its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.data.cache import open_rows
from tellapart.errors import InputError, RunError
from tellapart.evaluation.predict import load, predict_pictures
from tellapart.experiments.finished_run import FinishedRun, names_of, open_finished_run
from tellapart.records import Progress
from tellapart.run_folder import RunFolder
from tellapart.training.snapshots import kept_networks


@dataclass(frozen=True)
class Member:
    """A network that can be in an ensemble.

    Attributes:
        finished_run: the network with what it said of the photos of its run.
        kept: its name among the `kept_networks` of the run; "" is the run's own network.
    """

    finished_run: FinishedRun
    kept: str = ""

    def network(self) -> keras.Model:
        """Open the network.

        Raises:
            RunError: the run has lost its model.
        """
        if not self.kept:
            return load(self.finished_run.folder).model
        recipe = RunFolder(self.finished_run.folder).recipe()
        return kept_networks(self.finished_run.folder, recipe, len(self.finished_run.classes))[self.kept]


def open_members(runs: Sequence[Path], *, snapshots: bool, cache: Path, progress: Progress) -> list[Member]:
    """Open runs, and with `snapshots` also what they kept on their way.

    What a run said stands in its files; kept networks are asked about all photos of their run.

    Raises:
        RunError: a folder is no finished run, or has lost its model.
        InputError: there are fewer than two members, or a run is named twice.
    """
    folders = [run.resolve() for run in runs]
    for folder, run in zip(folders, runs, strict=True):
        # Resolved, so that a run is found again under another path or a link.
        if folders.count(folder) > 1:
            raise InputError(f"{run} is named {folders.count(folder)} times. Expected each run once: it gets a weight.")
    members = []
    # From here on names tell members apart: ensemble.json and the record keep weights by them.
    for run, name in zip(runs, names_of(runs), strict=True) if runs else ():
        finished_run = open_finished_run(run, name)
        if not RunFolder(run).model_path.is_file():
            raise RunError(f"{run} has no model.keras. Expected a finished run folder with its network.")
        members.append(Member(finished_run))
        if snapshots:
            members += _snapshots(finished_run, cache, progress)
    if len(members) < 2:
        hint = (
            f"{runs[0]} kept no further networks: train with --set train.snapshots=4."
            if runs and snapshots
            else "Name more runs, or add --snapshots for the networks that a run kept on its way."
        )
        raise InputError(f"Expected two or more networks to join; got {len(members)}. {hint}")
    return members


def _snapshots(finished_run: FinishedRun, cache: Path, progress: Progress) -> Iterator[Member]:
    run = finished_run.folder
    if not RunFolder(run).recipe_path.is_file():
        return
    recipe = RunFolder(run).recipe()
    networks = kept_networks(run, recipe, len(finished_run.classes))
    if not networks:
        return
    with open_rows(
        finished_run.root, finished_run.photos, recipe.data.image_px, folder=cache, max_pixels=recipe.data.max_pixels,
        progress=progress,
    ) as pictures:  # fmt: skip
        for name, network in networks.items():
            probabilities = predict_pictures(network, pictures, progress)
            yield Member(
                replace(finished_run, name=f"{finished_run.name}/{name}", probabilities=_normalised(probabilities)),
                name,
            )


def _normalised(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return rows that add up to 1 in float64; rows that were not finite are even."""
    rows = np.where(np.isfinite(probabilities).all(axis=1, keepdims=True), probabilities, 1.0).astype(np.float64)
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))
