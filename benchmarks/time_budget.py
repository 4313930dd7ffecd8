"""Is `--time` kept? `tellapart train PHOTOS --time T` as a user runs it, on 200 to 40,000 photos, timed from outside.

    python benchmarks/time_budget.py ../shared/data --time 2m --weights FILE

Sets: 200 of antsbees, all of antsbees, trash6 and photos9, two crops of each photo of photos9 (20,536 of 320 px, and
17,000 of them at 150 px), and its quarters at 32 px (41,072). Each from scratch and, with --weights, from MobileNetV2,
and as a race of both, with an empty cache. The ratio is wall time over the budget; at most 1.03 is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from machine import write_result
from tellapart.data.listing import image_files
from tellapart.settings import parse_duration


def crops(picture: np.ndarray, image_px: int = 320) -> list[np.ndarray]:
    """Return the left and the right part of a photo, so wide and high."""
    width = picture.shape[1]
    parts = picture[:, : int(width * 0.6)], picture[:, int(width * 0.4) :]
    return [cv2.resize(part, (image_px, image_px)) for part in parts]


def quarters(picture: np.ndarray) -> list[np.ndarray]:
    """Return the four quarters of a photo at 32 px."""
    y, x = picture.shape[0] // 2, picture.shape[1] // 2
    parts = picture[:y, :x], picture[:y, x:], picture[y:, :x], picture[y:, x:]
    return [cv2.resize(part, (32, 32), interpolation=cv2.INTER_AREA) for part in parts]


def make(source: Path, folder: Path, cut: Callable[[np.ndarray], list[np.ndarray]], suffix: str) -> Path:
    """Write what `cut` makes of every photo, a folder per class, where it is not there yet."""
    if not (folder / "done").exists():

        def write(path: Path) -> None:
            picture = cv2.imread(str(path))
            if picture is None:
                return
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            for number, part in enumerate(cut(picture)):
                cv2.imwrite(str(folder / path.parent.name / f"{path.stem}-{number}{suffix}"), part)

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(write, image_files([source])))
        (folder / "done").touch()
    return folder


def few(source: Path, folder: Path, count: int) -> Path:
    """Link every so many photos of a set."""
    files = image_files([source])
    for path in [files[number * len(files) // count] for number in range(count)]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).unlink(missing_ok=True)
        (folder / path.parent.name / path.name).symlink_to(path.resolve())
    return folder


def measure(photos: Path, options: list[str], budget: float, work: Path, weights: Path | None) -> dict:
    """Train once and say how long it took, and what it did."""
    run, cache = work / "run", work / "cache"
    for folder in (run, cache):
        shutil.rmtree(folder, ignore_errors=True)
    if weights:
        (cache / "weights").mkdir(parents=True)
        (cache / "weights" / "mobilenet_v2.weights.h5").symlink_to(weights.resolve())
    command = [sys.executable, "-m", "tellapart", "train", str(photos), *options, "--out", str(run)]
    start = time.perf_counter()
    subprocess.run(command, env={**os.environ, "TELLAPART_CACHE": str(cache)}, check=True, capture_output=True)
    wall = time.perf_counter() - start
    metrics, record = (json.loads((run / name).read_text()) for name in ("metrics.json", "environment.json"))
    return {
        "wall_seconds": wall,
        "ratio": wall / budget,
        "training_seconds": metrics.get("seconds_training"),
        "share_of_photos": record["time_plan"]["share"],
        "image_px": [segment["image_px"] for segment in record["segments"]],
        "epochs": len(history.read_text().splitlines()) - 1 if (history := run / "history.csv").exists() else None,
        "race": metrics.get("race"),
        "test_accuracy": metrics["test"]["accuracy"],
        "num_test": metrics["test"]["num_images"],
    }


def main() -> None:
    """Measure all sets and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with antsbees, trash6 and photos9")
    parser.add_argument("--time", default="2m")
    parser.add_argument("--weights", type=Path, help="of MobileNetV2 without its top")
    parser.add_argument("--only", nargs="*", help="some of the sets")
    parser.add_argument("--name", help="of the results file, after time-budget-; else the time")
    parser.add_argument("--work", type=Path, default=Path("runs/time-budget"))
    arguments = parser.parse_args()
    work, data = arguments.work, arguments.data
    sets = {
        "antsbees-200": lambda: few(data / "antsbees", work / "antsbees-200", 200),
        "antsbees": lambda: data / "antsbees",
        "trash6": lambda: data / "trash6",
        "photos9": lambda: data / "photos9",
        "crops": lambda: make(data / "photos9", work / "crops", crops, ".jpg"),
        "crops-150": lambda: few(
            make(data / "photos9", work / "crops-150-all", lambda picture: crops(picture, 150), ".jpg"),
            work / "crops-150",
            17_000,
        ),
        "quarters": lambda: make(data / "photos9", work / "quarters", quarters, ".png"),
    }
    ways = {"from scratch": ["--recipe", "fast"]}
    if arguments.weights:
        ways |= {"pretrained": ["--recipe", "transfer"], "race": []}
    budget, rows = parse_duration(arguments.time), {}
    for name, photos in sets.items():
        if arguments.only and name not in arguments.only:
            continue
        for way, options in ways.items():
            result = measure(photos(), ["--time", arguments.time, *options], budget, work, arguments.weights)
            rows[f"{name}, {way}"] = result
            print(f"{name}, {way}: {result}", flush=True)
    worst = max(row["ratio"] for row in rows.values())
    name = f"time-budget-{arguments.name or arguments.time}"
    path = write_result(name, {"budget_seconds": budget, "worst_ratio": worst, "runs": rows})
    print(f"worst ratio to the budget: {worst:.3f}\nWritten to {path}")


if __name__ == "__main__":
    main()
