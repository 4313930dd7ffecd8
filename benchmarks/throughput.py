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

PEERS = Path(__file__).parent / "peers"


def ours(photos: str, steps: int) -> dict:
    """Run in a child process: decode into an empty cache, then train `steps` steps inside `fit`."""
    script = f"""
import json, time, tempfile, os
import numpy as np
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
from pathlib import Path
import keras
from tellapart.data.batches import TrainingBatches
from tellapart.data.cache import open_pictures
from tellapart.data.scan import find_photos
from tellapart.data.decode import read_file
from tellapart.files import sha256
from tellapart.settings import Recipe
from tellapart.training.schedule import Segment
from tellapart.training.timing import choose_precision
from tellapart.training.train import _compiled

recipe = Recipe()
root, frame, _ = find_photos(Path({photos!r}))
frame = frame.sample(min(len(frame), {steps + 20} * 32), random_state=0)
paths = [root / path for path in frame["path"]]
start = time.perf_counter()
digests = [sha256(read_file(path)) for path in paths]
with tempfile.TemporaryDirectory() as folder:
    pictures = open_pictures(paths, digests, 224, folder=Path(folder), limit_bytes=10**11)
    decode = len(paths) / (time.perf_counter() - start)
    classes = sorted(frame["label"].unique())
    targets = frame["label"].map({{name: i for i, name in enumerate(classes)}}).to_numpy()
    batches = TrainingBatches(pictures, np.arange(len(paths)), targets, num_classes=len(classes),
        augment=recipe.augment, batch_size=32, image_px=224, seed=0, workers=os.cpu_count())
    start, cpu = time.perf_counter(), time.process_time()
    for index in range(10):
        batches[index]
    augment, augment_cpu = (time.perf_counter() - start) / 320, (time.process_time() - cpu) / 320
    precision = choose_precision("auto", lambda name: _compiled(recipe, len(classes), name)[0], batches)
    model, rate = _compiled(recipe, len(classes), precision.name)
    rate.enter(Segment(224, 1, (0.0, 1.0)), 0, 10000)
    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.wall, self.cpu = [], []
        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())
    clock = Clock()
    model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
wall, cpu = clock.wall, clock.cpu
images = 32 * (len(wall) - 6)
print(json.dumps({{"images_per_second": images / (wall[-1] - wall[5]),
    "cpu_seconds_per_image": (cpu[-1] - cpu[5]) / images, "precision": precision.name,
    "precision_ms_per_image": precision.milliseconds_per_image, "first_epoch_images_per_second": decode,
    "augment_ms_per_image": 1000 * augment, "augment_cpu_ms_per_image": 1000 * augment_cpu}}))
"""
    return run([sys.executable, "-c", script])


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


def main() -> None:
    """Run the rounds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--torch-python", default="", help="a Python that has PyTorch")
    arguments = parser.parse_args()
    steps = ["--image-px", "224", "--batch-size", "32", "--steps", str(arguments.steps)]
    contestants = {
        "tellapart": lambda: ours(str(Path(arguments.photos).resolve()), arguments.steps),
        "keras float32": lambda: run([sys.executable, str(PEERS / "stock_keras.py"), arguments.photos, *steps]),
        "keras reading": lambda: run(
            [sys.executable, str(PEERS / "stock_keras.py"), arguments.photos, *steps, "--no-training"]
        ),
        "keras augmentation": lambda: run([sys.executable, str(PEERS / "keras_augmentation.py")]),
    }
    if arguments.torch_python:
        for precision in ("bfloat16", "float32"):
            command = [arguments.torch_python, str(PEERS / "torch_compiled.py"), arguments.photos, *steps]
            contestants[f"torch {precision}"] = lambda command=command, precision=precision: run(
                [*command, "--precision", precision]
            )
    rounds: dict[str, list[dict]] = {name: [] for name in contestants}
    for number in range(arguments.rounds):
        for name, contestant in contestants.items():
            start = time.time()
            rounds[name].append(contestant())
            print(f"round {number + 1}, {name}: {time.time() - start:.0f} s {rounds[name][-1]}", flush=True)
    mine, floor = rounds["tellapart"], floor_ms_per_image()
    ratios = {
        name: statistics.median(
            a["images_per_second"] / b["images_per_second"] for a, b in zip(mine, other, strict=True)
        )
        for name, other in rounds.items()
        if name not in ("tellapart", "keras reading", "keras augmentation")
    }
    ratios["keras reading, first epoch with decoding"] = statistics.median(
        a["first_epoch_images_per_second"] / b["first_epoch_images_per_second"]
        for a, b in zip(mine, rounds["keras reading"], strict=True)
    )
    ratios["keras augmentation, processor time"] = statistics.median(
        b["cpu_ms_per_image"] / a["augment_cpu_ms_per_image"]
        for a, b in zip(mine, rounds["keras augmentation"], strict=True)
    )
    per_image = 1000 / statistics.median(a["images_per_second"] for a in mine)
    values = {
        "what": "reference network, 224 px, batch 32, augmentation on, from files on disk",
        "median_images_per_second": {
            name: statistics.median(a["images_per_second"] for a in found)
            for name, found in rounds.items()
            if "images_per_second" in found[0]
        },
        "ratio_of_tellapart": ratios,
        "floor": {**floor, "times_the_floor": per_image / floor["ms_per_image"]},
        "rounds": rounds,
    }
    path = write_result("throughput", values)
    print(
        json.dumps(
            {name: values[name] for name in ("median_images_per_second", "ratio_of_tellapart", "floor")}, indent=2
        )
    )
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
