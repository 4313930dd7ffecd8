"""Photos learned from scratch as Keras' own guide "Image classification from scratch" writes it, within a time.

    python benchmarks/peers/keras_scratch.py FOLDER --seconds 300

FOLDER has train, validation and test with a folder per class. All is the guide's
(keras.io/examples/vision/image_classification_from_scratch), which are Keras' documented settings for training without
pretrained weights: 180 px, a horizontal flip and rotation by up to 0.1 of a turn in the input pipeline, its small
Xception, Adam 3e-4, logits. But for batches of 32, not 128: it has 18,700 photos to train on, and of some hundreds 128
would leave two or three steps an epoch (`--batch 128` gives the guide's). And an output per class for two classes too,
where the guide has a single one. From scratch since the machine reaches no server of weights, as the torch peers are;
keras_transfer.py is the peer with a weights file.

As many epochs as fit the time, counted as in keras_transfer.py; an epoch that outlasts it is cut, and validated like
the others. The weights of the best epoch by validation accuracy are tested once. Prints one JSON line: `wall_seconds`
is all since the imports, `train_seconds` without the test. Imports nothing of tellapart.
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

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self.began = time.time()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Cut an epoch that outlasts the time; `fit` validates all the same."""
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


def build(classes: int) -> keras.Model:
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


def main() -> None:
    """Train within the time and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    train = photos(arguments.folder / "train", arguments.batch, shuffle=True, seed=arguments.seed)
    validation = photos(arguments.folder / "validation", arguments.batch, shuffle=False)
    test = photos(arguments.folder / "test", arguments.batch, shuffle=False)
    model = build(len(train.class_names))
    augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
    train = train.map(
        lambda pictures, numbers: (augmentation(pictures, training=True), numbers), num_parallel_calls=tf.data.AUTOTUNE
    )
    model.compile(
        keras.optimizers.Adam(3e-4),
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
        "network": "small Xception of the guide",
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
