"""From files to a fitted and measured head on pretrained features: tellapart beside Keras and scikit-learn.

    python benchmarks/features.py ../shared/data/photos9 --weights FILE

17,000 crops of 150 px, cut from the photos. Tellapart runs as a user runs it, timed from outside, with an empty cache;
the peer computes the same network's features of the very photos of its split, and fits its head to them. In turn, three
rounds; CPU time is that of the process and its children. What tellapart does beside (checks, intervals, unknown photos)
is in its time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from machine import write_result
from time_budget import crops, make
from transfer import lay_out

PEER = Path(__file__).parent / "peers" / "keras_features.py"
IMAGE_PX, CROP_PX, COUNT = 160, 150, 17_000


def timed(command: list[str], environment: dict[str, str] | None = None) -> tuple[dict[str, float], str]:
    """Run a command and return its seconds, of the wall and of processors, and what it printed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_seconds": wall, "processor_seconds": cpu}, done.stdout


def ours(photos: Path, weights: Path, run: Path) -> dict[str, float]:
    """Train a head with an empty cache."""
    cache = run.with_name(f"{run.name}-cache")
    for folder in (run, cache):
        shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "tellapart", "train", str(photos), "--recipe", "transfer", "--out", str(run),
        "--set", f"model.weights={weights}", "--set", "model.unfreeze=0", "--set", f"data.image_px={IMAGE_PX}",
    ]  # fmt: skip
    seconds, _ = timed(command, {**os.environ, "TELLAPART_CACHE": str(cache)})
    shutil.rmtree(cache)
    return seconds | {"test": json.loads((run / "metrics.json").read_text())["test"]["accuracy"]}


def main() -> None:
    """Measure both in turn and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/features"))
    arguments = parser.parse_args()
    weights, photos = arguments.weights.resolve(), arguments.work / "photos"
    every = make(arguments.photos, arguments.work / "crops", lambda picture: crops(picture, CROP_PX), ".jpg")
    files = sorted(every.glob("*/*.jpg"))
    for position in np.linspace(0, len(files) - 1, COUNT).astype(int):
        link = photos / files[position].parent.name / files[position].name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(files[position].resolve())
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(arguments.rounds):
        run = arguments.work / f"run-{number}"
        found = {"tellapart": ours(photos, weights, run)}
        with tempfile.TemporaryDirectory() as folder:
            lay_out(run, Path(folder))
            command = [sys.executable, str(PEER), folder, "--weights", str(weights), "--image-px", str(IMAGE_PX)]
            seconds, printed = timed(command)
        found["keras"] = seconds | json.loads(printed.strip().splitlines()[-1])
        rounds.append(found)
        print(found, flush=True)
    ratios = [row["keras"]["wall_seconds"] / row["tellapart"]["wall_seconds"] for row in rounds]
    medians = {
        name: {key: statistics.median(row[name][key] for row in rounds) for key in rounds[0][name]}
        for name in ("tellapart", "keras")
    }
    values = {"photos": COUNT, "image_px": IMAGE_PX, "median": medians, "ratio": ratios, "rounds": rounds}
    path = write_result("features", values | {"median_ratio": statistics.median(ratios)})
    print(f"{medians}\nKeras takes {statistics.median(ratios):.2f} times as long. Written to {path}")


if __name__ == "__main__":
    main()
