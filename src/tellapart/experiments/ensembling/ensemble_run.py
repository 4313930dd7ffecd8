"""Writes an ensemble as a run folder, for every command that takes a run. Knows nothing about how it was chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.cache import LIMIT_BYTES, Pictures, open_rows
from tellapart.errors import RunError
from tellapart.evaluation.features import features_and_probabilities, read_outputs, save_outputs, unit_rows
from tellapart.evaluation.measure import calibrate, fit_unknown, measure_sides
from tellapart.evaluation.predict import outputs_of_arrays, prediction_table
from tellapart.experiments.cost import cost_of
from tellapart.experiments.ensembling.members import Member
from tellapart.experiments.finished_run import FinishedRun
from tellapart.experiments.shared_test_set import shared_splits
from tellapart.files import read_json, write_json, write_text
from tellapart.models.embedding import feature_model
from tellapart.models.ensemble import joined
from tellapart.records import Progress
from tellapart.run import parents_of
from tellapart.run_folder import RunFolder, RunRequest
from tellapart.settings import Recipe
from tellapart.tables import csv_text
from tellapart.training.checkpoint import save_weights
from tellapart.training.environment import data_hash, environment

TOLERANCE = 1e-3
"""Of a probability, between the joined network and its members, where all see pictures of one size."""


@dataclass(frozen=True)
class Agreement:
    """How the joined network differs from the weighted mean of what its members said themselves.

    Attributes:
        num_images: photos that all members know.
        largest_difference: of a probability.
        mean_difference: of a probability.
        other_class: share of the photos that get another class.
        resized: whether a member sees pictures that were shrunk in the network instead of by the decoder.
    """

    num_images: int
    largest_difference: float
    mean_difference: float
    other_class: float
    resized: bool


def write_joined(
    folder: Path,
    members: Sequence[Member],
    weights: Sequence[float],
    everyone: Sequence[FinishedRun],
    *,
    cache: Path,
    limit_bytes: int = LIMIT_BYTES,
    progress: Progress,
) -> Agreement:
    """Join networks, ask the joined one about all photos of all runs, and write the run folder.

    Args:
        folder: to be made.
        members: those with a weight.
        weights: theirs, above 0.
        everyone: all runs that were chosen from: a photo that any of them learned from is none to be judged on.
        cache: the folder for decoded pictures.
        limit_bytes: how large it may grow, as `open_pictures` takes it.
        progress: called often with (what, done, total).

    Returns:
        How the joined network differs from its members.

    Raises:
        RunError: it says something else than its members: a model is not the one that its run was measured with.
    """
    model = joined([member.network() for member in members], weights)
    image_px = int(model.input_shape[1])
    root, frame = _all_photos(everyone)
    classes, recipe = everyone[0].classes, _recipe(members, image_px)

    # Everything but what is said of the photos
    names = {member.finished_run.name: float(weight) for member, weight in zip(members, weights, strict=True)}
    run = RunFolder(folder)
    parents = parents_of(recipe, *(member.finished_run.folder for member in members))
    run.create(recipe, RunRequest(photos=str(root), ensemble=names), environment(), parents)
    run.update_record(
        root=str(root), classes=classes, num_photos=len(frame), data_sha256=data_hash(frame), precision="float32"
    )
    if (health := RunFolder(everyone[0].folder).health_path).is_file():
        write_json(run.health_path, read_json(health))
    run.write_manifest(frame)
    # As it is joined; `calibrate` writes it again with the temperature.
    model.save(run.model_path)
    save_weights(run.best_weights, model.get_weights(), {"epoch": 0, "score": None})

    # What is said of the photos
    with open_rows(
        root, frame, image_px, folder=cache, limit_bytes=limit_bytes, max_pixels=recipe.data.max_pixels,
        progress=progress,
    ) as pictures:  # fmt: skip
        features, predicted = _asked(model, members, weights, frame, pictures, progress)
    probabilities, calibration = calibrate(run, model, predicted, frame, classes)
    save_outputs(run, features, probabilities)
    write_text(run.predictions_path, csv_text(prediction_table(frame, probabilities, classes)))
    unknown = fit_unknown(run, features, frame, classes)
    metrics = {**calibration, "unknown": unknown, **measure_sides(frame, probabilities, classes)}
    write_json(run.metrics_path, metrics | _cost(members))
    # With `predicted`, which the ensemble's own temperature has not touched: members are compared as they are.
    agreement = _agreement(frame, predicted, members, weights, resized=_sizes(model) > 0)
    if not agreement.resized and agreement.largest_difference > TOLERANCE:
        # `metrics.json` is there by now, and the folder looks finished: whoever calls this must delete it.
        raise RunError(
            f"The joined network differs from its members by {agreement.largest_difference:.2g} in a probability; "
            f"{TOLERANCE:g} is allowed. The model.keras of a run is not the one that its predictions.csv came from: "
            "train that run again."
        )
    return agreement


def _asked(
    model: keras.Model,
    members: Sequence[Member],
    weights: Sequence[float],
    frame: pd.DataFrame,
    pictures: Pictures,
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the joined network's embeddings and probabilities of all photos.

    A member that takes pictures of the ensemble's size has said it already, where its run knows the same photos: only
    the smaller ones, which see pictures that were shrunk another way, are asked. The largest cost most.
    """
    if all(member.finished_run.photos["sha256"].tolist() == frame["sha256"].tolist() for member in members):
        order = np.argsort(weights, kind="stable")  # as the joined network has them
        answers = [_answers(members[index], pictures, progress) for index in order]
        shares = np.asarray(weights, np.float64)[order] / np.sum(weights)
        mean = sum(share * probabilities for share, (_, probabilities) in zip(shares, answers, strict=True))
        embeddings = np.hstack([unit_rows(embedding) for embedding, _ in answers])
        sample = np.linspace(0, len(pictures) - 1, min(len(pictures), 32)).astype(np.int64)
        # A few photos through the joined network itself: should it say something else, it answers for all.
        sampled = outputs_of_arrays(feature_model(model), pictures.batch(sample))
        if all(np.abs(a - b[sample]).max() <= TOLERANCE for a, b in zip(sampled, (mean, embeddings), strict=True)):
            return embeddings, np.asarray(mean, np.float32)
    return features_and_probabilities(model, pictures, progress)


def _answers(member: Member, pictures: Pictures, progress: Progress) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return embeddings and probabilities of a member as it stands in an ensemble that takes these pictures."""
    network, run = member.network(), RunFolder(member.finished_run.folder)
    if int(network.input_shape[1]) == pictures.image_px and not member.kept and (outputs := read_outputs(run)):
        return outputs
    return features_and_probabilities(joined([network], [1.0], pictures.image_px), pictures, progress)


def _recipe(members: Sequence[Member], image_px: int) -> Recipe:
    """Return the recipe of the first member that has one, with the size of pictures that the joined network takes."""
    folders = [RunFolder(member.finished_run.folder) for member in members]
    recipe = next((folder.recipe() for folder in folders if folder.recipe_path.is_file()), Recipe())
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"image_px": image_px})})


def _all_photos(everyone: Sequence[FinishedRun]) -> tuple[Path, pd.DataFrame]:
    """Return (root, rows) of the photos of all runs, each content once beyond the first run, with their common side."""
    root = Path(os.path.commonpath([os.path.abspath(run.root) for run in everyone]))
    splits, parts, known, num_groups = shared_splits(everyone), [], set[str](), 0
    for run in everyone:
        # By content: two runs of the same photos may know them under different paths.
        new = run.photos[~run.photos["sha256"].isin(known)]
        prefix = Path(os.path.abspath(run.root)).relative_to(root).as_posix()
        paths = new["path"] if prefix == "." else prefix + "/" + new["path"]
        group = new["unit"] + num_groups if "unit" in new else np.arange(len(new)) + num_groups
        parts.append(new.assign(path=paths, unit=group))
        known |= set(new["sha256"])
        # Each run numbers its groups from 0: the next run's begin behind them.
        num_groups = int(parts[-1]["unit"].max()) + 1 if len(new) else num_groups
    frame = pd.concat(parts, ignore_index=True)
    return root, frame.assign(split=frame["sha256"].map(splits).fillna(""))


def _sizes(model: keras.Model) -> int:
    """Return how many layers of the joined network shrink pictures."""
    return sum(isinstance(layer, (keras.layers.Resizing, keras.layers.AveragePooling2D)) for layer in model.layers)


def _cost(members: Sequence[Member]) -> dict[str, Any]:
    """Return what the members' runs took together; a run with several members counts once."""
    costs = [cost_of(run) for run in {member.finished_run.folder.resolve(): None for member in members}]
    return {
        "seconds_training": sum(cost.seconds_training or 0.0 for cost in costs),
        "seconds_total": sum(cost.seconds_total or 0.0 for cost in costs),
    }


def _agreement(
    frame: pd.DataFrame,
    predicted: NDArray[np.float32],
    members: Sequence[Member],
    weights: Sequence[float],
    *,
    resized: bool,
) -> Agreement:
    rows = pd.Series(np.arange(len(frame)), frame["sha256"])
    # Copies have one digest: the first stands for all, or a look-up would give several rows.
    rows = rows[~rows.index.duplicated()]
    member_digests = [member.finished_run.photos["sha256"] for member in members]
    shared_digests = set.intersection(*map(set, member_digests))
    digests = [digest for digest in rows.index if digest in shared_digests]
    mean = np.zeros((len(digests), predicted.shape[1]))
    for member, photos, weight in zip(members, member_digests, weights, strict=True):
        position_of = pd.Series(np.arange(len(photos)), photos)
        at = position_of[~position_of.index.duplicated()][digests].to_numpy()
        mean += weight / sum(weights) * member.finished_run.probabilities[at]
    joined_probabilities = predicted[rows[digests].to_numpy()]
    differences = np.abs(joined_probabilities - mean)
    return Agreement(
        num_images=len(digests),
        largest_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        other_class=float((joined_probabilities.argmax(axis=1) != mean.argmax(axis=1)).mean()),
        resized=resized,
    )
