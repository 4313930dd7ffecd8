"""Which labels look wrong? Confident learning on predictions that did not see the label. Knows nothing about files."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.blas import one_blas_thread
from tellapart.errors import InputError
from tellapart.evaluation.metrics import photo_losses
from tellapart.records import Progress, no_progress

_FOLDS = 5
_TINY = 1e-9
_PENALTIES = (6.0, 20.0, 60.0, 200.0)
"""Of the linear model, against the mean loss: the one with the lowest loss on photos held out is taken."""


def out_of_sample(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    trained_on: NDArray[np.bool_],
    units: NDArray[np.int64],
    *,
    progress: Progress = no_progress,
) -> NDArray[np.float64]:
    """Return probabilities for each photo that do not come from its own label.

    For photos that the network was not trained on they are the network's. For the others a logistic regression on the
    network's last features is cross-validated: the network itself has learned their labels, wrong ones too. How
    strongly it is penalised is chosen on the same photos, by their log loss when the first fold is held out: wrong
    labels among them make every penalty's loss higher alike, and no photo that anything is measured on is asked.

    Args:
        features: (num_images, num_features), the inputs of the network's last layer.
        labels: (num_images,) class numbers as given.
        probabilities: (num_images, num_classes), the network's.
        trained_on: (num_images,) whether the network was trained on the photo.
        units: (num_images,) numbers; photos of one unit, such as copies, stay in one fold.
        progress: called with ("checking labels", done, total).
    """
    from sklearn.model_selection import StratifiedGroupKFold

    result = np.asarray(probabilities, np.float64).copy()
    positions = np.flatnonzero(trained_on)
    if np.bincount(labels[positions]).max(initial=0) < _FOLDS or len(np.unique(units[positions])) < _FOLDS:
        raise InputError(f"Too few training photos, or groups of them, to be divided into {_FOLDS} parts.")
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    parts = folds.split(features[positions], labels[positions], units[positions])
    folds_of = [(positions[fitted], positions[held_out]) for fitted, held_out in parts]
    if any(len(np.unique(labels[fitted])) < 2 for fitted, _ in folds_of):
        raise InputError("All training photos of a class are in one group, so that nothing can be learned without it.")
    # The first fold chooses the penalty; its predictions are kept, so it is not fitted again below.
    predictions_of = {
        penalty: _asked(features, labels, *folds_of[0], penalty, result.shape[1]) for penalty in _PENALTIES
    }
    penalty = min(
        predictions_of, key=lambda candidate: photo_losses(labels[folds_of[0][1]], predictions_of[candidate]).mean()
    )
    for done, (fitted, held_out) in enumerate(folds_of, start=1):
        result[held_out] = (
            predictions_of[penalty]
            if done == 1
            else _asked(features, labels, fitted, held_out, penalty, result.shape[1])
        )
        progress("checking labels", done, _FOLDS)
    return result


def _asked(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    fitted: NDArray[np.int64],
    held_out: NDArray[np.int64],
    penalty: float,
    num_classes: int,
) -> NDArray[np.float64]:
    """Fit the linear model to some photos and return its probabilities for others, (num_held_out, num_classes)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # scikit-learn's C weighs the sum of the losses: divided by the photos it weighs their mean, however many there
    # are.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty / len(fitted), max_iter=300))
    rows = np.zeros((len(held_out), num_classes))
    with one_blas_thread():
        model.fit(features[fitted], labels[fitted])
        # A class without photos in these folds has no column, and stays at 0.
        rows[:, model.classes_] = model.predict_proba(features[held_out])
    return rows


def suspected_labels(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> pd.DataFrame:
    """Rank photos by how likely their label is wrong (Northcutt et al. 2021, "Confident Learning").

    First come those whose label has the lowest probability: on photos9 with planted errors that found more of them
    than the margin to the most probable class (docs/experiments.md).

    Args:
        labels: (num_images,) class numbers as given.
        probabilities: (num_images, num_classes), from `out_of_sample`.

    Returns:
        A row per photo, most suspicious first: ``position``, ``quality`` (0 to 1, low is suspicious), ``suggested``
        (the class number the network would give) and ``suspected`` (confident learning counts it among the errors).
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    present, numbers = np.unique(labels, return_inverse=True)  # confident learning wants labels of every class
    present_probabilities = probabilities[:, present]
    present_probabilities = (present_probabilities + _TINY) / (present_probabilities + _TINY).sum(axis=1, keepdims=True)
    suspected = (
        find_label_issues(numbers, present_probabilities, n_jobs=1) if len(present) > 1 else np.zeros(len(labels), bool)
    )
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
    table = pd.DataFrame({
        "position": np.arange(len(labels)),
        "quality": quality,
        "suggested": probabilities.argmax(axis=1),
        "suspected": suspected,
    })  # fmt: skip
    return table.sort_values("quality", kind="stable", ignore_index=True)
