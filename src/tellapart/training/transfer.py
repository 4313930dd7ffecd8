"""Begins a network from pretrained weights: features of all photos once, then a head that is fitted to them.

Knows nothing about schedules and optimisers: what comes after it, the fine-tuning, is ordinary training.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning

from tellapart.blas import one_blas_thread
from tellapart.files import atomic_file
from tellapart.models.backbones import load_pretrained
from tellapart.models.forward import pays
from tellapart.randomness import generator
from tellapart.records import Progress, no_progress
from tellapart.run_folder import RunFolder
from tellapart.settings import Backbone
from tellapart.training.checkpoint import save_weights
from tellapart.training.features import Extractor, pretrained_extractor
from tellapart.training.inputs import Inputs
from tellapart.training.network import begin_with_weights_of, plain_network
from tellapart.training.state import Best

Floats = NDArray[np.float32]

# From strong to weak: each fit begins where the one before ended, the weakest take most of the time, and the search
# ends at the first that is worse (docs/decisions.md).
PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)
"""Of the head's squared weights, per photo; the one with the lowest validation loss is kept."""
_ENOUGH_FOR_A_PENALTY = 8000
_ITERATIONS, _MOST_ITERATIONS = 100, 500
"""Of a fit, between two looks at the clock and in all."""


def begin_pretrained(
    run: RunFolder,
    inputs: Inputs,
    model: keras.Model,
    *,
    begin_from: RunFolder | None = None,
    progress: Progress = no_progress,
    until: float = math.inf,
) -> dict[str, Any]:
    """Load the backbone's weights and fit the head, into the model and into ``checkpoints/best.npz``.

    Args:
        run: its files.
        inputs: the photos, and the recipe.
        model: the recipe's network, compiled.
        begin_from: a run whose backbone is taken instead of the weights that the recipe names.
        progress: called often with (what, done, total).
        until: when the head must be fitted, by `time.time`.

    Returns:
        The first row of the history: the head is epoch 0, and fine-tuned weights are kept only if they are better.

    Raises:
        InputError: the pretrained weights are not to be had.
    """
    began = time.perf_counter()
    settings = inputs.recipe.model
    assert isinstance(settings, Backbone)  # only they have pretrained weights
    if begin_from is not None:
        begin_with_weights_of(begin_from, model, inputs.photos.classes)
    else:
        load_pretrained(model, settings)
    features = _features(run, model, inputs, progress, begin_from)
    held_out, numbers = inputs.photos.side("validation")
    train, validation = features[inputs.positions], features[held_out]
    kernel, bias, penalty = fit_head(
        train, inputs.targets, validation, numbers, inputs.num_classes, seed=inputs.recipe.train.seed, until=until
    )
    model.get_layer("probabilities").set_weights([kernel, bias])
    row: dict[str, Any] = {"epoch": 0, "image_px": inputs.recipe.data.image_px, "learning_rate": 0.0}
    row |= _measured(model, train, inputs.targets, "")
    if len(validation):
        row |= _measured(model, validation, numbers, "val_")
    row["seconds"] = time.perf_counter() - began
    best = Best(0, row.get("val_loss"))
    save_weights(run.best_weights, model.get_weights(), asdict(best))
    run.write_history([row])
    run.log("head", penalty=penalty, **row)
    return row


def fit_head(
    features: Floats,
    numbers: NDArray[np.int64],
    held_out: Floats,
    held_out_numbers: NDArray[np.int64],
    num_classes: int,
    *,
    seed: int = 0,
    until: float = math.inf,
) -> tuple[Floats, Floats, float]:
    """Fit multinomial logistic regression to features, with the penalty that suits the held-out photos best.

    Features are standardised for the fit, so that one penalty means the same for all; the result applies to them as
    they are. Penalties become weaker until the held-out loss rises. Of many photos a random part finds the penalty,
    and the fit to all of them begins where that part's ended.

    Args:
        features: (num_images, num_features).
        numbers: (num_images,) class numbers.
        held_out: (num_held_out, num_features); without any the middle penalty is taken.
        held_out_numbers: their class numbers.
        num_classes: length of the output.
        seed: of the part.
        until: when the fit must be over, by `time.time`; what has been found by then is returned.

    Returns:
        Kernel (num_features, num_classes), bias (num_classes,), and the penalty.
    """
    fit = _Fit(features, num_classes, until)
    some = generator(seed, "head").permutation(len(features))[:_ENOUGH_FOR_A_PENALTY]
    some = np.union1d(some, np.unique(numbers, return_index=True)[1])  # each class has a photo in it
    # Without held-out photos nothing can choose: the middle one.
    penalties = PENALTIES if len(held_out) else PENALTIES[len(PENALTIES) // 2 :][:1]
    losses: list[float] = []
    best: tuple[Floats, Floats, float] | None = None
    for penalty in penalties:
        kernel, bias = fit.to(some, numbers, penalty)
        losses.append(_log_loss(held_out @ kernel + bias, held_out_numbers) if len(held_out) else 0.0)
        if best is None or losses[-1] < min(losses[:-1]):
            best = kernel, bias, penalty
        # The weakest penalties take most of the time (docs/decisions.md), so the first that is worse ends the search.
        if fit.is_over() or losses[-1] > min(losses):
            break
    assert best is not None
    if len(some) == len(features) or fit.is_over():
        return best
    # The penalty is settled: now fit all photos, starting from the solution for the part.
    kernel, bias = fit.to(np.arange(len(features)), numbers, best[2])
    if len(held_out) and _log_loss(held_out @ kernel + bias, held_out_numbers) > min(losses):
        return best  # time was over before this fit was as good as that to the part
    return kernel, bias, best[2]


class _Fit:
    """Logistic regression on standardised features; each fit begins where the one before ended."""

    def __init__(self, features: Floats, num_classes: int, until: float) -> None:
        from sklearn.linear_model import LogisticRegression

        self.features, self.num_classes, self.until = features, num_classes, until
        # A feature that never changes has a deviation of 0.
        self._mean, self._std = features.mean(axis=0), features.std(axis=0) + 1e-6
        self._fit = LogisticRegression(solver="lbfgs", max_iter=_ITERATIONS, tol=1e-4, warm_start=True)

    def is_over(self) -> bool:
        """Whether the time is."""
        return time.time() > self.until

    def to(self, chosen: NDArray[np.int64], numbers: NDArray[np.int64], penalty: float) -> tuple[Floats, Floats]:
        """Return kernel and bias for features as they are, fitted to some photos."""
        scaled = (self.features[chosen] - self._mean) / self._std
        # scikit-learn adds losses up: a penalty per photo has to grow with their number.
        self._fit.set_params(C=1 / (penalty * len(chosen)))
        with warnings.catch_warnings(), one_blas_thread():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said by `n_iter_`
            # In rounds, to check the clock: L-BFGS cannot be interrupted, but a warm start resumes it.
            for _ in range(_MOST_ITERATIONS // _ITERATIONS):
                self._fit.fit(scaled, numbers[chosen])
                if self._fit.n_iter_[0] < _ITERATIONS or self.is_over():
                    break
        kernel, bias = _for_all_classes(self._fit, self.num_classes)
        # The standardisation goes into the weights: the network gets features as they are.
        kernel = (kernel / self._std[:, None]).astype(np.float32)
        return kernel, (bias - self._mean @ kernel).astype(np.float32)


def _for_all_classes(fit: Any, num_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return kernel and bias with a column for each class; scikit-learn has one for two classes."""
    kernel, bias = fit.coef_.T, fit.intercept_
    if num_classes == 2:
        # Half of it for each class: the softmax of the two is the sigmoid of scikit-learn's single logit.
        return np.hstack([-kernel, kernel]) / 2, np.hstack([-bias, bias]) / 2
    return kernel, bias


def _log_loss(logits: Floats, numbers: NDArray[np.int64]) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(numbers)), numbers].mean())


def _features(
    run: RunFolder, model: keras.Model, inputs: Inputs, progress: Progress, begin_from: RunFolder | None
) -> Floats:
    """Return (num_photos, num_features) float32 of all photos, and keep them in the run.

    Those of test photos teach nothing here: they save the final measurement from going through the network again.
    """
    photos, settings, image_px = inputs.photos, inputs.recipe.model, inputs.recipe.data.image_px
    assert isinstance(settings, Backbone)
    if begin_from is None:
        extractor = pretrained_extractor(settings, image_px, len(photos.pictures))
    else:
        plain = plain_network(inputs.recipe, inputs.num_classes, model.get_weights())
        extractor = Extractor(plain, is_converted=pays(len(photos.pictures), image_px))
    features = extractor(photos.pictures, photos.cache, progress)
    run.head_features.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(run.head_features) as stream:
        np.save(stream, features)
    return features


def _measured(model: keras.Model, features: Floats, numbers: NDArray[np.int64], prefix: str) -> dict[str, float]:
    """Return loss and accuracy of the head, as `keras.Model.fit` counts them: with smoothing and penalties."""
    head = model.get_layer("probabilities")
    kernel, bias = head.get_weights()
    logits = features @ kernel + bias
    probabilities = softmax(logits, axis=1)
    targets = np.eye(len(bias), dtype=np.float32)[numbers]
    # With a teacher the loss is a function that returns one value a picture, without one a Keras loss that averages.
    loss = float(np.mean(keras.ops.convert_to_numpy(model.loss(targets, probabilities.astype(np.float32)))))
    # The network's own penalties on weights, as `fit` adds them: fine-tuned epochs are compared with this one.
    loss += sum(float(penalty) for penalty in model.losses)
    return {f"{prefix}accuracy": float((logits.argmax(axis=1) == numbers).mean()), f"{prefix}loss": loss}
