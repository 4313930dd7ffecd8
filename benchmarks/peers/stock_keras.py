"""Times one training epoch of the reference network as a user of Keras 3 on TensorFlow would write it.

Prints one JSON line. Imports nothing of tellapart: it is what tellapart is measured against.
Run it as: python benchmarks/peers/stock_keras.py FOLDER --image-px 224 --batch-size 32 --steps 40
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from keras import layers


class StepClock(keras.callbacks.Callback):
    """Notes the wall and processor time at the end of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.wall: list[float] = []
        self.processor: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Note the time; `fit` has read the loss by now, so the step is done."""
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    keras.utils.set_random_seed(arguments.seed)
    dataset = keras.utils.image_dataset_from_directory(
        arguments.folder,
        image_size=(arguments.image_px, arguments.image_px),
        batch_size=arguments.batch_size,
        label_mode="categorical",
        seed=arguments.seed,
        verbose=False,
    )
    if len(dataset.file_paths) < arguments.batch_size:
        sys.exit(f"{arguments.folder} holds fewer than --batch-size {arguments.batch_size} photos.")
    num_classes = len(dataset.class_names)
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    first_epoch = iterate(dataset, arguments)
    result: dict[str, Any] = {
        "peer": "stock_keras",
        "training": not arguments.no_training,
        "precision": arguments.precision,
        "image_px": arguments.image_px,
        "batch_size": arguments.batch_size,
        "first_epoch_images_per_second": first_epoch,
    }
    if not arguments.no_training:
        result |= time_training(dataset, num_classes, arguments)
    result["versions"] = {
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
    }
    result["gpus"] = len(tf.config.list_physical_devices("GPU"))
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder per class")
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="steps that are timed")
    parser.add_argument("--warmup-steps", type=int, default=5, help="steps before them that are not")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32")
    parser.add_argument("--no-training", action="store_true", help="time only reading the first epoch")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not os.path.isdir(arguments.folder):
        sys.exit(f"{arguments.folder} is no folder. Expected a folder per class with photos in it.")
    return arguments


def iterate(dataset: tf.data.Dataset, arguments: argparse.Namespace) -> float:
    """Return images per second of reading the photos for the first time, at most a first epoch.

    With training only as many batches as are trained on, to keep the run short. The start of the
    pipeline is counted: a user waits for it too.
    """
    num_batches = -1 if arguments.no_training else arguments.steps
    start, num_images = time.perf_counter(), 0
    for images, _ in dataset.take(num_batches):
        num_images += int(images.shape[0])
    return num_images / (time.perf_counter() - start)


def time_training(dataset: tf.data.Dataset, num_classes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of `arguments.steps` steps inside `fit`."""
    keras.mixed_precision.set_global_policy(arguments.precision)
    model = build(arguments.image_px, num_classes)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    clock = StepClock()
    num_steps = arguments.warmup_steps + arguments.steps
    # A short last batch would be another shape: whole batches only, again and again.
    whole = dataset.filter(lambda images, _: tf.shape(images)[0] == arguments.batch_size).repeat()
    model.fit(whole, steps_per_epoch=num_steps, epochs=1, callbacks=[clock], verbose=0)
    first = arguments.warmup_steps - 1
    wall = clock.wall[-1] - clock.wall[first]
    processor = clock.processor[-1] - clock.processor[first]
    num_images = arguments.steps * arguments.batch_size
    pairs = zip(clock.wall[first:], clock.wall[first + 1 :], strict=False)
    return {
        "images_per_second": num_images / wall,
        "seconds_per_image": wall / num_images,
        "cpu_seconds_per_image": processor / num_images,
        "median_step_seconds": statistics.median(later - earlier for earlier, later in pairs),
        "steps": arguments.steps,
    }


def build(image_px: int, num_classes: int) -> keras.Model:
    """Return the reference network with its augmentation, all of it Keras' own layers."""
    blocks: list[Any] = []
    for filters in (32, 64, 128):
        blocks += [
            layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=penalty()),
            layers.BatchNormalization(),
            layers.MaxPooling2D() if filters < 128 else layers.GlobalAveragePooling2D(),
        ]
    return keras.Sequential(
        [
            layers.Input((image_px, image_px, 3)),
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(0.2),
            layers.RandomZoom(0.2),
            layers.RandomContrast(0.2),
            layers.Rescaling(1 / 255),
            *blocks,
            layers.Dense(256, activation="relu", kernel_regularizer=penalty()),
            layers.Dropout(0.5),
            layers.Dense(num_classes, activation="softmax", dtype="float32", kernel_regularizer=penalty()),
        ]
    )


def penalty() -> keras.Regularizer:
    """Return the L2 penalty on kernels."""
    return keras.regularizers.L2(1e-4)


if __name__ == "__main__":
    main()
