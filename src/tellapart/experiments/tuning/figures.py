"""Draws the figures of a search as SVG. Knows nothing about how its numbers were made.

What is finished is a filled dot, what was stopped early a hollow one: nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tellapart.experiments.tuning.importance import scores_at_one_look
from tellapart.experiments.tuning.result import Trial, Tuning
from tellapart.experiments.tuning.search_space import Value
from tellapart.report.figures import BLUE, GREEN, GREY, ORANGE, svg


def history(found: Tuning) -> str:
    """Draw each trial's accuracy in the order of the trials, and the best so far."""
    ended = [trial for trial in found.trials if trial.accuracy is not None]
    numbers, scores = [trial.number for trial in ended], [float(trial.accuracy or 0) for trial in ended]
    finished = np.array([trial.state == "finished" for trial in ended])
    best = np.maximum.accumulate(np.where(finished, scores, -np.inf))

    def draw(panel: Any) -> None:
        seen = np.isfinite(best)
        panel.step(np.array(numbers)[seen], best[seen], where="post", color=GREEN, linewidth=1, label="best so far")
        _dots(panel, np.array(numbers), np.array(scores), finished)
        _ring(panel, found.best, float(found.winner.accuracy or 0))
        panel.set_xlabel("trial")
        panel.legend(frameon=False, fontsize=8)

    text = (
        f"Accuracy on validation of {len(ended)} trials; the best is {found.winner.accuracy:.3f}, trial {found.best}."
    )
    return svg(draw, text, "accuracy, trial by trial")


def curves(found: Tuning) -> str:
    """Draw the accuracy of each trial over its epochs; stopped ones end early."""

    def draw(panel: Any) -> None:
        for trial in found.trials:
            if not trial.curve:
                continue
            epochs, scores = zip(*trial.curve, strict=True)
            is_best, is_finished = trial.number == found.best, trial.state == "finished"
            panel.plot(
                epochs, scores, color=GREEN if is_best else BLUE if is_finished else ORANGE,
                linewidth=2 if is_best else 0.8, linestyle="-" if is_finished else "--", zorder=3 if is_best else 2,
                marker="" if is_finished else "x", markersize=4, markevery=[-1],
            )  # fmt: skip
        if found.rung is not None:
            panel.axvline(found.rung, color=GREY, linestyle=":", linewidth=1)
        panel.set_xlabel("epoch")

    stopped = sum(trial.state == "stopped" for trial in found.trials)
    return svg(
        draw, f"Accuracy over the epochs of all trials; {stopped} were stopped early.", "accuracy, epoch by epoch"
    )


def importance(found: Tuning) -> str:
    """Draw the share of the differences that each setting explains."""
    names, shares = list(found.importance), list(found.importance.values())

    def draw(panel: Any) -> None:
        panel.barh(names[::-1], shares[::-1], color=BLUE, zorder=2)  # above the grid
        panel.set_xlabel("share of the differences in accuracy")
        panel.set_xlim(left=0)

    largest = ", ".join(f"{name} {share:.2f}" for name, share in list(found.importance.items())[:3])
    return svg(draw, f"What matters most: {largest}.", "what matters")


def slices(found: Tuning) -> list[str]:
    """Draw for each setting the accuracies over its values, all trials at one epoch, the most important first."""
    scored = scores_at_one_look(found.trials)
    order = [*found.importance, *(name for name in found.space if name not in found.importance)]
    tried = [name for name in order if any(name in trial.values for trial, _ in scored)]
    return [_slice(found, name, scored) for name in tried]


def front(found: Tuning) -> str:
    """Draw accuracy against milliseconds, and the trials that no other one beats in both."""
    ended = [trial for trial in found.trials if trial.ms_per_image is not None and trial.state == "finished"]
    chosen = [trial for number in found.front for trial in ended if trial.number == number]

    def draw(panel: Any) -> None:
        panel.scatter(*_aims(ended), s=18, color=BLUE, zorder=2)
        times, scores = _aims(chosen)
        panel.step(times, scores, where="post", color=GREEN, zorder=1)
        panel.scatter(times, scores, s=50, facecolors="none", edgecolors=GREEN, zorder=3)
        for trial, time, score in zip(chosen, times, scores, strict=True):
            panel.annotate(f"{trial.number}", (time, score), xytext=(4, 4), textcoords="offset points", fontsize=8)
        panel.set_xlabel("milliseconds per image")

    points = ", ".join(f"{trial.accuracy:.3f} in {trial.ms_per_image:.2f} ms" for trial in chosen)
    return svg(draw, f"Accuracy on validation against time; not beaten in both: {points}.", "accuracy against time")


def _aims(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    return [float(trial.ms_per_image or 0) for trial in trials], [float(trial.accuracy or 0) for trial in trials]


def _slice(tuning: Tuning, name: str, scored: Sequence[tuple[Trial, float]]) -> str:
    is_log = tuning.space[name].endswith(" log")
    scored = [pair for pair in scored if name in pair[0].values]  # it may act in some trials only
    values = [trial.values[name] for trial, _ in scored]
    scores = np.array([score for _, score in scored])
    finished = np.array([trial.state == "finished" for trial, _ in scored])
    categories = sorted({str(value) for value in values}) if not all(_is_number(value) for value in values) else []

    def draw(panel: Any) -> None:
        at = np.array(
            [categories.index(str(value)) for value in values] if categories else [float(value) for value in values]
        )
        _dots(panel, at, scores, finished)
        for x, (trial, score) in zip(at, scored, strict=True):
            if trial.number == tuning.best:
                _ring(panel, float(x), score)
        if categories:
            panel.set_xticks(range(len(categories)), categories)
            panel.set_xlim(-0.5, len(categories) - 0.5)
        elif is_log:
            panel.set_xscale("log")
        panel.tick_params(axis="x", labelsize=7)

    return svg(draw, f"Accuracy over {name}, {len(values)} trials.", name, small=True)


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dots(panel: Any, x: Any, y: Any, finished: Any) -> None:
    panel.scatter(x[finished], y[finished], s=16, color=BLUE, zorder=2, label="finished")
    if not finished.all():
        panel.scatter(
            x[~finished], y[~finished], s=16, facecolors="none", edgecolors=ORANGE, zorder=2, label="stopped early"
        )


def _ring(panel: Any, x: float, y: float) -> None:
    panel.scatter([x], [y], s=70, facecolors="none", edgecolors=GREEN, linewidths=1.5, zorder=3)
