"""Draws how fast, small and accurate the candidates of a compression are. Knows nothing about how they were made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tellapart.files import atomic_file

if TYPE_CHECKING:
    from tellapart.compress.compress import Candidate, Compression

# Told apart by the colour-blind (Okabe & Ito 2008).
COLOURS = {"float32": "#0072b2", "int8": "#d55e00", "int8-trained": "#009e73", "int8-weights": "#cc79a7"}
GREY = "#666666"


def draw_pareto(result: Compression, path: Path) -> None:
    """Draw the accuracy that each candidate loses over its milliseconds and over its size, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    drawn = [candidate for candidate in result.candidates if not candidate.error]
    for axis, title in zip(axes, ("milliseconds a photo, one thread", "megabytes"), strict=True):
        for precision, colour in COLOURS.items():
            chosen = _fastest_of_each(candidate for candidate in drawn if candidate.precision == precision)
            if not chosen:
                continue
            places = [candidate.p50_ms if axis is axes[0] else candidate.bytes / 1e6 for candidate in chosen]
            points = [-100 * candidate.loss for candidate in chosen]
            ends = [  # rounding brings an end below the value where two models agree on every photo
                [100 * max(candidate.loss_high - candidate.loss, 0.0) for candidate in chosen],
                [100 * max(candidate.loss - candidate.loss_low, 0.0) for candidate in chosen],
            ]
            axis.errorbar(
                places, points, yerr=ends, fmt="o-", color=colour, label=precision,
                linewidth=1, capsize=2, markersize=5,
            )  # fmt: skip
            for candidate, place, height in zip(chosen, places, points, strict=True):
                axis.annotate(
                    f"{candidate.share:.0%}", (place, height), xytext=(5, 5), textcoords="offset points",
                    fontsize=8, color=colour,
                )  # fmt: skip
        axis.axhline(0, color=GREY, linewidth=1)
        axis.axhline(-100 * result.budget, color=GREY, linewidth=1, linestyle=":")
        axis.set_xlabel(title)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#eeeeee")
    axes[0].set_ylabel("accuracy against the whole network, points")
    axes[0].annotate(
        "budget", (0, -100 * result.budget), xytext=(3, -11), textcoords="offset points", fontsize=8, color=GREY
    )
    if drawn:
        axes[0].legend(frameon=False, loc="lower right")
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=110)


def _fastest_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the fastest candidate of each network, from the slowest to the fastest."""
    best: dict[float, Candidate] = {}
    for candidate in candidates:
        known = best.get(candidate.share)
        if known is None or candidate.p50_ms < known.p50_ms:
            best[candidate.share] = candidate
    return sorted(best.values(), key=lambda candidate: -candidate.share)
