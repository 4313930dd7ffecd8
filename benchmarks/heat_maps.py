"""Grad-CAM of 256 photos, beside the forward pass and beside a loop over single images as Keras' documentation has it.

    python benchmarks/heat_maps.py RUN ../shared/data/photos9

RUN is a finished run folder. The peer is its own process; rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from machine import write_result
from tellapart.data.decode import decode_square
from tellapart.data.image_file import read_file
from tellapart.data.scan import find_photos
from tellapart.evaluation.predict import load, predict_arrays
from tellapart.explain.maps import METHODS

PEER = Path(__file__).parent / "peers" / "keras_grad_cam.py"


def timed(function, *arguments) -> tuple[float, float]:
    """Return the seconds of wall clock and of processor that a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    classifier = load(arguments.run)
    root, frame, _ = find_photos(arguments.photos)
    chosen = frame.sample(arguments.images, random_state=0)["path"]
    images = np.stack([decode_square(read_file(root / path), classifier.image_px) for path in chosen])
    targets = predict_arrays(classifier.model, images).argmax(axis=1)
    for method in METHODS.values():
        method(classifier.model, images[:40], targets[:40])  # compiles
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("forward", *METHODS, "keras loop")}
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        command = [sys.executable, str(PEER), str(arguments.run / "model.keras"), str(Path(folder) / "images.npy")]
        for number in range(arguments.rounds):
            rounds["forward"].append(timed(predict_arrays, classifier.model, images))
            for name, method in METHODS.items():
                if number == 0 or name == "grad-cam":  # the others take up to half a minute
                    rounds[name].append(timed(method, classifier.model, images, targets))
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peer = json.loads(done.stdout.strip().splitlines()[-1])
            rounds["keras loop"].append((peer["seconds"], peer["cpu_seconds"]))
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in rounds.items()
    }
    values = {
        "what": f"heat maps of {arguments.images} photos at {classifier.image_px} px",
        "median_seconds": {name: wall for name, (wall, _) in medians.items()},
        "median_cpu_seconds": {name: cpu for name, (_, cpu) in medians.items()},
        "grad_cam_over_forward": statistics.median(
            a[0] / b[0] for a, b in zip(rounds["grad-cam"], rounds["forward"], strict=True)
        ),
        "keras_loop_over_grad_cam": statistics.median(
            a[0] / b[0] for a, b in zip(rounds["keras loop"], rounds["grad-cam"], strict=True)
        ),
        "rounds": rounds,
    }
    print(json.dumps({name: value for name, value in values.items() if name != "rounds"}, indent=2))
    print(f"Written to {write_result('heat-maps', values)}")


if __name__ == "__main__":
    main()
