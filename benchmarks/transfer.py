"""Test accuracy with MobileNetV2 within a time, beside Keras' own way on the same split of the same photos.

    python benchmarks/transfer.py ../shared/data/photos9 --weights FILE --time 5m

Tellapart runs as a user runs it, with an empty cache; then the peer gets the seconds that tellapart took, and the very
photos of its train, validation and test sides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from accuracy import train
from machine import write_result
from tellapart.evaluation.intervals import mean_interval
from tellapart.proportions import wilson
from tellapart.run_folder import RunFolder

PEER = Path(__file__).parent / "peers" / "keras_transfer.py"


def lay_out(run: Path, folder: Path) -> None:
    """Link the photos of a run into train, validation and test."""
    root = RunFolder(run).root
    for number, row in enumerate(RunFolder(run).readable().itertuples()):
        class_folder = folder / row.split / row.label
        class_folder.mkdir(parents=True, exist_ok=True)
        (class_folder / f"{number}{Path(row.path).suffix.lower()}").symlink_to((root / row.path).resolve())


def main() -> None:
    """Run both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--time", default="", help="time budget, as in tellapart train --time")
    parser.add_argument("--recipe", default="transfer")
    parser.add_argument("--set", nargs="*", default=[], help="further settings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"))
    arguments = parser.parse_args()
    options = ["--recipe", arguments.recipe, "--set", f"model.weights={arguments.weights.resolve()}"]
    options += ["--time", arguments.time] if arguments.time else []
    for change in arguments.set:
        options += ["--set", change]
    arguments.work.mkdir(parents=True, exist_ok=True)
    pairs = [pair(arguments, options, seed) for seed in range(arguments.seeds)]
    values = {
        "photos": arguments.photos.name,
        "command": f"tellapart train {arguments.photos.name} {' '.join(options[:2])} --set model.weights=FILE",
        **{name: summary([row[name] for row in pairs]) for name in ("tellapart", "keras")},
    }
    gained = np.array([row["tellapart"]["test"] - row["keras"]["test"] for row in pairs])
    values["difference"] = {"mean": float(gained.mean()), "of_each_seed": gained.tolist()}
    if len(gained) > 1:
        interval = mean_interval(gained)
        values["difference"]["interval_over_seeds"] = [interval.low, interval.high]
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result(f'transfer-{arguments.photos.name}', values)}")


def pair(arguments: argparse.Namespace, options: list[str], seed: int) -> dict[str, dict]:
    """Run both with one seed: first tellapart, then the peer for as long, on the same split."""
    run = arguments.work / f"transfer-{arguments.photos.name}-{seed}"
    ours = train(arguments.photos, options, seed, run)
    with tempfile.TemporaryDirectory() as folder:
        lay_out(run, Path(folder))
        command = [sys.executable, str(PEER), folder, "--weights", str(arguments.weights.resolve())]
        done = subprocess.run(
            [*command, "--seconds", str(ours["wall_seconds"]), "--seed", str(seed)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return {
        "tellapart": ours,
        "keras": json.loads(done.stdout.strip().splitlines()[-1]) | {"num_test": ours["num_test"]},
    }


def summary(runs: list[dict]) -> dict:
    """Return the mean over the seeds, with its interval over test photos, and the runs."""
    accuracy = float(np.mean([run["test"] for run in runs]))
    interval = wilson(accuracy * runs[0]["num_test"], runs[0]["num_test"])
    return {"test": accuracy, "interval_over_test_photos": [interval.low, interval.high], "runs": runs}


if __name__ == "__main__":
    main()
