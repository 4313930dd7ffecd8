"""Whether a race is asked for, its folder, and what it would do; `tellapart.experiments.racing.race` does it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tellapart.data.scan import find_photos
from tellapart.errors import InputError
from tellapart.evaluation.wording import duration
from tellapart.models.weights import listed
from tellapart.preparation import refuse_one_class
from tellapart.run_folder import RunFolder, RunRequest, new_folder
from tellapart.settings import Recipe, load_recipe
from tellapart.training.environment import environment
from tellapart.training.time_plan import plan_for_time

SECONDS = 600.0
"""The time of a race that names none."""
FIRST_BACKBONE = "mobilenet_v2"
"""Whose weights are fetched where none are at hand: the only ones that this project's figures were measured with."""
BALANCE = "train.balance=auto"
_SHARED = ("data.split", "data.split_seed", "data.max_pixels", "train.seed", "train.deterministic")
"""Settings that all candidates can share; with any other a run has one recipe, and no race."""


def is_race(recipe: Recipe | str | Path | None, changes: Sequence[str], request: RunRequest) -> bool:
    """Return whether what is asked leaves the choice of the recipe to a race."""
    only_shared_settings = all(change.partition("=")[0].strip() in _SHARED for change in changes)
    # Weights to begin from fit one network only, so with them there is nothing left to choose.
    return recipe is None and request.begin_from is None and only_shared_settings


def begin_race(changes: Sequence[str], request: RunRequest, out: str | os.PathLike[str] | None) -> RunFolder:
    """Make the folder of a race; `run_race` does it.

    Args:
        changes: settings that all candidates share.
        request: what is asked; its time budget, if it has one, is the race's.
        out: the new folder; None: ``runs/NAME-DATE``.

    Raises:
        InputError: there are no such photos.
        RunError: `out` is not empty.
    """
    root, files, _ = find_photos(Path(request.photos))  # a wrong folder is found out before a run folder exists
    refuse_one_class(root, files["label"].unique().tolist())
    # Only its section `data` and its seed count: each candidate has a recipe of its own, and the winner's takes the
    # place of this one.
    recipe = load_recipe("fast", changes)
    if not recipe.data.split[1]:
        raise InputError(
            "Without validation photos nothing can say which way to a classifier is best. Give data.split a share for "
            "them, or name a recipe: --recipe transfer or --recipe fast."
        )
    folder = RunFolder(new_folder(out, Path(request.photos)))
    race_request = request.absolute(race=list(changes), time_budget=request.time_budget or SECONDS)
    folder.create(recipe, race_request, environment())
    return folder


def describe_race(changes: Sequence[str], request: RunRequest) -> list[str]:
    """Return lines that say what a race would do, without making a folder; a few photos are read and decoded.

    Args:
        changes: settings that all candidates share.
        request: what is asked.

    Raises:
        InputError: there are no such photos.
    """
    root, files, _ = find_photos(Path(request.photos))
    paths, num_classes = [root / path for path in files["path"]], files["label"].nunique()
    seconds, backbone = request.time_budget or SECONDS, backbone_at_hand()
    lines = [f"Photos: {len(paths):,} in {num_classes} classes, in {root}."]
    recipe = pretrained_recipe(backbone, changes) if backbone else load_recipe("fast", changes)
    plan = plan_for_time(paths, num_classes, recipe, seconds)
    feature_seconds = len(paths) * plan.share * (plan.costs.scan + plan.costs.decode + plan.costs.forward)
    if backbone:
        lines.append(
            f"First: a head on what {backbone} sees of pictures of {plan.recipe.data.image_px} px, about "
            f"{duration(feature_seconds)} for the features."
        )
    else:
        lines.append(f"No pretrained weights are at hand: they would be fetched ({FIRST_BACKBONE}).")
    lines.append("Then: the convnet from scratch, as long as validation says that it can still win.")
    if backbone:
        lines.append("Fine-tuning: of few photos with the head, else where two epochs fit into the time.")
    if plan.share < 1:
        lines.append(f"The time allows about {plan.share:.0%} of the photos: the rest would be left out.")
    return [*lines, f"Time: at most {duration(seconds)}. Nothing was written."]


def backbone_at_hand() -> str:
    """Return the network to begin from whose weights are at hand; "": there is none."""
    names = [weights.name for weights in listed() if weights.path is not None]
    return FIRST_BACKBONE if FIRST_BACKBONE in names else names[0] if names else ""


def pretrained_recipe(backbone: str, changes: Sequence[str]) -> Recipe:
    """Return the recipe that begins with a backbone's weights, with the settings that all candidates share."""
    return load_recipe("transfer", [*changes, f"model.name={backbone}", BALANCE])
