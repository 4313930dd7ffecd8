"""Transfer learning as Keras' own guide writes it: a frozen MobileNetV2, a new head, then some epochs of fine-tuning.

    python benchmarks/peers/keras_transfer.py FOLDER --weights FILE --seconds 300

FOLDER has train, validation and test with a folder per class. As many epochs as fit the time: the first half of it for
the head (Adam 1e-3), the second for all layers but BatchNormalization (Adam 1e-5), or for the head too where an epoch
of all layers, about three times as long, does not fit; the weights of the best epoch are kept. Prints one JSON line.
Imports nothing of tellapart.
"""

from __future__ import annotations

import argparse
import json
import os
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
IMAGE_PX = 224
BATCH = 32


class Until(keras.callbacks.Callback):
    """Stops where another epoch would end after a time, and keeps the best weights by validation accuracy."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline, self.best, self.weights, self.epochs, self.seconds = deadline, -1.0, None, 0, 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock."""
        self.began = time.time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep the weights if they are the best; stop if no further epoch fits."""
        self.epochs += 1
        self.seconds = time.time() - self.began
        if logs["val_accuracy"] > self.best:
            self.best, self.weights = logs["val_accuracy"], self.model.get_weights()
        if time.time() + self.seconds > self.deadline:
            self.model.stop_training = True


def photos(folder: Path, *, shuffle: bool, seed: int = 0) -> tf.data.Dataset:
    """Return batches of (pictures, class numbers)."""
    found = keras.utils.image_dataset_from_directory(
        folder, image_size=(IMAGE_PX, IMAGE_PX), batch_size=BATCH, shuffle=shuffle, seed=seed, verbose=False
    )
    return found.prefetch(tf.data.AUTOTUNE)


def main() -> None:
    """Train within the time and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    train, validation = (
        photos(arguments.folder / "train", shuffle=True, seed=arguments.seed),
        photos(arguments.folder / "validation", shuffle=False),
    )
    classes = len([path for path in (arguments.folder / "train").iterdir() if path.is_dir()])
    base = keras.applications.MobileNetV2((IMAGE_PX, IMAGE_PX, 3), include_top=False, weights=arguments.weights)
    base.trainable = False
    inputs = keras.Input((IMAGE_PX, IMAGE_PX, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = base(layers.Rescaling(1 / 127.5, offset=-1)(x), training=False)
    outputs = layers.Dense(classes, "softmax")(layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x)))
    model = keras.Model(inputs, outputs)

    def learn(deadline: float, rate: float) -> Until:
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        until = Until(deadline)
        model.fit(train, epochs=100, validation_data=validation, callbacks=[until], verbose=0)
        model.set_weights(until.weights)
        return until

    end = START + arguments.seconds
    head = learn(START + arguments.seconds / 2, 1e-3)
    epochs = [head.epochs, 0]
    if time.time() + 3 * head.seconds <= end:
        base.trainable = True
        epochs[1] = learn(end, 1e-5).epochs
    elif time.time() + head.seconds <= end:
        longer = learn(end, 1e-3)
        epochs[0] += longer.epochs
        model.set_weights(max((head, longer), key=lambda until: until.best).weights)
    accuracy = model.evaluate(photos(arguments.folder / "test", shuffle=False), verbose=0)[1]
    print(json.dumps({"test": accuracy, "epochs": epochs, "seconds": time.time() - START}))


if __name__ == "__main__":
    main()
