"""What MixUp, CutMix, RandAugment and random erasing cost at 224 px, beside Keras' layers in the same run.

    python benchmarks/mixing.py --rounds 15

Processor time on batches of 32, in µs per picture: medians over rounds in which all take turns, and ratios within
the rounds. Every picture is mixed and erased, and RandAugment applies two operations. Keras' layers are compiled by
tf.function as in a dataset's map, on float32 pictures. The floors are the fastest passes over memory that read and
write as many bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from machine import write_result
from tellapart.data.augment import change_levels, draw_changes, warp, warp_matrix
from tellapart.data.decode import decode_square
from tellapart.data.drawn import CLASSES, encoded_picture
from tellapart.data.mix import draw_mixing, erase, mix
from tellapart.data.randaugment import OPERATIONS, randaugment
from tellapart.randomness import generator
from tellapart.settings import Augment

IMAGE_PX = 224
BATCH_SIZE = 32
NUM_OPS = 2
Calls = dict[str, Callable[[], object]]


def drawn_batch() -> tuple[np.ndarray, np.ndarray]:
    """Return (32, 224, 224, 3) uint8 drawn pictures and their one-hot targets."""
    classes = list(CLASSES)
    names = [classes[number % len(classes)] for number in range(BATCH_SIZE)]
    pictures = [decode_square(encoded_picture(0, name, n)[1], IMAGE_PX) for n, name in enumerate(names)]
    targets = np.eye(len(classes), dtype=np.float32)[[classes.index(name) for name in names]]
    return np.stack(pictures), targets


def ours(source: np.ndarray, targets: np.ndarray) -> Calls:
    """Return our calls, each of which changes a batch in place."""
    rng, settings = generator(0, "benchmark"), Augment()
    images, other = source.copy(), source.copy()

    def on_each(change: Callable[[np.ndarray], object]) -> None:
        for image in images:
            change(image)

    def augment() -> None:
        changes = draw_changes(settings, rng, len(source))
        matrices = warp_matrix(changes, IMAGE_PX, IMAGE_PX)
        for number, picture in enumerate(source):
            warp(picture, matrices[number], IMAGE_PX, out=images[number])
            change_levels(images[number], changes.contrast[number], changes.brightness[number])

    def mixed(how: Augment) -> None:
        mix(images, targets, draw_mixing(len(images), IMAGE_PX, how, rng))

    return {
        "augment": augment,
        "MixUp": lambda: mixed(Augment(mixup=0.2)),
        "CutMix": lambda: mixed(Augment(cutmix=1.0)),
        "RandAugment": lambda: on_each(lambda image: randaugment(image, NUM_OPS, 0.3, rng)),
        "RandomErasing": lambda: on_each(lambda image: erase(image, rng)),
        "floor: two read, one written": lambda: np.bitwise_and(images, other, out=images),
        "floor: one copied": lambda: np.copyto(images, other),
    }


def operations(source: np.ndarray) -> Calls:
    """Return each operation of RandAugment alone, on a batch."""

    def on_all(name: str) -> None:
        for image in images:
            OPERATIONS[name](image, 0.3)

    images = source.copy()
    return {name: lambda name=name: on_all(name) for name in OPERATIONS}


def of_keras(source: np.ndarray, targets: np.ndarray) -> Calls:
    """Return the compiled layers, each on a batch of float32 pictures."""
    images, labels = tf.constant(source.astype(np.float32)), tf.constant(targets)
    layers = {
        "augment": keras.Sequential(
            [
                keras.layers.RandomFlip("horizontal"),
                keras.layers.RandomRotation(0.2),
                keras.layers.RandomZoom(0.2),
                keras.layers.RandomContrast(0.2),
            ]
        ),
        "MixUp": keras.layers.MixUp(alpha=0.2),
        "CutMix": keras.layers.CutMix(factor=1.0),
        "RandAugment": keras.layers.RandAugment(num_ops=NUM_OPS, factor=0.3),
        "RandomErasing": keras.layers.RandomErasing(factor=(1.0, 1.0)),
    }

    def call(name: str) -> Callable[[], object]:
        if name in ("MixUp", "CutMix"):
            compiled = tf.function(lambda x, y: layers[name]({"images": x, "labels": y}, training=True)["images"])
            return lambda: np.asarray(compiled(images, labels))
        compiled = tf.function(lambda x: layers[name](x, training=True))
        return lambda: np.asarray(compiled(images))

    return {name: call(name) for name in layers}


def measure(contestants: dict[str, Calls], num_rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return µs of processor time per picture, a number for each round; the first calls are not counted."""
    times = {contestant: {name: [] for name in calls} for contestant, calls in contestants.items()}
    for number in range(-2, num_rounds):
        for contestant, calls in contestants.items():
            for name, call in calls.items():
                start = time.process_time()
                call()
                spent = 1e6 * (time.process_time() - start) / BATCH_SIZE
                if number >= 0:
                    times[contestant][name].append(spent)
    return times


def main() -> None:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    batch = drawn_batch()
    contestants = {"ours": ours(*batch), "keras": of_keras(*batch), "operations": operations(batch[0])}
    times = measure(contestants, arguments.rounds)
    medians = {
        contestant: {name: statistics.median(us) for name, us in calls.items()} for contestant, calls in times.items()
    }
    ratios = {
        name: statistics.median(theirs / mine for theirs, mine in zip(layer_times, times["ours"][name], strict=True))
        for name, layer_times in times["keras"].items()
    }
    print(f"{'µs per picture':30}{'ours':>9}{'Keras':>9}{'ratio':>8}")
    for name, us in medians["ours"].items():
        peer = f"{medians['keras'][name]:9.0f}{ratios[name]:8.1f}" if name in ratios else ""
        print(f"{name:30}{us:9.1f}{peer}")
    for name, us in medians["operations"].items():
        print(f"{name:30}{us:9.1f}")
    title = (
        f"processor time per picture of {IMAGE_PX} px in batches of {BATCH_SIZE}, RandAugment with {NUM_OPS} operations"
    )
    values = {"what": title, "rounds": arguments.rounds, "us_per_picture": medians, "ratio_of_keras": ratios}
    print(f"Written to {write_result('mixing', values)}")


if __name__ == "__main__":
    main()
