"""Photos learned from scratch in stock Keras, as its tutorial or its guide writes it, within a time.

    python benchmarks/peers/keras_scratch.py FOLDER --seconds 300

FOLDER has train, validation and test with a folder per class. The network, the augmentation and all settings are those
of "Image classification" (tensorflow.org/tutorials/images/classification), made for 3,670 photos: 180 px, three
convolutions, a flip, rotation and zoom, dropout, Adam, batches of 32, the decoded photos cached in memory. `--guide`
takes those of keras.io/examples/vision/image_classification_from_scratch instead, made for 18,700 photos: a small
Xception, with batch normalisation that needs hundreds of steps before its validation means anything; on two cores it
has a few dozen in a minute. From scratch since the machine reaches no server of weights, as the torch peers are;
keras_transfer.py is the peer with a weights file.

As many epochs as fit the time, counted as in keras_transfer.py; an epoch that outlasts it is cut, and validated like
the others. The weights of the best epoch by validation accuracy are tested once. Prints one JSON line: `wall_seconds`
is all since the imports, `train_seconds` without the test, `first_step_seconds` since the process began. Imports
nothing of tellapart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from keras import layers

START = time.time()
"""TensorFlow's own start aside: it is imported above."""
IMAGE_PX = 180


class Until(keras.callbacks.Callback):
    """Stops where another epoch would end after a time, and keeps the best weights by validation accuracy."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline, self.best, self.weights, self.epochs = deadline, -1.0, None, 0
        self.first_step = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self.began = time.time()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Cut an epoch that outlasts the time; `fit` validates all the same."""
        self.first_step = self.first_step or time.time()
        if time.time() > self.deadline:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep the weights if they are the best; stop if no further epoch fits."""
        self.epochs += 1
        if logs["val_accuracy"] > self.best:
            self.best, self.weights = logs["val_accuracy"], self.model.get_weights()
        if 2 * time.time() - self.began > self.deadline:
            self.model.stop_training = True


def photos(folder: Path, batch: int, *, shuffle: bool, seed: int = 0) -> tf.data.Dataset:
    """Return batches of (pictures, class numbers)."""
    return keras.utils.image_dataset_from_directory(
        folder, image_size=(IMAGE_PX, IMAGE_PX), batch_size=batch, shuffle=shuffle, seed=seed, verbose=False
    )


def tutorial(classes: int) -> keras.Model:
    """Return the tutorial's network."""
    inputs = keras.Input((IMAGE_PX, IMAGE_PX, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (16, 32, 64):
        x = layers.MaxPooling2D()(layers.Conv2D(filters, 3, padding="same", activation="relu")(x))
    x = layers.Flatten()(layers.Dropout(0.2)(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.Dense(128, activation="relu")(x)))


def guide(classes: int) -> keras.Model:
    """Return the guide's small Xception."""
    inputs = keras.Input((IMAGE_PX, IMAGE_PX, 3))
    x = layers.Conv2D(128, 3, strides=2, padding="same")(layers.Rescaling(1 / 255)(inputs))
    x = before = layers.Activation("relu")(layers.BatchNormalization()(x))
    for size in (256, 512, 728):
        for _ in range(2):
            x = layers.SeparableConv2D(size, 3, padding="same")(layers.Activation("relu")(x))
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = before = layers.add([x, layers.Conv2D(size, 1, strides=2, padding="same")(before)])
    x = layers.BatchNormalization()(layers.SeparableConv2D(1024, 3, padding="same")(x))
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.Dropout(0.25)(x)))


def _began() -> float:
    """Return when this process began, by `time.time`."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Train within the time and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="the guide's own are 128")
    parser.add_argument("--guide", action="store_true", help="the guide's network, not the tutorial's")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    train = photos(arguments.folder / "train", arguments.batch, shuffle=True, seed=arguments.seed)
    validation = photos(arguments.folder / "validation", arguments.batch, shuffle=False)
    test = photos(arguments.folder / "test", arguments.batch, shuffle=False)
    model = (guide if arguments.guide else tutorial)(len(train.class_names))
    augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
    if not arguments.guide:
        augmentation.add(layers.RandomZoom(0.1))
        train, validation = train.cache().shuffle(1000, seed=arguments.seed), validation.cache()
    train = train.map(
        lambda pictures, numbers: (augmentation(pictures, training=True), numbers), num_parallel_calls=tf.data.AUTOTUNE
    )
    model.compile(
        keras.optimizers.Adam(3e-4 if arguments.guide else 1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    until = Until(START + arguments.seconds)
    model.fit(
        train.prefetch(tf.data.AUTOTUNE),
        epochs=100_000,
        validation_data=validation.prefetch(tf.data.AUTOTUNE),
        callbacks=[until],
        verbose=0,
    )
    trained = time.time() - START
    model.set_weights(until.weights)
    accuracy = model.evaluate(test.prefetch(tf.data.AUTOTUNE), verbose=0)[1]
    result = {
        "test": accuracy,
        "validation": until.best,
        "epochs": until.epochs,
        "wall_seconds": time.time() - START,
        "train_seconds": trained,
        "first_step_seconds": until.first_step - _began(),
        "network": "small Xception of the guide" if arguments.guide else "three convolutions of the tutorial",
        "image_px": IMAGE_PX,
        "batch": arguments.batch,
        "pretrained": False,
        "versions": {
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
