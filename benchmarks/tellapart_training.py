"""Times tellapart as benchmarks/throughput.py times its peers: decoding into an empty cache, augmentation, `fit`.

Prints one JSON line. Run it as: python benchmarks/tellapart_training.py FOLDER --steps 40
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tellapart.data.batches import TrainingBatches
from tellapart.data.cache import open_pictures
from tellapart.data.image_file import read_file
from tellapart.data.scan import find_photos
from tellapart.files import sha256
from tellapart.settings import Recipe
from tellapart.training.network import compiled
from tellapart.training.schedule import Segment
from tellapart.training.timing import choose_precision

UNCOUNTED = 6
"""Steps that come first: they compile."""


class Clock(keras.callbacks.Callback):
    """Notes the wall and processor time at the end of each batch, once its loss is known."""

    def __init__(self) -> None:
        super().__init__()
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the times."""
        float(logs["loss"])
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=40, help="steps of 32 pictures that are timed")
    arguments = parser.parse_args()
    recipe = Recipe()
    root, frame, _ = find_photos(arguments.folder)
    classes = sorted(frame["label"].unique())
    frame = frame.sample(min(len(frame), (arguments.steps + UNCOUNTED) * 32), random_state=0)
    paths = [root / path for path in frame["path"]]
    start = time.perf_counter()
    digests = [sha256(read_file(path)) for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        pictures = open_pictures(paths, digests, 224, folder=Path(folder), limit_bytes=10**11)
        decoding = (time.perf_counter() - start) / len(paths)
        targets = frame["label"].map({name: i for i, name in enumerate(classes)}).to_numpy()
        batches = TrainingBatches(
            pictures, np.arange(len(paths)), targets, num_classes=len(classes), augment=recipe.augment,
            batch_size=32, image_px=224, seed=0, workers=os.cpu_count() or 1,
        )  # fmt: skip
        result = {"first_read_images_per_second": 1 / decoding} | time_augmentation(batches)
        result |= time_training(recipe, batches, len(classes))
    # A first epoch decodes all photos, then trains on them; the next ones only train.
    result["first_epoch_images_per_second"] = 1 / (decoding + 1 / result["images_per_second"])
    print(json.dumps(result))


def time_augmentation(batches: TrainingBatches) -> dict[str, Any]:
    """Return milliseconds per picture of reading and augmenting, wall and processor."""
    start, cpu = time.perf_counter(), time.process_time()
    for index in range(10):
        batches[index]
    return {
        "augment_ms_per_image": (time.perf_counter() - start) / 0.32,
        "augment_cpu_ms_per_image": (time.process_time() - cpu) / 0.32,
    }


def time_training(recipe: Recipe, batches: TrainingBatches, num_classes: int) -> dict[str, Any]:
    """Return the figures of one epoch inside `fit`, its first steps left out."""
    precision = choose_precision("auto", lambda name: compiled(recipe, num_classes, name)[0], batches)
    model, rate = compiled(recipe, num_classes, precision.name)
    rate.enter(Segment(224, 1, (0.0, 1.0)), 0, 10_000)
    clock = Clock()
    model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
    images = 32 * (len(clock.wall) - UNCOUNTED)
    return {
        "images_per_second": images / (clock.wall[-1] - clock.wall[UNCOUNTED - 1]),
        "cpu_seconds_per_image": (clock.cpu[-1] - clock.cpu[UNCOUNTED - 1]) / images,
        "precision": precision.name,
        "precision_why": precision.reason,
    }


if __name__ == "__main__":
    main()
