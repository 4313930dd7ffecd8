"""Sets of unusual sizes, each with the plainest command: few photos, a hundred thousand in 200 classes, rare classes.

    python benchmarks/sizes.py ../shared/data/photos9 --weights FILE

Few: 20 photos of each class of photos9, `tellapart train PHOTOS --time 1m`; beside it what naming one class alone
would reach. Many: 100,000 drawn pictures of 48 px, 200 classes of 20 hues by 10 directions of stripes, `--time 10m`.
Both with MobileNetV2's weights at hand and an empty cache, timed from outside. Rare: the classes of photos9 keep 600,
412, ... 30 of the photos that train and validate, and all test photos; `--recipe fast --time 1m` with and without
`train.balance=auto`, three seeds, mean recall and macro F1, accuracies paired over seeds and photos.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from machine import write_result
from race import groups, right, train
from tellapart.data.scan import find_photos
from tellapart.evaluation.multi_seed import compare_over_seeds
from tellapart.preparation import prepared_folder
from tellapart.records import Observer
from tellapart.run_folder import RunFolder
from tellapart.settings import load_recipe, parse_duration

HUES, DIRECTIONS, PHOTOS_A_CLASS, DRAWN_PX = 20, 10, 500, 48
FEW, MOST, FEWEST, SEEDS = 20, 600, 30, 3


def stripes(random: np.random.Generator, hue: int, direction: int) -> NDArray[np.uint8]:
    """Draw stripes of a hue and a direction, at any distance, brightness and noise, with a patch that hides a part."""
    y, x = np.mgrid[0:DRAWN_PX, 0:DRAWN_PX]
    angle = np.pi * (direction + random.uniform(-0.3, 0.3)) / DIRECTIONS
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * random.uniform(0.35, 0.9) + random.uniform(0, 2 * np.pi))
    value = random.uniform(120, 200) + random.uniform(25, 55) * wave
    degrees = (180 * (hue + random.uniform(-0.3, 0.3)) / HUES) % 180
    hsv = np.stack([np.full_like(value, degrees), np.full_like(value, random.uniform(90, 230)), value], axis=-1)
    picture = cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR).astype(np.float64)
    left, top = random.integers(0, DRAWN_PX - 16, 2)
    picture[top : top + 16, left : left + 16] = random.uniform(0, 255, 3)
    picture += random.normal(0, random.uniform(4, 20), picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_many(folder: Path) -> Path:
    """Write the pictures of all classes, where they are not there yet."""

    def write(number: int) -> None:
        hue, direction = divmod(number, DIRECTIONS)
        random = np.random.default_rng(number)
        place = folder / f"hue-{hue:02}-direction-{direction}"
        place.mkdir(parents=True, exist_ok=True)
        for index in range(PHOTOS_A_CLASS):
            cv2.imwrite(str(place / f"{index:04}.jpg"), stripes(random, hue, direction))

    if not (folder / "done").exists():
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(write, range(HUES * DIRECTIONS)))
        (folder / "done").touch()
    return folder


def measured(photos: Path, budget: str, run: Path, weights: Path) -> dict[str, Any]:
    """Race once; return what came of it beside the time asked for and the share that guessing one class names."""
    result, seconds = train(photos, ["--time", budget], 0, run, weights), parse_duration(budget)
    table, test = RunFolder(run).readable(), RunFolder(run).metrics()["test"]
    return {
        "num_photos": len(table),
        "num_classes": int(table["label"].nunique()),
        "num_test": test["num_images"],
        "interval": test["intervals"]["accuracy"],
        "guessing": float(table[table["split"] == "test"]["label"].value_counts(normalize=True).iloc[0]),
        "budget_seconds": seconds,
        "ratio_to_the_budget": result["wall_seconds"] / seconds,
        **result,
    }


def thinned(photos: Path, work: Path) -> Path:
    """Return a table that keeps fewer and fewer photos of each class, from MOST to FEWEST, and all test photos."""
    table = work / "rare.csv"
    split = RunFolder(prepared_folder(photos, work / "photos", load_recipe("fast", []), Observer()))
    frame, (root, *_) = split.readable(), find_photos(photos)
    frame = frame.assign(path=[str(root / path) for path in frame["path"]])
    classes = sorted(frame["label"].unique())
    kept = [frame[frame["split"] == "test"]]
    for label, number in zip(classes, np.geomspace(MOST, FEWEST, len(classes)).round().astype(int), strict=True):
        of_class = frame[(frame["label"] == label) & (frame["split"] != "test")]
        kept.append(of_class.sample(n=min(int(number), len(of_class)), random_state=0))
    pd.concat(kept)[["path", "label", "split"]].to_csv(table, index=False)
    return table


def few(photos: Path, work: Path) -> Path:
    """Return a table of FEW photos of each class."""
    root, frame, _ = find_photos(photos)
    frame = frame.assign(path=[str(root / path) for path in frame["path"]])
    table = work / "few.csv"
    frame.groupby("label").sample(n=FEW, random_state=0)[["path", "label"]].to_csv(table, index=False)
    return table


def rare(table: Path, work: Path, weights: Path) -> dict[str, Any]:
    """Measure `fast` with and without balance over the seeds."""
    options, ways, places = ["--recipe", "fast", "--time", "1m"], {}, {}
    for way in ("none", "auto"):
        places[way] = [work / f"rare-{way}-{seed}" for seed in range(SEEDS)]
        ways[way] = []
        for seed, run in enumerate(places[way]):
            result = train(table, [*options, "--set", f"train.balance={way}"], seed, run, weights)
            metrics = RunFolder(run).metrics()
            of_classes = {name: metrics["test"][name] for name in ("recall_macro", "f1_macro", "per_class")}
            ways[way].append({**result, **of_classes, "moved": metrics["balance"]})
    estimate = compare_over_seeds(*(right(places)[way] for way in places), groups(places, places["none"][0]))
    return {
        "photos_a_class": [MOST, FEWEST],
        **ways,
        "auto_less_none_points": 100 * estimate.value,
        "interval": [100 * estimate.interval.low, 100 * estimate.interval.high],
        "p_value": estimate.p_value,
        **{
            f"mean_{name}": {way: float(np.mean([run[name] for run in runs])) for way, runs in ways.items()}
            for name in ("recall_macro", "f1_macro")
        },
    }


def main() -> None:
    """Measure all three and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="photos9, or another folder with a folder for each class")
    parser.add_argument("--weights", type=Path, required=True, help="of MobileNetV2 without its top")
    parser.add_argument("--work", type=Path, default=Path("runs/sizes"))
    arguments = parser.parse_args()
    work, weights = arguments.work.resolve(), arguments.weights.resolve()
    work.mkdir(parents=True, exist_ok=True)
    values = {
        "few": measured(few(arguments.photos, work), "1m", work / "few", weights),
        "many": measured(draw_many(work / "stripes"), "10m", work / "many", weights),
        "rare": rare(thinned(arguments.photos, work), work, weights),
    }
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('sizes', values)}")


if __name__ == "__main__":
    main()
