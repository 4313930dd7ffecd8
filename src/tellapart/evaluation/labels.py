"""Which labels look wrong? Confident learning on predictions that did not see the label. Knows nothing about files."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.records import Progress, no_progress

_FOLDS = 5
_TINY = 1e-9
_PENALTY = 60.0
"""Of the linear model, against the mean loss: by planted errors in photos9 (docs/experiments.md)."""


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
    network's last features is cross-validated: the network itself has learned their labels, wrong ones too.

    Args:
        features: (num_images, num_features), the inputs of the network's last layer.
        labels: (num_images,) class numbers as given.
        probabilities: (num_images, num_classes), the network's.
        trained_on: (num_images,) whether the network was trained on the photo.
        units: (num_images,) numbers; photos of one unit, such as copies, stay in one fold.
        progress: called with ("checking labels", done, total).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    result = np.asarray(probabilities, np.float64).copy()
    positions = np.flatnonzero(trained_on)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    parts = folds.split(features[positions], labels[positions], units[positions])
    for done, (fitted, held_out) in enumerate(parts, start=1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY / len(fitted), max_iter=300))
        model.fit(features[positions[fitted]], labels[positions[fitted]])
        rows = np.zeros((len(held_out), result.shape[1]))
        rows[:, model.classes_] = model.predict_proba(features[positions[held_out]])
        result[positions[held_out]] = rows
        progress("checking labels", done, _FOLDS)
    return result


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
    among = probabilities[:, present]
    among = (among + _TINY) / (among + _TINY).sum(axis=1, keepdims=True)
    suspected = find_label_issues(numbers, among, n_jobs=1) if len(present) > 1 else np.zeros(len(labels), bool)
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
    table = pd.DataFrame({
        "position": np.arange(len(labels)),
        "quality": quality,
        "suggested": probabilities.argmax(axis=1),
        "suspected": suspected,
    })  # fmt: skip
    return table.sort_values("quality", kind="stable", ignore_index=True)
