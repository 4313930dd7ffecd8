"""A race beside each of its recipes alone, and beside peers, in the same seconds on the same photos and cores.

    python benchmarks/race.py ../shared/data/trash6 --time 3m --weights FILE --seeds 3

Each way is a process of its own with an empty cache, timed from outside, on the same split; the weights of MobileNetV2
are at hand for the race, for `--recipe transfer`, and for Keras' and fastai's own transfer (the same numbers, in
torch), and for nobody else. Peers get the whole time on the very photos of the split. Differences are paired over seeds
and photos; the better of `fast` and `transfer` alone is the one with the higher mean here, which favours it. Finished
runs in --work are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from machine import write_result
from tellapart.evaluation.intervals import mean_interval
from tellapart.evaluation.multi_seed import compare_over_seeds
from tellapart.proportions import wilson
from tellapart.run_folder import RunFolder
from tellapart.settings import parse_duration
from transfer import lay_out

WAYS: dict[str, list[str]] = {"race": [], "fast": ["--recipe", "fast"], "transfer": ["--recipe", "transfer"]}
PEERS = Path(__file__).parent / "peers"


def train(photos: Path, options: list[str], seed: int, run: Path, weights: Path) -> dict[str, Any]:
    """Train once, timed from outside, or read what an earlier call left."""
    if not (run / "wall_seconds.json").exists():
        cache = run.parent / f"{run.name}-cache"
        for folder in (run, cache):
            shutil.rmtree(folder, ignore_errors=True)
        (cache / "weights").mkdir(parents=True)
        (cache / "weights" / "mobilenet_v2.weights.h5").symlink_to(weights)
        command = [sys.executable, "-m", "tellapart", "train", str(photos), *options, "--out", str(run)]
        start = time.time()
        environment = {**os.environ, "TELLAPART_CACHE": str(cache)}
        subprocess.run([*command, "--set", f"train.seed={seed}"], env=environment, check=True)
        (run / "wall_seconds.json").write_text(json.dumps(time.time() - start))
        shutil.rmtree(cache)
    metrics = json.loads((run / "metrics.json").read_text())
    return {
        "seed": seed,
        "test": metrics["test"]["accuracy"],
        "validation": metrics["validation"]["accuracy"],
        "wall_seconds": json.loads((run / "wall_seconds.json").read_text()),
        "peak_memory_mb": metrics["peak_memory_mb"],
        "race": metrics.get("race"),
    }


def peer(command: list[str], run: Path, seconds: float, seed: int, saved_path: Path) -> dict[str, Any]:
    """Let a peer train on the photos of a run for as long."""
    if not saved_path.exists():
        with tempfile.TemporaryDirectory() as folder:
            lay_out(run, Path(folder))
            done = subprocess.run(
                [command[0], command[1], folder, *command[2:], "--seconds", str(seconds), "--seed", str(seed)],
                check=True, capture_output=True, text=True,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )  # fmt: skip
        saved_path.write_text(done.stdout.strip().splitlines()[-1])
    return json.loads(saved_path.read_text()) | {"seed": seed}


def summary(runs: list[dict[str, Any]], num_test: int) -> dict[str, Any]:
    """Return the mean over the seeds with its intervals, and the runs."""
    accuracies = np.array([run["test"] for run in runs])
    over_photos = wilson(float(accuracies.mean()) * num_test, num_test)
    values: dict[str, Any] = {
        "test": float(accuracies.mean()),
        "interval_over_test_photos": [over_photos.low, over_photos.high],
    }
    if len(runs) > 1:
        over_seeds = mean_interval(accuracies)
        values["interval_over_seeds"] = [over_seeds.low, over_seeds.high]
    return values | {"runs": runs}


def right(runs: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    """Return (num_seeds, num_test) of each way: whether it named each test photo that all of them have rightly.

    A way that had no time for all photos has left some out.
    """
    answers_of = {way: [answers(run) for run in places] for way, places in runs.items()}
    common = set.intersection(*(set(answer.index) for answers_ in answers_of.values() for answer in answers_))
    order = sorted(common)
    return {
        way: np.stack([answer[order].to_numpy(bool) for answer in answers_]) for way, answers_ in answers_of.items()
    }


def answers(run: Path) -> pd.Series:
    """Return whether each test photo was named rightly, by its digest."""
    photos, classes, probabilities = RunFolder(run).predictions()
    predicted = np.asarray(classes, object)[probabilities.argmax(axis=1)]
    table = pd.Series(predicted == photos["label"].to_numpy(object), photos["sha256"])[
        (photos["split"] == "test").to_numpy()
    ]
    return table[~table.index.duplicated()]


def groups(runs: dict[str, list[Path]], run: Path) -> np.ndarray:
    """Return (num_test,) the group of each test photo that all runs have, as one of them knows it."""
    common = set.intersection(*(set(answers(other_run).index) for places in runs.values() for other_run in places))
    photos = RunFolder(run).readable().drop_duplicates("sha256").set_index("sha256")
    return photos["unit"][sorted(common)].to_numpy(np.int64)


def main() -> None:
    """Run every way and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--time", required=True, help="as in tellapart train --time")
    parser.add_argument("--weights", type=Path, required=True, help="of MobileNetV2 without its top")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--keras", action="store_true", help="stock Keras too, from scratch and with the weights")
    parser.add_argument("--torch", type=Path, help="a Python with fastai and Ultralytics: they too")
    parser.add_argument("--work", type=Path, default=Path("runs/race"))
    arguments = parser.parse_args()
    seconds, weights = parse_duration(arguments.time), arguments.weights.resolve()
    name = f"{arguments.photos.name}-{arguments.time}"
    arguments.work.mkdir(parents=True, exist_ok=True)
    peers: dict[str, list[str]] = {}
    if arguments.keras:
        peers["keras, pretrained"] = [sys.executable, str(PEERS / "keras_transfer.py"), "--weights", str(weights)]
        peers["keras, from scratch"] = [sys.executable, str(PEERS / "keras_scratch.py")]
    if arguments.torch:
        # Beside the runs: the peer's environment has no Keras to read the file with.
        in_torch = arguments.work.resolve() / "mobilenet_v2.npz"
        if not in_torch.exists():
            subprocess.run([sys.executable, str(PEERS / "mobilenet_v2_torch.py"), str(weights), in_torch], check=True)
        transfer = [str(arguments.torch), str(PEERS / "fastai_transfer.py"), "--weights", str(in_torch)]
        peers["fastai, pretrained"] = transfer
        for file in ("fastai_classify", "ultralytics_classify"):
            peers[f"{file.partition('_')[0]}, from scratch"] = [str(arguments.torch), str(PEERS / f"{file}.py")]

    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in [*arguments.ways, *peers]}
    places: dict[str, list[Path]] = {way: [] for way in arguments.ways}
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            run = arguments.work / f"{name}-{way}-{seed}"
            runs[way].append(train(arguments.photos, ["--time", arguments.time, *WAYS[way]], seed, run, weights))
            places[way].append(run)
        for who, command in peers.items():
            saved_path = arguments.work / f"{name}-{who.replace(', ', '-').replace(' ', '-')}-{seed}.json"
            runs[who].append(peer(command, places[arguments.ways[0]][-1], seconds, seed, saved_path))
    table = right(places)
    num_test = next(iter(table.values())).shape[1]
    values: dict[str, Any] = {
        "command": f"tellapart train {arguments.photos.name} --time {arguments.time}",
        "budget_seconds": seconds,
        "num_test": num_test,
        "worst_ratio_to_the_budget": max(run["wall_seconds"] for way in places for run in runs[way]) / seconds,
        **{way: summary(way_runs, num_test) for way, way_runs in runs.items()},
    }
    alone = [way for way in places if way != "race"]
    if "race" in places and alone:
        better = max(alone, key=lambda way: values[way]["test"])
        estimate = compare_over_seeds(table[better], table["race"], groups(places, places["race"][0]))
        values["race_less_the_better"] = {
            "better": better,
            "points": 100 * estimate.value,
            "interval": [100 * estimate.interval.low, 100 * estimate.interval.high],
            "p_value": estimate.p_value,
        }
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result(f'race-{name}', values)}")


if __name__ == "__main__":
    main()
