"""Features of a frozen MobileNetV2 by Keras, then scikit-learn's logistic regression on them, as guides write it.

    python benchmarks/peers/keras_features.py FOLDER --weights FILE --image-px 160

FOLDER has train, validation and test with a folder per class. Prints one JSON line. Imports nothing of tellapart.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

BATCH = 128
"""The fastest on two cores: of 32, 64, 128 and 256 of 160 px at once a picture took 10.8, 6.9, 6.6 and 10.7 ms."""


def main() -> None:
    """Compute features, fit and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-px", type=int, required=True)
    arguments = parser.parse_args()
    side = arguments.image_px
    base = keras.applications.MobileNetV2((side, side, 3), include_top=False, weights=arguments.weights, pooling="avg")
    inputs = keras.Input((side, side, 3))
    model = keras.Model(inputs, base(layers.Rescaling(1 / 127.5, offset=-1)(inputs), training=False))

    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        batches = keras.utils.image_dataset_from_directory(
            arguments.folder / split, image_size=(side, side), batch_size=BATCH, shuffle=False, verbose=False
        )
        labels = np.array([batches.class_names.index(Path(path).parent.name) for path in batches.file_paths])
        return model.predict(batches.prefetch(tf.data.AUTOTUNE), verbose=0), labels

    (train, targets), (validation, wanted), (test, true) = map(features, ("train", "validation", "test"))
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=1 / (penalty * len(train)), max_iter=100)).fit(
            train, targets
        )
        for penalty in (0.1, 0.01, 0.001)
    ]
    best = max(fits, key=lambda fit: fit.score(validation, wanted))
    print(json.dumps({"test": float(best.score(test, true)), "num_images": len(train) + len(validation) + len(test)}))


if __name__ == "__main__":
    main()
