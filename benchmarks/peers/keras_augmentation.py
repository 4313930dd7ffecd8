"""Times Keras' four augmentation layers on one batch, compiled by tf.function as in a dataset's map.

Prints one JSON line. Imports nothing of tellapart: it is what tellapart is measured against.
Run it as: python benchmarks/peers/keras_augmentation.py --image-px 224 --batch-size 32 --repeats 20
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()

    augment = keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.2),
            layers.RandomZoom(0.2),
            layers.RandomContrast(0.2),
        ]
    )
    shape = (arguments.batch_size, arguments.image_px, arguments.image_px, 3)
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32))
    compiled = tf.function(lambda batch: augment(batch, training=True))
    for _ in range(3):
        compiled(images).numpy()

    wall, processor = [], time.process_time()
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        compiled(images).numpy()
        wall.append(time.perf_counter() - start)
    processor = time.process_time() - processor
    num_images = arguments.batch_size
    print(
        json.dumps(
            {
                "peer": "keras_augmentation",
                "image_px": arguments.image_px,
                "batch_size": num_images,
                "repeats": arguments.repeats,
                "median_ms_per_image": 1000 * statistics.median(wall) / num_images,
                "fastest_ms_per_image": 1000 * min(wall) / num_images,
                "cpu_ms_per_image": 1000 * processor / (arguments.repeats * num_images),
                "versions": {
                    "keras": keras.__version__,
                    "tensorflow": tf.__version__,
                    "python": platform.python_version(),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
