"""Draws docs/pictures/compression.png: what compressions found, and what other quantizers make of the same networks.

Run it from the repository's root, after benchmarks/compression.py: python docs/make_compression_picture.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tellapart.compress.picture import COLOURS, GREY

ROOT = Path(__file__).parents[1]
NETWORKS = {"mobilenet_v2": "MobileNetV2, 224 px", "reference": "reference network, 64 px"}
LOWEST = -6.0
"""Points of accuracy below which a peer is drawn on the lower edge, with its loss beside it."""


def main() -> None:
    """Write the picture beside this file, under pictures/."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(NETWORKS), 2)
    for row, (name, title) in zip(grid, NETWORKS.items(), strict=True):
        result = json.loads((ROOT / "results" / f"compression-{name}.json").read_text())
        for axis, unit in zip(row, ("ms a photo, one thread", "MB"), strict=True):
            _draw(axis, result, in_bytes=unit == "MB")
            axis.set_title(title, fontsize=10, loc="left")
            axis.set_xlabel(unit)
        row[0].set_ylabel("accuracy against the\nwhole network, points")
    grid[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(Path(__file__).parent / "pictures" / "compression.png", dpi=110)


def _draw(axis: Any, result: dict[str, Any], *, in_bytes: bool) -> None:
    candidates = [row for row in result["searches"][0]["candidates"] if not row["error"]]
    for precision, colour in COLOURS.items():
        rows = [row for row in candidates if row["precision"] == precision]
        if rows:
            places = [row["bytes"] / 1e6 if in_bytes else row["p50_ms"] for row in rows]
            points = [-100 * row["loss"] for row in rows]
            ends = [
                [100 * (row["loss_high"] - row["loss"]) for row in rows],
                [100 * (row["loss"] - row["loss_low"]) for row in rows],
            ]
            axis.errorbar(
                places, points, yerr=np.maximum(ends, 0), fmt="o", color=colour, label=precision, linewidth=1, capsize=2
            )
    label = "other quantizers, whole network"
    for row in result["peers"]:
        if row.get("error"):
            continue
        place = row["bytes"] / 1e6 if in_bytes else float(np.median(row["p50_ms"]))
        points = -100 * row["loss"]
        axis.plot(place, max(points, LOWEST), "x", color=GREY, label=label)
        label = None
        if points < LOWEST:
            axis.annotate(
                f"{points:.0f}", (place, LOWEST), xytext=(4, 2), textcoords="offset points", fontsize=7, color=GREY
            )
    axis.axhline(-100 * result["budget"], color=GREY, linewidth=1, linestyle=":")
    axis.axhline(0, color=GREY, linewidth=1)
    axis.set_xlim(left=0)
    axis.set_ylim(LOWEST - 0.4, 2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eeeeee")


if __name__ == "__main__":
    main()
