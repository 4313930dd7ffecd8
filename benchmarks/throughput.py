"""Training throughput from files on disk, beside stock Keras and compiled PyTorch in the same run.

    python benchmarks/throughput.py ../shared/data/photos9 --rounds 3 --torch-python /path/to/python

The reference network at 224 px, batch 32, all augmentation on. The competitors run in turn, round by round, each
in its own process; medians over the rounds are reported, with the ratio to tellapart within each round. PyTorch
comes from another environment (`pip install torch==2.13.0 opencv-python-headless numpy`), or is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import write_result

HERE = Path(__file__).parent
PEERS = HERE / "peers"


def run(command: list[str]) -> dict:
    """Return the JSON line that a competitor prints."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command[:3])} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def floor_ms_per_image() -> dict:
    """Count the arithmetic of a training step and time a matrix product: no step can be faster than this."""
    forward = sum(px * px * 9 * cin * cout for px, cin, cout in ((224, 3, 32), (112, 32, 64), (56, 64, 128)))
    flop = 2 * (3 * forward - 224 * 224 * 9 * 3 * 32)  # forward, kernels' and inputs' gradients but the first input's
    script = """
import os, time; os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
rates = {}
for dtype in (tf.float32, tf.bfloat16):
    a = tf.cast(tf.random.normal((2048, 2048)), dtype)
    f = tf.function(lambda x: tf.matmul(x, x)); f(a).numpy()
    best = 1e9
    for _ in range(20):
        start = time.perf_counter(); f(a).numpy(); best = min(best, time.perf_counter() - start)
    rates[dtype.name] = 2 * 2048**3 / best
import json; print(json.dumps(rates))
"""
    rates = run([sys.executable, "-c", script])
    return {
        "gflop_per_image": flop / 1e9,
        "matmul_gflops": {name: rate / 1e9 for name, rate in rates.items()},
        "ms_per_image": 1000 * flop / max(rates.values()),
    }


def contestants(photos: Path, num_steps: int, torch_python: str) -> dict[str, list[str]]:
    """Return the commands, each of which prints a JSON line."""
    steps = ["--image-px", "224", "--batch-size", "32", "--steps", str(num_steps)]
    stock = [sys.executable, str(PEERS / "stock_keras.py"), str(photos), *steps]
    commands = {
        "tellapart": [sys.executable, str(HERE / "tellapart_training.py"), str(photos), "--steps", str(num_steps)],
        "keras float32": stock,
        "keras mixed_bfloat16": [*stock, "--precision", "mixed_bfloat16"],
        "keras reading": [*stock, "--no-training"],
        "keras augmentation": [sys.executable, str(PEERS / "keras_augmentation.py")],
    }
    if torch_python:
        for precision in ("bfloat16", "float32"):
            script = str(PEERS / "torch_compiled.py")
            commands[f"torch {precision}"] = [torch_python, script, str(photos), *steps, "--precision", precision]
    return commands


def summary(rounds: dict[str, list[dict]]) -> dict:
    """Return medians over the rounds, and medians of the ratios to tellapart within each round."""
    mine, floor = rounds["tellapart"], floor_ms_per_image()

    def ratio(other: str, ours: str, theirs: str = "images_per_second") -> float:
        return statistics.median(a[ours] / b[theirs] for a, b in zip(mine, rounds[other], strict=True))

    trained = [name for name, rows in rounds.items() if "images_per_second" in rows[0]]
    medians = {name: statistics.median(row["images_per_second"] for row in rounds[name]) for name in trained}
    cpu = ratio("keras augmentation", "augment_cpu_ms_per_image", "cpu_ms_per_image")
    ratios = {name: ratio(name, "images_per_second") for name in trained if name != "tellapart"}
    ratios |= {
        "keras float32, first epoch with decoding": ratio("keras float32", "first_epoch_images_per_second"),
        "keras reading, first read with hashing and writing": ratio(
            "keras reading", "first_read_images_per_second", "first_epoch_images_per_second"
        ),
        "keras augmentation, processor time": 1 / cpu,
    }
    times_the_floor = 1000 / medians["tellapart"] / floor["ms_per_image"]
    return {
        "median_images_per_second": medians,
        "ratio_of_tellapart": ratios,
        "floor": {**floor, "times_the_floor": times_the_floor},
    }


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--torch-python", default="", help="a Python that has PyTorch")
    arguments = parser.parse_args()
    commands = contestants(arguments.photos.resolve(), arguments.steps, arguments.torch_python)
    rounds: dict[str, list[dict]] = {name: [] for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            start = time.time()
            rounds[name].append(run(command))
            print(f"round {number + 1}, {name}: {time.time() - start:.0f} s {rounds[name][-1]}", flush=True)
    result = summary(rounds)
    title = "reference network, 224 px, batch 32, augmentation on, from files on disk"
    path = write_result("throughput", {"what": title, **result, "rounds": rounds})
    print(json.dumps(result, indent=2))
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
