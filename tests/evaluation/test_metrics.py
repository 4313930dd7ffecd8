"""Every metric against scikit-learn, and the intervals that stand beside them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn import metrics as reference

from tellapart.evaluation.metrics import classification_metrics, confusion_matrix


def random_case(
    seed: int, num_images: int, num_classes: int, true: list[int], named: list[int]
) -> tuple[NDArray, NDArray]:
    """Draw classes among `true`, and probabilities that are highest for one of `named`."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(true, num_images)
    scores = rng.gamma(1.0, size=(num_images, num_classes)) + 1e-3
    right = np.isin(classes, named) & (rng.random(num_images) < 0.6)
    best = np.where(right, classes, rng.choice(named, num_images))
    scores[np.arange(num_images), best] += scores.sum(axis=1)
    return classes, scores / scores.sum(axis=1, keepdims=True)


CASES = {
    "nine classes": (400, 9, list(range(9)), list(range(9))),
    "a class that is never predicted": (200, 4, [0, 1, 2, 3], [0, 1, 3]),
    "a class that never occurs": (200, 4, [0, 1, 3], [0, 1, 2, 3]),
    "a class that neither occurs nor is predicted": (100, 5, [0, 2, 4], [0, 2, 4]),
    "only one class is predicted": (50, 3, [0, 1, 2], [1]),
    "never right": (40, 4, [0, 1], [2, 3]),
    "one image": (1, 3, [2], [0, 1, 2]),
    "two classes": (120, 2, [0, 1], [0, 1]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_metrics_equal_those_of_scikit_learn(case):
    num_images, num_classes = case[:2]
    true, probabilities = random_case(3, *case)
    predicted = probabilities.argmax(axis=1)
    names = [f"class {number}" for number in range(num_classes)]
    result = classification_metrics(true, probabilities, names)
    expected = {"accuracy": reference.accuracy_score(true, predicted)}
    for average in ("macro", "weighted"):
        scores = reference.precision_recall_fscore_support(true, predicted, average=average, zero_division=0)
        expected |= {
            f"{name}_{average}": score for name, score in zip(("precision", "recall", "f1"), scores, strict=False)
        }
    expected["loss"] = reference.log_loss(true, probabilities, labels=range(num_classes))
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    assert result["num_images"] == num_images
    by_class = reference.precision_recall_fscore_support(true, predicted, labels=range(num_classes), zero_division=0)
    for name, *values in zip(names, *by_class, strict=True):
        assert list(result["per_class"][name].values()) == pytest.approx(values, abs=1e-9)
    np.testing.assert_array_equal(
        confusion_matrix(true, predicted, num_classes),
        reference.confusion_matrix(true, predicted, labels=range(num_classes)),
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_metric_lies_in_its_interval(case):
    true, probabilities = random_case(5, *case)
    names = [str(number) for number in range(case[1])]
    result = classification_metrics(true, probabilities, names)
    ends = dict(result["intervals"])
    per_class = ends.pop("per_class")
    assert set(ends) | {"num_images", "num_groups", "per_class", "intervals"} == set(result)
    for name, (low, high) in ends.items():
        assert low - 1e-12 <= result[name] <= high + 1e-12, name
    for name in names:
        for key, (low, high) in per_class[name].items():
            assert 0 <= low <= high <= 1
            assert low - 1e-12 <= result["per_class"][name][key] <= high + 1e-12, (name, key)


def test_intervals_of_accuracy_and_recall_are_wilsons():
    true, probabilities = random_case(1, *CASES["nine classes"])
    right = probabilities.argmax(axis=1) == true
    intervals = classification_metrics(true, probabilities, list("abcdefghi"))["intervals"]
    for found, hits in ((intervals["accuracy"], right), (intervals["per_class"]["c"]["recall"], right[true == 2])):
        test = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
        assert found == pytest.approx([test.low, test.high], abs=1e-9)


def test_a_certain_mistake_costs_a_finite_loss():
    result = classification_metrics(np.array([1]), np.array([[1.0, 0.0]]), ["a", "b"])
    assert result["loss"] == pytest.approx(-np.log(1e-7))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\); got \(3, 4\)"):
        classification_metrics(np.zeros(3, np.int64), np.ones((3, 4)), ["a", "b"])
    with pytest.raises(ValueError, match="at least one image"):
        classification_metrics(np.zeros(0, np.int64), np.ones((0, 2)), ["a", "b"])


def test_a_thousand_classes_take_little_memory():
    """A bootstrap of the confusion matrix took 32 GB; a table of classes by classes alone is 8 MB."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 1_000, 5_000)
    probabilities = np.eye(1_000, dtype=np.float32)[np.where(rng.random(5_000) < 0.8, true, (true + 1) % 1_000)]
    names = [str(number) for number in range(1_000)]
    tracemalloc.start()
    try:
        result = classification_metrics(true, probabilities, names, np.arange(5_000) // 2)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert peak < 50
    low, high = result["intervals"]["f1_macro"]
    assert low <= result["f1_macro"] <= high < low + 0.05
    assert low <= 0.8 <= high, "of five photos a class, F1 is too low on average"
