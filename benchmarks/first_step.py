"""From the start of the command to the first step of training, with an empty cache and with a full one.

    python benchmarks/first_step.py ../shared/data/photos9 --weights FILE

`tellapart train PHOTOS --time 10m --recipe fast`, `--recipe reference`, and the race that `tellapart train PHOTOS` is,
whose first work on photos is the features of its head. Each is a process of its own, timed from before it is started
until its first progress is reported, and then killed; the cache that the first of a pair leaves is what the second
finds. Stock Keras' tutorial beside them decodes while it trains: it has no cache, and begins sooner for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import write_result
from tellapart.preparation import prepared_folder
from tellapart.records import Observer
from tellapart.settings import load_recipe
from transfer import lay_out

PEER = Path(__file__).parent / "peers" / "keras_scratch.py"
WAYS = {"fast": ["fast", "600"], "reference": ["reference", ""], "race": ["", "600"]}
"""Recipe and time of each; none: as in `tellapart train`."""

ONCE = """
import os, sys, time
import tellapart
from tellapart.records import Observer
photos, out, recipe, seconds = sys.argv[1:]
def progress(task, done, total):
    if done and task.startswith(("epoch", "looking at the photos")):
        print(time.time(), flush=True)
        os._exit(0)
time_budget = float(seconds) if seconds else None
tellapart.train(photos, recipe=recipe or None, time_budget=time_budget, out=out, observer=Observer(progress))
"""


def seconds_to_first_step(photos: Path, way: str, cache: Path) -> float:
    """Start a training, and return the seconds until its first step was done."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-c", ONCE, photos, f"{folder}/run", *WAYS[way]], check=True, capture_output=True,
            text=True, env={**os.environ, "TELLAPART_CACHE": str(cache)},
        )  # fmt: skip
    return float(done.stdout.strip().splitlines()[-1]) - began


def main() -> None:
    """Measure in turn and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="of MobileNetV2 without its top, for the race")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place:
        prepared_folder(arguments.photos, Path(place) / "table", load_recipe("fast"), Observer())
        lay_out(Path(place) / "table", Path(place) / "photos")
        for _ in range(arguments.rounds):
            found: dict[str, float] = {}
            for way in WAYS:
                cache = Path(place) / "cache"
                (cache / "weights").mkdir(parents=True)
                (cache / "weights" / "mobilenet_v2.weights.h5").symlink_to(arguments.weights.resolve())
                for state in ("cold", "warm"):
                    found[f"{way}, {state}"] = seconds_to_first_step(arguments.photos, way, cache)
                shutil.rmtree(cache)
            done = subprocess.run(
                [sys.executable, str(PEER), f"{place}/photos", "--seconds", "1"], check=True, capture_output=True,
                text=True,
            )  # fmt: skip
            found["keras"] = json.loads(done.stdout.strip().splitlines()[-1])["first_step_seconds"]
            rounds.append(found)
            print(found, flush=True)
    medians = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    values = {
        "photos": arguments.photos.name,
        "median_seconds": medians,
        "ratio_to_keras": {name: seconds / medians["keras"] for name, seconds in medians.items() if name != "keras"},
        "rounds": rounds,
    }
    print(f"{json.dumps(values['median_seconds'])}\nWritten to {write_result('first-step', values)}")


if __name__ == "__main__":
    main()
