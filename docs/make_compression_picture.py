"""Draws docs/pictures/compression.png: what compressions found, and what other quantizers make of the same networks.

Prints the tables of docs/compress.md too: each bundle in its fastest runtime. Run it from the repository's root, after
benchmarks/compression.py: python docs/make_compression_picture.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from tellapart.compress.picture import COLOURS, GREY

ROOT = Path(__file__).parents[1]
NETWORKS = {"mobilenet_v2": "MobileNetV2, 224 px", "reference": "reference network, 64 px"}
LOWEST = -6.0
"""Points of accuracy below which a peer is drawn on the lower edge, with its loss beside it."""


def main() -> None:
    """Write the picture beside this file, under pictures/."""
    files = {name: ROOT / "results" / f"compression-{name}.json" for name in NETWORKS}
    measured = [name for name, file in files.items() if file.is_file()]
    figure = Figure(figsize=(11, 3.6 * len(measured)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(measured), 2, squeeze=False)
    for row, name in zip(grid, measured, strict=True):
        title, result = NETWORKS[name], json.loads(files[name].read_text())
        for axis, unit in zip(row, ("ms a photo, one thread", "MB"), strict=True):
            _draw(axis, result, in_bytes=unit == "MB")
            axis.set_title(title, fontsize=10, loc="left")
            axis.set_xlabel(unit)
        sys.stdout.write(f"\n{title}\n{table(result)}\n")
        row[0].set_ylabel("accuracy against the\nwhole network, points")
    grid[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(Path(__file__).parent / "pictures" / "compression.png", dpi=110)


def table(result: dict[str, Any]) -> str:
    """Return the rows of a Markdown table: network, runtime, MB, milliseconds, accuracy lost with its interval."""
    search = result["searches"][0]
    chosen = {row["name"]: what for what, row in search["ratios"].items() if isinstance(row, dict)}
    best: dict[str, dict[str, Any]] = {}
    for row in search["candidates"]:
        known = best.get(row["name"])
        if not row["error"] and (known is None or row["p50_ms"] < known["p50_ms"]):
            best[row["name"]] = row
    lines = [
        _row(name, row["runtime"], row, row["p50_ms"], (row["loss_low"], row["loss_high"]), chosen.get(name, ""))
        for name, row in best.items()
    ]
    for row in result["peers"]:
        if row.get("error"):
            lines.append(f"| {row['quantizer']} | {row['runtime']} | fails | | | |")
        else:
            milliseconds = float(np.median(row["p50_ms"]))
            lines.append(_row(row["quantizer"], row["runtime"], row, milliseconds, row["interval"], ""))
    return "\n".join(lines)


def _row(name: str, runtime: str, row: dict[str, Any], ms: float, interval: Sequence[float], mark: str) -> str:
    low, high = (100 * end for end in interval)
    loss = f"{100 * row['loss']:.1f} ({low:.1f} to {high:.1f})"
    return f"| {name} | {runtime} | {row['bytes'] / 1e6:.2f} | {ms:.2f} | {loss} | {mark} |"


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
        if row.get("error") or row["quantizer"].startswith("tellapart"):  # ours are drawn above
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
    if in_bytes:
        axis.set_xlim(left=0)
    else:  # some take thirty times as long as others
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(LOWEST - 0.4, 2)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eeeeee")


if __name__ == "__main__":
    main()
