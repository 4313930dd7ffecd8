"""How fast the recipe `fast` trains beside an earlier version of tellapart, in turns, and how busy the processors are.

    git worktree add /tmp/before 7b2c059
    python benchmarks/recipe_speed.py PHOTOS --before /tmp/before/src

Each run is `tellapart train PHOTOS --recipe fast` with few epochs: two at 48 px and three at 64 px of five. The first
epoch at each size compiles, and is left out. A run without a count fills the caches of both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import write_result

OWN = Path(__file__).parents[1] / "src"


def trained(source: Path, photos: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Train with the package in `source`; return images per second by size, and the share of busy processors."""
    run = folder / "run"
    environment = os.environ | {
        "PYTHONPATH": str(source), "TELLAPART_CACHE": str(folder / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3",
    }  # fmt: skip
    command = ["train", str(photos), "--recipe", "fast", "--set", f"train.epochs={epochs}", "--out", str(run)]
    subprocess.run([sys.executable, "-m", "tellapart", *command], env=environment, capture_output=True, check=True)
    metrics = json.loads((run / "metrics.json").read_text())
    with open(run / "history.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    images = metrics["images_per_second"] * metrics["seconds_training"] / len(rows)
    speeds = {}
    for size in sorted({row["image_px"] for row in rows}):
        later = [float(row["seconds"]) for row in rows if row["image_px"] == size][1:]
        speeds[size] = images / statistics.median(later)
    shutil.rmtree(run)
    busy = metrics["processor_seconds_training"] / metrics["seconds_training"] / (os.cpu_count() or 1)
    return {"images_per_second": speeds, "busy": busy, "validation": metrics["validation"]["accuracy"]}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="the folder src of an earlier version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in ("before", "now")}
        sources = {"before": arguments.before, "now": OWN}
        for number in range(arguments.rounds + 1):
            seen = {
                kind: trained(sources[kind], arguments.photos, folder, arguments.epochs if number else 4)
                for kind, folder in folders.items()
            }
            if number:
                rounds.append(seen)
                print(json.dumps(seen), flush=True)
    sizes = rounds[0]["now"]["images_per_second"]
    ratios = {
        size: [seen["now"]["images_per_second"][size] / seen["before"]["images_per_second"][size] for seen in rounds]
        for size in sizes
    }
    commit = subprocess.run(
        ["git", "-C", str(arguments.before), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    values = {
        "before": commit,
        "ratio": {size: {"median": statistics.median(found), "rounds": found} for size, found in ratios.items()},
        "busy": statistics.median(seen["now"]["busy"] for seen in rounds),
        "rounds": rounds,
    }
    print(json.dumps({name: values[name] for name in ("ratio", "busy")}, indent=2))
    print(f"Written to {write_result('recipe-speed', values)}")


if __name__ == "__main__":
    main()
