"""Times Grad-CAM one image at a time, as Keras' documentation writes it (its example "Grad-CAM class activation").

Prints one JSON line. Imports nothing of tellapart: it is what tellapart is measured against.
Run it as: python benchmarks/peers/keras_grad_cam.py MODEL.keras IMAGES.npy
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf


def grad_cam(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Return one heat map."""
    with tf.GradientTape() as tape:
        features, probabilities = model(image[None])
        channel = probabilities[:, tf.argmax(probabilities[0])]
    gradients = tape.gradient(channel, features)
    pooled = tf.reduce_mean(gradients, axis=(0, 1, 2))
    heat = tf.squeeze(features[0] @ pooled[..., tf.newaxis])
    return (tf.maximum(heat, 0) / tf.math.reduce_max(heat)).numpy()


def main() -> None:
    """Measure and print."""
    model = keras.saving.load_model(sys.argv[1], compile=False)
    maps = [layer for layer in model.layers if len(getattr(layer.output, "shape", ())) == 4]
    opened = keras.Model(model.inputs, [maps[-1].output, model.output])
    images = np.load(sys.argv[2])
    for image in images[:5]:
        grad_cam(opened, image)
    wall, cpu = time.perf_counter(), time.process_time()
    for image in images:
        grad_cam(opened, image)
    print(json.dumps({"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
