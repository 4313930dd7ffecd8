"""Test accuracy of a recipe within a time, over several seeds: `tellapart train PHOTOS --recipe R --time T`.

    python benchmarks/accuracy.py ../shared/data/photos9 --recipe fast --time 10m --seeds 3

Each seed is its own process, with an empty cache of decoded pictures, so that the time is from files to metrics.
Runs that are finished are kept in --work and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from machine import write_result
from tellapart.evaluation.intervals import mean_interval
from tellapart.proportions import wilson
from tellapart.settings import parse_duration


def train(photos: Path, options: list[str], seed: int, run: Path) -> dict:
    """Train once, timed from the outside, or read what an earlier call left."""
    if not (run / "metrics.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        cache = run.parent / f"{run.name}-cache"
        shutil.rmtree(cache, ignore_errors=True)
        command = [sys.executable, "-m", "tellapart", "train", str(photos), *options, "--out", str(run)]
        start = time.time()
        environment = {**os.environ, "TELLAPART_CACHE": str(cache)}
        subprocess.run([*command, "--set", f"train.seed={seed}"], env=environment, check=True)
        (run / "wall_seconds.json").write_text(json.dumps(time.time() - start))
        shutil.rmtree(cache, ignore_errors=True)
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        "seed": seed,
        "test": metrics["test"]["accuracy"],
        "validation": metrics["validation"]["accuracy"],
        "num_test": metrics["test"]["num_images"],
        "wall_seconds": json.loads((run / "wall_seconds.json").read_text()),
        "seconds_training": metrics["seconds_training"],
        "images_per_second": metrics["images_per_second"],
        "peak_memory_mb": metrics["peak_memory_mb"],
        "epochs": len((run / "history.csv").read_text().splitlines()) - 1,
        "precision": json.loads((run / "environment.json").read_text())["precision"],
    }


def main() -> None:
    """Run all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--time", default="", help="time budget, as in tellapart train --time")
    parser.add_argument("--recipe", default="", help="recipe instead of a budget")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--note", default="", help="what a reader of the result must know")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"))
    arguments = parser.parse_args()
    setting = arguments.time or arguments.recipe or "reference"
    options = ["--time", arguments.time] if arguments.time else []
    options += ["--recipe", arguments.recipe] if arguments.recipe else []
    name = f"accuracy-{arguments.photos.name}-{Path(setting).stem}"
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = [
        train(arguments.photos, options, seed, arguments.work / f"{name}-{seed}") for seed in range(arguments.seeds)
    ]
    accuracies = np.array([run["test"] for run in runs])
    right = sum(run["test"] * run["num_test"] for run in runs)
    over_seeds, pooled = mean_interval(accuracies), wilson(right / len(runs), runs[0]["num_test"])
    values = {
        "command": f"tellapart train {arguments.photos.name} {' '.join(options)}",
        "budget_seconds": parse_duration(arguments.time) if arguments.time else None,
        "mean_test_accuracy": float(accuracies.mean()),
        "interval_over_seeds": [over_seeds.low, over_seeds.high] if len(runs) > 1 else None,
        "interval_over_test_photos": [pooled.low, pooled.high],
        "runs": runs,
        "note": arguments.note,
    }
    path = write_result(name, values)
    print(json.dumps(values, indent=2))
    if values["budget_seconds"]:
        print(f"ratio to the budget: {max(run['wall_seconds'] for run in runs) / values['budget_seconds']:.3f}")
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
