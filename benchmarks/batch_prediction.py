"""`tellapart predict BUNDLE FOLDER --out table` beside a bare loop of decoding and the same runtime.

    python benchmarks/batch_prediction.py BUNDLE ../shared/data/photos9

The bare loop decodes with OpenCV in threads and runs batches of 32; it writes nothing, handles no damaged file
and measures no quality. Rounds alternate. Memory is that of the process after the first tenth and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from machine import write_result
from tellapart.bundles.predictor import open_classifier
from tellapart.bundles.tables import predict_files
from tellapart.data.listing import image_files

BATCH = 32


def bare_loop(predict, files: list[Path], side: int) -> None:
    """Decode and predict, nothing else; the next batch is decoded while one is in the network."""

    def decoded(path: Path) -> np.ndarray:
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
        return cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(decoded, path) for path in files[:BATCH]]
        for start in range(BATCH, len(files) + BATCH, BATCH):
            ahead = [pool.submit(decoded, path) for path in files[start : start + BATCH]]
            predict(np.stack([part.result() for part in waiting]))
            waiting = ahead


def resident_mb() -> float:
    """Return the memory of this process in MB (10^6 bytes)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    files, classifier = image_files([arguments.photos]), open_classifier(arguments.bundle)
    seconds: dict[str, list[float]] = {"bare loop": [], "without quality": [], "with quality": []}
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:

        def note(task: str, done: int, total: int) -> None:
            if done >= total / 10 and not memory:
                memory.append(resident_mb())

        predict_files(classifier, files[:2000], Path(folder) / "warm.csv")
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            bare_loop(classifier.probabilities, files, classifier.image_px)
            seconds["bare loop"].append(time.perf_counter() - start)
            for name, with_quality in (("without quality", False), ("with quality", True)):
                start = time.perf_counter()
                predict_files(classifier, files, Path(folder) / "out.csv", with_quality=with_quality, progress=note)
                seconds[name].append(time.perf_counter() - start)
    rate = {name: len(files) / statistics.median(values) for name, values in seconds.items()}
    values = {
        "what": f"{len(files):,} files of {arguments.photos.name} at {classifier.image_px} px, {classifier.runtime}",
        "images_per_second": rate,
        "of_the_bare_loop": {name: value / rate["bare loop"] for name, value in rate.items()},
        "memory_mb": {"first tenth": memory[0], "end": resident_mb()},
        "seconds": seconds,
    }
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('batch-prediction', values)}")


if __name__ == "__main__":
    main()
