"""How well "none of the known classes" is told: near classes left out one by one, and far pictures.

    python benchmarks/unknown.py ../shared/data/photos9 ../shared/data/trash6 --weights FILE --time 3m

Two networks for each data set. Frozen: features of pretrained weights, which no class had a part in; the class is left
out of references and threshold (no head takes part in the decision). Scratch: a network trained for --time without the
class's photos, once for each class, and once with all of them. Near: test photos of the class against those of the
others. Far: test photos of the other data set, noise and drawn shapes. Nothing is chosen here: the method was chosen on
validation photos (docs/experiments.md). Finished runs are kept in --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import tellapart
from machine import write_result
from tellapart.data.cache import Pictures, open_rows
from tellapart.data.scan import find_photos
from tellapart.evaluation.measure import class_numbers, groups_of
from tellapart.evaluation.predict import feature_model, outputs_for, outputs_of_arrays
from tellapart.evaluation.unknown import Told, drawn_pictures, mean_auroc, noise_pictures, share_refused, tell
from tellapart.models.backbones import features_of, load_pretrained
from tellapart.preparation import prepared_folder
from tellapart.records import SPLITS, Interval, Observer
from tellapart.run_folder import RunFolder
from tellapart.settings import Recipe, load_recipe, parse_duration
from tellapart.training.network import compiled, forget_networks
from tellapart.unknown import UnknownDetector, fit_detector

NEAR, FAR = 0.90, 0.97
"""Areas that were aimed at."""
PICTURES = 200
"""Of noise, and drawn."""
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Photos:
    """A data set as its table says, and where its decoded pictures are kept."""

    folder: Path
    table: RunFolder
    cache: Path

    @property
    def frame(self) -> pd.DataFrame:
        """Readable photos with label, split and unit."""
        return self.table.readable()

    def test(self, label: str | None = None) -> pd.DataFrame:
        """Return the test photos, of one class or of all."""
        frame = self.frame[self.frame["split"] == "test"]
        return (frame if label is None else frame[frame["label"] == label]).reset_index(drop=True)

    def pictures(self, frame: pd.DataFrame, image_px: int) -> Pictures:
        """Open photos of the table at a size."""
        return open_rows(self.table.root, frame, image_px, folder=self.cache)


def embeddings_of(network: keras.Model, photos: Photos, frame: pd.DataFrame, image_px: int | None = None) -> Floats:
    """Return (num_images, num_features) of photos, by a network whose first or only output they are."""
    with photos.pictures(frame, image_px or int(network.input_shape[1])) as pictures:
        outputs = [part[0] if isinstance(part, list | tuple) else part for part in outputs_for(network, pictures)]
    return np.concatenate([np.asarray(part, np.float32).reshape(len(part), -1) for part in outputs])


def frozen(photos: Photos, other: Photos, recipe: Recipe) -> dict:
    """Measure references made of pretrained features."""
    frame, classes = photos.frame, sorted(photos.frame["label"].unique())
    model, _ = compiled(recipe, len(classes), "float32")
    load_pretrained(model, recipe.model)
    extract, image_px = features_of(model), recipe.data.image_px
    features, numbers = embeddings_of(extract, photos, frame, image_px), class_numbers(frame, classes)
    groups, learned, held_out, test = groups_of(frame), *((frame["split"] == split).to_numpy() for split in SPLITS)
    near = []
    for number, name in enumerate(classes):
        others = numbers != number
        detector = fit_detector(features[learned & others], numbers[learned & others], features[held_out & others])
        known, unknown = (detector.similarity(features[test & selected]) for selected in (others, ~others))
        parts = {"groups": groups[test & others], "strangers": groups[test & ~others]}
        near.append(tell(detector, name, known, unknown, **parts))
    detector = fit_detector(features[learned], numbers[learned], features[held_out])
    strange = {
        other.folder.name: embeddings_of(extract, other, other.test(), image_px),
        **{name: np.asarray(extract.predict_on_batch(made), np.float32) for name, made in strange_pictures(image_px)},
    }
    return summary(near, detector, features[test], groups[test], strange)


def scratch(photos: Photos, other: Photos, seconds: float, work: Path) -> dict:
    """Measure runs of a network that never saw the class, each with the detector that it came with."""
    near = []
    for name in sorted(photos.frame["label"].unique()):
        run = trained(photos, work / f"{photos.folder.name}-without-{name}", seconds, without=name)
        test = run.readable().query("split == 'test'").reset_index(drop=True)
        network, detector = opened(run)
        known, unknown = (
            detector.similarity(embeddings_of(network, photos, frame)) for frame in (test, photos.test(name))
        )
        near.append(tell(detector, name, known, unknown))
    run = trained(photos, work / f"{photos.folder.name}-all", seconds)
    test = run.readable().query("split == 'test'").reset_index(drop=True)
    network, detector = opened(run)
    strange = {other.folder.name: embeddings_of(network, other, other.test())}
    for name, made in strange_pictures(int(network.input_shape[1])):
        strange[name] = outputs_of_arrays(network, made)[1]
    return summary(near, detector, embeddings_of(network, photos, test), groups_of(test), strange)


def opened(run: RunFolder) -> tuple[keras.Model, UnknownDetector]:
    """Return a run's network with embeddings and probabilities, and its detector."""
    classifier = tellapart.load(run.path)
    assert classifier.detector is not None
    return feature_model(classifier.model), classifier.detector


def trained(photos: Photos, folder: Path, seconds: float, without: str | None = None) -> RunFolder:
    """Train on all photos but those of one class, or open the finished run."""
    run = RunFolder(folder)
    if not run.is_finished:
        shutil.rmtree(folder, ignore_errors=True)
        root, frame, _ = find_photos(photos.folder)
        table = folder.with_suffix(".csv")
        frame = frame.assign(path=[str(root / path) for path in frame["path"]])
        frame[frame["label"] != without][["path", "label"]].to_csv(table, index=False)
        tellapart.train(
            table, recipe="fast", time_budget=seconds, split_from=photos.table.path, out=folder, cache=photos.cache
        )  # its test photos are those of the table
        forget_networks()
    return run


def strange_pictures(image_px: int) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return what no photo looks like."""
    return [("noise", noise_pictures(PICTURES, image_px)), ("drawn shapes", drawn_pictures(PICTURES, image_px))]


def summary(
    near: list[Told], detector: UnknownDetector, known: Floats, groups: NDArray[np.int64] | None, strange: dict
) -> dict:
    """Return all numbers with their intervals, and whether they are what was aimed at."""
    similarity = detector.similarity(known)
    far = [
        tell(detector, name, similarity, detector.similarity(embeddings), groups=groups)
        for name, embeddings in strange.items()
    ]
    share, interval = share_refused(detector, similarity, groups)
    area, between = mean_auroc(near)
    return {
        "known_test_photos_refused": {"promised": detector.refused, "share": share, "interval": _ends(interval)},
        "num_references": len(detector.references),
        "near": {result.name: _told(result) for result in near},
        "near_mean": {"auroc": area, "interval": _ends(between), "aim": NEAR, "reached": area >= NEAR},
        "far": {result.name: _told(result) | {"aim": FAR, "reached": result.auroc >= FAR} for result in far},
    }


def _told(result: Told) -> dict:
    refused = {"share": result.refused, "interval": _ends(result.refused_interval)}
    return {
        "num_images": result.num_images, "auroc": result.auroc, "interval": _ends(result.interval), "refused": refused,
    }  # fmt: skip


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def main() -> None:
    """Measure both networks on both data sets and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs=2)
    parser.add_argument("--weights", type=Path, required=True, help="of MobileNetV2, without the top")
    parser.add_argument("--time", default="3m", help="for each network from scratch; empty: frozen features only")
    parser.add_argument("--work", type=Path, default=Path("runs/unknown"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe("transfer", [f"model.weights={arguments.weights.resolve()}"])
    sets = []
    for folder in arguments.photos:
        table = prepared_folder(folder, arguments.work / f"{folder.name}-photos", recipe, Observer())
        sets.append(Photos(folder, RunFolder(table), arguments.work / "cache"))
    values: dict = {"seconds_of_a_network_from_scratch": parse_duration(arguments.time) if arguments.time else None}
    for photos, other in (sets, sets[::-1]):
        results = values[photos.folder.name] = {"frozen": frozen(photos, other, recipe)}
        if arguments.time:
            results["scratch"] = scratch(photos, other, parse_duration(arguments.time), arguments.work)
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('unknown', values)}")


if __name__ == "__main__":
    main()
