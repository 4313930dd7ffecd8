"""Every measure on every split and for each class, and what a model without a network would reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellapart.blas import one_blas_thread
from tellapart.data.decode import resize
from tellapart.evaluation.intervals import share_interval
from tellapart.evaluation.measure import measure_sides
from tellapart.evaluation.ranking import Curve, curves, macro_average, top_k_accuracy
from tellapart.records import Interval
from tellapart.report import figures
from tellapart.report.part import Advice, Examination, Part, ends

_WIDE = 0.06
"""An interval of accuracy from which on more test photos are worth their work."""


@dataclass(frozen=True)
class Metrics:
    """What was measured.

    Attributes:
        metrics: for each split, as `measure_sides` gives it.
        baseline: accuracy of a linear model on 8 × 8 coloured squares, trained on the same photos.
        top_k: k → (accuracy, interval), on the split that the report is about.
        ranking: ROC and precision-recall curves of the classes, on the same.
        main: that split.
    """

    metrics: dict[str, Any]
    baseline: tuple[float, Interval] | None
    top_k: dict[int, tuple[float, Interval]]
    ranking: list[Curve]
    main: str

    @property
    def of_main(self) -> dict[str, Any]:
        """The metrics of the split that the report is about."""
        metrics: dict[str, Any] = self.metrics[self.main]
        return metrics

    @property
    def guessing(self) -> float:
        """The accuracy of always naming the most frequent class of the split that the report is about."""
        counts = [int(values["num_images"]) for values in self.of_main["per_class"].values()]
        return max(counts) / sum(counts)

    @property
    def beats_guessing(self) -> bool:
        """Whether the accuracy was shown to be higher than that."""
        low = self.of_main["intervals"]["accuracy"][0] if "intervals" in self.of_main else self.of_main["accuracy"]
        return bool(low > self.guessing)

    @property
    def overfits(self) -> bool:
        """Whether accuracy in training is higher than the interval of held-out photos explains."""
        if "train" not in self.metrics or "intervals" not in self.of_main or self.main == "train":
            return False
        return bool(self.metrics["train"]["accuracy"] > self.of_main["intervals"]["accuracy"][1])


def _compute(e: Examination) -> Metrics:
    subject = e.subject
    return Metrics(
        metrics=measure_sides(
            subject.frame, subject.probabilities.astype(np.float32), subject.classes, trained_on=e.own_photos
        ),
        baseline=_baseline(e),
        # With k equal to the number of classes top-k accuracy is always 1.
        top_k={
            k: top_k_accuracy(e.true, e.probabilities, k, e.groups) for k in (1, 2, 3, 5) if k < len(subject.classes)
        },
        ranking=curves(e.true, e.probabilities, subject.classes, e.groups),
        main=subject.main,
    )


def _baseline(e: Examination) -> tuple[float, Interval] | None:
    """Return the accuracy of a logistic regression on 8 × 8 coloured squares: what needs no network."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    subject = e.subject
    trained_on = subject.at("train")
    if not e.own_photos or not len(trained_on) or len(np.unique(subject.numbers[trained_on])) < 2:
        e.missing["baseline"] = "There are no training photos to fit one to."
        return None

    def squares(positions: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = [resize(subject.pictures.read(int(position)), 8).ravel() for position in positions]
        return np.stack(rows).astype(np.float32)

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    of_trained, of_asked = squares(trained_on), squares(e.at)
    with one_blas_thread():
        model.fit(of_trained, subject.numbers[trained_on])
        right = model.predict(of_asked) == e.true
    return float(right.mean()), share_interval(right, e.groups)


def _to_json(value: Metrics) -> dict[str, Any]:
    return {
        "metrics": value.metrics,
        "baseline": {"accuracy": value.baseline[0], "interval": ends(value.baseline[1])} if value.baseline else None,
        "top_k": {str(k): {"accuracy": share, "interval": ends(limits)} for k, (share, limits) in value.top_k.items()},
        "ranking": {
            "macro": macro_average(value.ranking),
            "per_class": {
                curve.name: {
                    "roc_auc": curve.roc_auc,
                    "average_precision": curve.average_precision,
                    "intervals": {name: ends(limits) for name, limits in curve.intervals.items()},
                }
                for curve in value.ranking
            },
        },
    }


def _view(e: Examination, value: Metrics) -> dict[str, Any]:
    del e
    # A class that does not occur has no curve.
    drawn = [curve for curve in value.ranking if len(curve.precision)]
    return {
        "metrics": value.of_main,
        "sides": list(value.metrics),
        "averages": macro_average(value.ranking),
        "roc": figures.roc(drawn),
        "precision_recall": figures.precision_recall(drawn),
    }


def _advice(e: Examination, value: Metrics) -> Sequence[Advice]:
    del e
    steps = []
    if not value.beats_guessing:
        steps.append(
            Advice(1, "Train longer, with more photos, or from pretrained weights: it is not shown to beat guessing.")
        )
    low, high = value.of_main["intervals"]["accuracy"] if "intervals" in value.of_main else (0.0, 1.0)
    if high - low > _WIDE:
        steps.append(Advice(5, f"Collect more test photos: the interval is {100 * (high - low):.0f} points wide."))
    if value.overfits:
        steps.append(
            Advice(6, "Collect more training photos, or train with more augmentation: training accuracy is higher.")
        )
    return steps


METRICS = Part(
    "metrics", "Metrics", "Metrics", _compute, "part-metrics.html", to_json=_to_json, view=_view, advice=_advice
)
