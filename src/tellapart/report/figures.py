"""Draws the report's figures as SVG. Knows nothing about how the numbers were made.

Each function returns the text of one ``<svg>`` element with a ``<title>``, sharp at any size, its letters kept as text.
Colours are those of Okabe & Ito (2008), which the colour-blind tell apart; nothing is said by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tellapart.evaluation.calibration import Abstention, Calibration
from tellapart.evaluation.ranking import Curve

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
_CLASSES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#999933",
    "#882255",
    "#444444",
    "#44aa99",
)
_LINES = ("-", "--", ":", "-.")
_MOST_CURVES = 20


def learning_curve(history: pd.DataFrame, name: str, best_epoch: int) -> str:
    """Draw "loss", "accuracy" or "learning_rate" over the epochs; the best epoch is marked."""

    def draw(panel: Any) -> None:
        panel.plot(history["epoch"], history[name], color=ORANGE, label="train (augmented)")
        if f"val_{name}" in history:
            # Not every epoch is validated: draw the line through those that were.
            validated = history.dropna(subset=[f"val_{name}"])
            panel.plot(validated["epoch"], validated[f"val_{name}"], color=BLUE, linestyle="--", label="validation")
            panel.legend(frameon=False)
        panel.axvline(best_epoch, color=GREY, linestyle=":", linewidth=1)
        panel.annotate(f"best: {best_epoch}", (best_epoch, 0.98), xycoords=("data", "axes fraction"), color=GREY,
                       ha="right", va="top", rotation=90)  # fmt: skip
        panel.set_xlabel("epoch")
        if name == "learning_rate":
            panel.set_ylim(bottom=0)

    title = name.replace("_", " ")
    return svg(draw, f"{title.capitalize()} over {len(history)} epochs; the best epoch is {best_epoch}.", title)


def roc(curves: Sequence[Curve]) -> str:
    """Draw the ROC curves of the classes."""

    def draw(panel: Any) -> None:
        panel.plot([0, 1], [0, 1], color="#cccccc", linewidth=1)
        for number, curve in enumerate(curves[:_MOST_CURVES]):
            panel.plot(
                curve.false_positive_rate, curve.true_positive_rate, label=_in_legend(curve.name), **_style(number)
            )
        panel.set_xlabel("false positive rate")
        panel.set_ylabel("true positive rate")
        _legend(panel, len(curves))

    areas = ", ".join(f"{curve.name} {curve.roc_auc:.3f}" for curve in curves)
    return svg(draw, f"ROC curves, each class against the rest; areas: {areas}.", "ROC", square=True)


def precision_recall(curves: Sequence[Curve]) -> str:
    """Draw the precision-recall curves of the classes."""

    def draw(panel: Any) -> None:
        for number, curve in enumerate(curves[:_MOST_CURVES]):
            recall, precision = curve.true_positive_rate, curve.precision
            panel.step(recall, precision, where="pre", label=_in_legend(curve.name), **_style(number))
        panel.set_xlabel("recall")
        panel.set_ylabel("precision")
        panel.set_ylim(0, 1.02)
        _legend(panel, len(curves))

    areas = ", ".join(f"{curve.name} {curve.average_precision:.3f}" for curve in curves)
    return svg(draw, f"Precision against recall; average precision: {areas}.", "precision and recall", square=True)


def reliability(measured: Calibration, title: str) -> str:
    """Draw accuracy against confidence, with intervals, and how many images each point stands for."""

    def draw(panel: Any) -> None:
        panel.plot([0, 1], [0, 1], color="#cccccc", linewidth=1)
        filled = [part for part in measured.bins if part.num_images]
        x = np.array([part.confidence for part in filled])
        y = np.array([part.accuracy for part in filled])
        error_lengths = np.array(
            [(part.accuracy - part.interval.low, part.interval.high - part.accuracy) for part in filled]
        )
        sizes = 10 + 120 * np.array([part.num_images for part in filled]) / max(part.num_images for part in filled)
        # matplotlib refuses negative lengths, which rounding produces if an interval ends at the value.
        panel.errorbar(x, y, yerr=np.maximum(error_lengths.T, 0), fmt="none", ecolor=GREY, linewidth=1)
        panel.scatter(x, y, s=sizes, color=BLUE, zorder=3)
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1.02)
        panel.set_xlabel("how sure the model is")
        panel.set_ylabel("how often it is right")

    return svg(draw, f"Reliability, {title}: expected calibration error {measured.ece:.3f}.", title, square=True)


def answered(measured: Abstention) -> str:
    """Draw accuracy against the share of images that are answered."""

    def draw(panel: Any) -> None:
        panel.fill_between(100 * measured.answered, measured.low, measured.high, color=BLUE, alpha=0.2, linewidth=0)
        panel.plot(100 * measured.answered, measured.accuracy, color=BLUE)
        panel.set_xlabel("% of the images that are answered")
        panel.set_ylabel("accuracy on those")

    text = f"Accuracy {measured.accuracy[-1]:.3f} when all are answered, {_half(measured):.3f} when half of them are."
    return svg(draw, text, "leaving the unsure ones to a person")


def similarities(kinds: Mapping[str, NDArray[np.float32]], threshold: float) -> str:
    """Draw how similar photos of each kind are to the training photos, as shares; below the threshold all are unknown.

    Args:
        kinds: name → (num_images,) cosines; the known photos come first, and are filled.
        threshold: of the decision.
    """
    lowest = min(float(values.min()) for values in kinds.values())
    edges = np.linspace(min(lowest, threshold) - 0.01, 1.001, 41)  # rounded references go a little beyond 1

    def draw(panel: Any) -> None:
        for number, (name, values) in enumerate(kinds.items()):
            weights = np.full(len(values), 100 / len(values))
            if number == 0:
                panel.hist(values, edges, weights=weights, color=BLUE, alpha=0.3, label=_in_legend(name))
            else:
                # Lines differ by style as well as colour, for colour-blind readers and for print.
                style = {"color": _CLASSES[number], "linestyle": _LINES[(number - 1) % len(_LINES)], "linewidth": 1.3}
                panel.hist(values, edges, weights=weights, histtype="step", label=_in_legend(name), **style)
        panel.axvline(threshold, color=GREY, linewidth=1)
        panel.annotate("unknown ", (threshold, 0.99), xycoords=("data", "axes fraction"), color=GREY, ha="right",
                       va="top")  # fmt: skip
        panel.set_xlabel("cosine to the nearest reference")
        panel.set_ylabel("% of the photos")
        panel.legend(frameon=False, fontsize=8)

    shares = ", ".join(f"{name} {(values < threshold).mean():.0%}" for name, values in kinds.items())
    return svg(draw, f"Similarity to the training photos; below {threshold:.3f}: {shares}.", "known and unknown")


def corruption(runs: pd.DataFrame, name: str, clean: float, lowest: float) -> str:
    """Draw accuracy over the severities of one corruption; `lowest` begins the axis, the same for all."""

    def draw(panel: Any) -> None:
        severity = np.concatenate([[0], runs["severity"]])
        accuracy = np.concatenate([[clean], runs["accuracy"]])
        panel.fill_between(runs["severity"], runs["low"], runs["high"], color=BLUE, alpha=0.2, linewidth=0)
        panel.plot(severity, accuracy, color=BLUE, marker="o", markersize=3)
        panel.axhline(clean, color="#cccccc", linewidth=1)
        panel.set_ylim(lowest, 1.0)
        panel.set_xticks(range(6))

    title = name.replace("_", " ")
    worst = runs["accuracy"].iloc[-1]
    return svg(draw, f"{title}: accuracy {clean:.3f} clean, {worst:.3f} at severity 5.", title, small=True)


def quality_measure(bins: pd.DataFrame, name: str, overall: float) -> str:
    """Draw accuracy over the ranges of one measure of photo quality; ranges outside the range are hollow."""

    def draw(panel: Any) -> None:
        at = np.arange(len(bins))
        error_lengths = np.stack([bins["accuracy"] - bins["accuracy_low"], bins["accuracy_high"] - bins["accuracy"]])
        panel.axhline(overall, color="#cccccc", linewidth=1)
        panel.errorbar(at, bins["accuracy"], yerr=np.maximum(error_lengths, 0), fmt="none", ecolor=GREY, linewidth=1)
        fill = [BLUE if inside else "white" for inside in bins["inside"]]
        panel.scatter(at, bins["accuracy"], s=26, c=fill, edgecolors=BLUE, zorder=3)
        panel.set_xticks(at, [f"{low:.3g}–\n{high:.3g}" for low, high in zip(bins["low"], bins["high"], strict=True)])
        panel.tick_params(axis="x", labelsize=7)

    title = name.replace("_", " ")
    low, high = bins["accuracy"].min(), bins["accuracy"].max()
    return svg(draw, f"Accuracy by {title}: {low:.3f} to {high:.3f} over ranges of equal number.", title, small=True)


def _half(measured: Abstention) -> float:
    return float(measured.accuracy[int(np.abs(measured.answered - 0.5).argmin())])


def _style(number: int) -> dict[str, Any]:
    return {"color": _CLASSES[number % len(_CLASSES)], "linestyle": _LINES[number // len(_CLASSES) % len(_LINES)]}


def _in_legend(name: str) -> str:
    """Return a name that matplotlib shows: one that begins with "_" it would leave out."""
    return f"\u2009{name}" if name.startswith("_") else name


def _legend(panel: Any, count: int) -> None:
    if count <= _MOST_CURVES:
        panel.legend(frameon=False, fontsize=8, ncols=1 + count // 8)


def svg(draw: Callable[[Any], None], text: str, title: str, *, square: bool = False, small: bool = False) -> str:
    """Return a figure of one panel that `draw` filled, with `text` for those who cannot see it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    size = (4.2, 4.0) if square else (2.5, 2.0) if small else (4.6, 3.0)
    # Class names are not formulas: "$a$" would be typeset as mathematics, and a single "$" would fail.
    settings: Any = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # without it ids are random, and no two reports are equal
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with rc_context(settings):
        # Not pyplot, whose state belongs to the whole process: a report may be made in a notebook.
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        panel = figure.subplots()
        panel.set_title(title, fontsize=9 if small else 10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#eeeeee")
        draw(panel)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    # Turn the file into a part of a page: no prologue, no fixed size, a title, and ids that no other figure uses.
    svg_text = stream.getvalue()
    element = svg_text[svg_text.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', element, count=1)
    # From the text, which must differ from those of other figures of a page in its first 60 characters: with equal ids
    # one figure would use the other's clip paths.
    id_prefix = re.sub(r"\W+", "-", text)[:60]
    element = _with_prefix(element, id_prefix)
    # The first ">" ends the opening tag, and a title must be the first child to be read out.
    return element.replace(">", f"><title>{escape(text)}</title>", 1)


def _with_prefix(element: str, prefix: str) -> str:
    """Give the ids of an SVG a prefix: several figures stand in one page."""
    return re.sub(r'(\bid="|url\(#|href="#)([^")]+)', rf"\g<1>{prefix}-\g<2>", element)
