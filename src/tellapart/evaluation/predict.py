"""What a trained model says of pictures. Knows nothing about training.

The same decoder and the same network serve the final evaluation and later predictions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.data.batches import CleanBatches, clean_batch_size, pictures_ahead
from tellapart.data.cache import Pictures
from tellapart.data.decode import decode_square, resize
from tellapart.data.image_file import read_file
from tellapart.errors import DecodeError, RunError
from tellapart.files import sha256
from tellapart.models.embedding import feature_model
from tellapart.records import Prediction, Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.unknown import UnknownDetector, decide, load_detector


def predict_pictures(model: keras.Model, pictures: Pictures, progress: Progress = no_progress) -> NDArray[np.float32]:
    """Return the model's probabilities for all pictures of a data set.

    Returns:
        (num_images, num_classes) float32.
    """
    return np.concatenate([np.asarray(outputs) for outputs in outputs_for(model, pictures, progress)])


def outputs_for(model: keras.Model, pictures: Pictures, progress: Progress = no_progress) -> Iterator[Any]:
    """Yield what the model returns for the pictures of a data set, a batch at a time."""
    batches = CleanBatches(pictures, np.arange(len(pictures)))
    for number, images in enumerate(pictures_ahead(batches), start=1):
        yield model.predict_on_batch(images)
        progress("predicting", min(number * batches.batch_size, len(pictures)), len(pictures))


def predict_arrays(model: keras.Model, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32, a batch at a time."""
    return np.concatenate(list(_filled_batches(model, pictures, lambda values: np.asarray(values, np.float32))))


def outputs_of_arrays(
    features: keras.Model, pictures: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (num_images, num_classes) probabilities and (num_images, num_features) embeddings, both float32.

    Args:
        features: made by `feature_model`.
        pictures: (num_images, image_px, image_px, 3) uint8.
    """

    def both(values: Any) -> NDArray[np.float32]:
        embeddings, probabilities = (np.asarray(part, np.float32) for part in values)
        # One array, so that both are cut alike where a batch was filled up.
        return np.hstack([probabilities, embeddings.reshape(len(embeddings), -1)])

    rows = np.concatenate(list(_filled_batches(features, pictures, both)))
    num_classes = int(features.output_shape[1][-1])
    return rows[:, :num_classes], rows[:, num_classes:]


def _filled_batches(
    model: keras.Model, pictures: NDArray[np.uint8], rows: Callable[[Any], NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Yield rows for some pictures at a time.

    Batches are filled up to a power of two: TensorFlow compiles anew for each size that it meets.
    """
    size = clean_batch_size(pictures.shape[1])
    for start in range(0, len(pictures), size):
        part = pictures[start : start + size]
        filled_size = min(size, 1 << (len(part) - 1).bit_length())
        filled = (
            np.concatenate([part, np.repeat(part[:1], filled_size - len(part), axis=0)])
            if filled_size > len(part)
            else part
        )
        yield rows(model.predict_on_batch(filled))[: len(part)]


def prediction_table(frame: pd.DataFrame, probabilities: NDArray[np.float32], classes: list[str]) -> pd.DataFrame:
    """Return the rows of ``predictions.csv``.

    Args:
        frame: path, label and split of each image.
        probabilities: (num_images, num_classes).
        classes: names of the columns.

    Returns:
        path, split, true_label, predicted_label, correct, probability and one "p:CLASS" column per class.
    """
    best = probabilities.argmax(axis=1)
    names = np.asarray(classes, object)
    table = pd.DataFrame({
        "path": pd.Series(frame["path"].to_numpy(object), dtype=object),  # pandas' own text refuses odd names
        "split": frame["split"].to_numpy(object),
        "true_label": pd.Series(frame["label"].to_numpy(object), dtype=object),
        "predicted_label": pd.Series(names[best], dtype=object),
        "correct": names[best] == frame["label"].to_numpy(object),
        "probability": probabilities.max(axis=1),
    })  # fmt: skip
    # The prefix tells a class that is called "path" from the column of that name; `RunFolder.predictions` goes by it.
    columns = pd.DataFrame(probabilities, columns=[f"p:{name}" for name in classes])
    return pd.concat([table, columns], axis=1)


class Classifier:
    """A trained run, ready to name pictures.

    Attributes:
        model: the network, calibrated.
        classes: names in the order of its outputs.
        image_px: side of the pictures that it takes.
        max_pixels: larger images are refused.
        identity: tells this model from others.
        temperature: that its logits are divided by; None for a run that was never calibrated.
        detector: of photos of no known class; None where the run has none.

    Example:
        >>> classifier = tellapart.load("runs/pets")
        >>> classifier.predict(["cat.jpg"])[0].label
        'cat'
    """

    def __init__(
        self,
        model: keras.Model,
        classes: Sequence[str],
        *,
        max_pixels: int = 100_000_000,
        identity: str = "",
        temperature: float | None = None,
        detector: UnknownDetector | None = None,
    ) -> None:
        self.temperature = temperature
        self.model = model
        self._features = feature_model(model)
        # That of an older ensemble looks at the logarithms of probabilities, which are no embedding any more.
        num_features = int(np.prod(self._features.output_shape[0][1:]))
        self.detector = detector if detector is not None and detector.num_features == num_features else None
        self.classes = list(classes)
        self.image_px = int(model.input_shape[1])
        self.max_pixels = max_pixels
        self.identity = identity

    def predict(
        self,
        images: Sequence[str | os.PathLike[str] | NDArray[np.uint8]],
        *,
        top_k: int = 3,
        progress: Progress = no_progress,
    ) -> list[Prediction]:
        """Name each image; one that cannot be read gets an error and costs the others nothing.

        Args:
            images: files, or pictures as (height, width, 3) uint8 RGB arrays of any size.
            top_k: how many classes to list.
            progress: called with ("predicting", done, total).

        Returns:
            One `Prediction` per image, in their order.
        """
        results: list[Prediction] = []
        size = clean_batch_size(self.image_px)
        for prediction in self.stream(images, top_k=top_k):
            results.append(prediction)
            if len(results) % size == 0 or len(results) == len(images):
                progress("predicting", len(results), len(images))
        return results

    def stream(
        self,
        images: Sequence[str | os.PathLike[str] | NDArray[np.uint8]],
        *,
        top_k: int = 3,
        with_quality: bool = False,
    ) -> Iterator[Prediction]:
        """Yield what `predict` returns, one after the other, in memory that does not grow with their number.

        Args:
            images: as `predict` takes them.
            top_k: how many classes to list.
            with_quality: changes nothing: only a bundle knows which quality its accuracy was measured on.
        """
        del with_quality
        size = clean_batch_size(self.image_px)
        # Files are read and decoded side by side, a batch at a time, so memory does not grow with their number.
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for start in range(0, len(images), size):
                part = list(images[start : start + size])
                yield from self._predict_part(part, list(pool.map(self._picture, part)), start, top_k)

    def probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (num_images, image_px, image_px, 3) uint8 to (num_images, num_classes) float32."""
        return predict_arrays(self.model, pictures)

    @property
    def num_features(self) -> int:
        """Length of an embedding."""
        return int(np.prod(self._features.output_shape[0][1:]))

    def _picture(self, image: str | os.PathLike[str] | NDArray[np.uint8]) -> NDArray[np.uint8] | str:
        try:
            if isinstance(image, np.ndarray):
                return unfit(image) or resize(image, self.image_px)
            return decode_square(read_file(image), self.image_px, max_pixels=self.max_pixels)
        except DecodeError as error:
            return str(error)

    def _predict_part(
        self, names: list, pictures: list[NDArray[np.uint8] | str], start: int, top_k: int
    ) -> list[Prediction]:
        squares = {index: picture for index, picture in enumerate(pictures) if not isinstance(picture, str)}
        rows = embeddings = np.zeros((0, 0), np.float32)
        if squares:
            rows, embeddings = outputs_of_arrays(self._features, np.stack(list(squares.values())))
        unknown = decide(self.detector, embeddings, len(squares))
        # Images that could not be read have no row in the batch; the others' rows close up.
        row_of = {index: row for row, index in enumerate(squares)}
        results = []
        for index, name in enumerate(names):
            path = f"image {start + index}" if isinstance(name, np.ndarray) else str(name)
            if index not in row_of:
                results.append(Prediction(path, None, float("nan"), (), str(pictures[index])))
                continue
            row = rows[row_of[index]]
            # Stable: of equal probabilities the first class leads, as `argmax` has it in tables and metrics.
            order = np.argsort(-row, kind="stable")[:top_k]
            top = tuple((self.classes[i], float(row[i])) for i in order)
            embedding, (is_unknown, similarity) = embeddings[row_of[index]], unknown[row_of[index]]
            results.append(
                Prediction(path, *top[0], top, embedding=embedding, unknown=is_unknown, similarity=similarity)
            )
        return results


def unfit(picture: NDArray) -> str:
    """Return what is wrong with an array that should be a picture; "" for one that is."""
    if picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8 and 0 not in picture.shape:
        return ""
    return f"is {picture.dtype} {picture.shape}; expected uint8 (height, width, 3)"


def load(run: str | os.PathLike[str]) -> Classifier:
    """Open a finished run for prediction.

    Raises:
        RunError: `run` is not a run folder, has no model yet, or its ``model.keras`` is not the run's.
    """
    folder = RunFolder(Path(run))
    file = folder.model_path
    if not file.is_file():
        is_folder = folder.path.is_dir()
        state = "has no model yet; finish it with tellapart train --resume" if is_folder else "does not exist"
        raise RunError(f"{folder.path} {state}. Expected a run folder made by tellapart train.")
    classes = folder.record().classes
    try:
        # Keras' safe mode stays on, its default: a model.keras may be a stranger's, and a Lambda layer runs code.
        model = keras.saving.load_model(file, compile=False)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{file} cannot be opened: {error}") from error
    shapes = tuple(getattr(model, "input_shape", None) or ()), tuple(getattr(model, "output_shape", None) or ())
    # A model.keras of other classes would load, and give every image a wrong name.
    if shapes[0] != (None, *shapes[0][1:2] * 2, 3) or shapes[1] != (None, len(classes)) or None in shapes[0][1:]:
        raise RunError(
            f"{file} maps {shapes[0]} to {shapes[1]}. Expected (None, side, side, 3) to "
            f"(None, {len(classes)}), one output for each class of the run: the file is another model's."
        )
    detector = load_detector(folder.unknown_path)
    classifier = Classifier(
        model,
        classes,
        max_pixels=folder.recipe().data.max_pixels,
        identity=sha256(file.read_bytes())[:12],
        temperature=folder.metrics().get("temperature"),
        detector=detector,
    )
    # An ensemble of an older version has a detector of another kind, which `Classifier` does without.
    is_joined = bool(folder.record().request.ensemble)
    if detector is not None and detector.num_features != classifier.num_features and not is_joined:
        raise RunError(
            f"{folder.unknown_path} is of {detector.num_features} features, {file} has {classifier.num_features}: one "
            "of the files is another run's. Restore the run's own."
        )
    return classifier
