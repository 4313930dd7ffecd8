"""Draws docs/pictures/compression.png: what compressions found, and what other quantizers make of the same networks.

Prints the tables of docs/compress.md too: each bundle in its fastest runtime. Run it from the repository's root, after
benchmarks/compressing.py: python docs/make_compression_picture.py
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
NETWORKS = {"mobilenet_v2": "MobileNetV2", "reference": "reference network"}
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
        result = json.loads(files[name].read_text())
        title = f"{NETWORKS[name]}, {result['image_px']} px"
        for axis, unit in zip(row, ("ms a photo, one thread", "MB"), strict=True):
            _draw(axis, result, in_bytes=unit == "MB")
            axis.set_title(title, fontsize=10, loc="left")
            axis.set_xlabel(unit)
        sys.stdout.write(f"\n{title}\n{table(result)}\n\n{seeds(result)}\n{result['floors']}\n")
        row[0].set_ylabel("accuracy against the\nwhole network, points")
    sys.stdout.write("\n" + "\n".join(summary(name, json.loads(files[name].read_text())) for name in measured) + "\n")
    grid[-1, 0].legend(frameon=False, fontsize=8, loc="center right")
    figure.savefig(Path(__file__).parent / "pictures" / "compression.png", dpi=110)


def table(result: dict[str, Any]) -> str:
    """Return the rows of a Markdown table: network, runtime, MB, milliseconds, accuracy lost with its interval.

    First the search's, then those of the other quantizers with ours, timed alike; each in its fastest runtime.
    """
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
    fastest: dict[str, dict[str, Any]] = {}
    for row in result["peers"]:
        if row.get("error"):
            lines.append(f"| {row['quantizer']} | {row['runtime']} | fails | | | |")
            continue
        known = fastest.get(row["quantizer"])
        if known is None or np.median(row["p50_ms"]) < np.median(known["p50_ms"]):
            fastest[row["quantizer"]] = row
    lines += [
        _row(name, row["runtime"], row, float(np.median(row["p50_ms"])), row["interval"], "")
        for name, row in fastest.items()
    ]
    return "\n".join(lines)


def summary(name: str, result: dict[str, Any]) -> str:
    """Return the README's rows of a network: the whole one in its fastest runtime, and what was chosen."""
    search, title = result["searches"][0], f"{NETWORKS[name]}, {result['image_px']} px"
    ratios, candidates = search["ratios"], search["candidates"]
    whole = next(row for row in candidates if row["precision"] == "float32" and row["runtime"] == ratios["whole"])
    rows = [f"| {title} | whole, {whole['runtime']} | {whole['bytes'] / 1e6:.2f} | {whole['p50_ms']:.2f} | | |"]
    for what in ("smallest", "fastest"):
        chosen = ratios[what]
        if chosen is None or (what == "fastest" and chosen == ratios["smallest"]):
            continue
        row = next(row for row in candidates if (row["name"], row["runtime"]) == (chosen["name"], chosen["runtime"]))
        test = search["confirmations"][chosen["name"]]
        rows.append(
            f"| | {row['name']}, {row['runtime']} | {row['bytes'] / 1e6:.2f}, {chosen['times_smaller']:.2f}× | "
            f"{row['p50_ms']:.2f}, {chosen['times_faster']:.2f}× | "
            f"{_points(row['loss'], row['loss_low'], row['loss_high'])} | "
            f"{_points(test['loss'], test['low'], test['high'])} |"
        )
    return "\n".join(rows)


def seeds(result: dict[str, Any], first: int = 0) -> str:
    """Return the rows of a Markdown table: what was chosen in each run, whose recipes differ in their seed alone."""
    lines = []
    for number, search in enumerate(result["searches"], first):
        for what in ("smallest", "fastest"):
            chosen = search["ratios"][what]
            if chosen is None or (what == "fastest" and chosen == search["ratios"]["smallest"]):
                continue
            row = next(
                row for row in search["candidates"]
                if (row["name"], row["runtime"]) == (chosen["name"], chosen["runtime"])
            )  # fmt: skip
            test = search["confirmations"][chosen["name"]]
            lines.append(
                f"| {number} | {what} | {row['name']}, {row['runtime']} | {chosen['times_smaller']:.2f}× | "
                f"{chosen['times_faster']:.2f}× | {_points(row['loss'], row['loss_low'], row['loss_high'])} | "
                f"{_points(test['loss'], test['low'], test['high'])} |"
            )
    return "\n".join(lines)


def _points(loss: float, low: float, high: float) -> str:
    """Return a loss in points, with its interval."""
    return f"{100 * loss:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _row(name: str, runtime: str, row: dict[str, Any], ms: float, interval: Sequence[float], mark: str) -> str:
    size, loss = row["bytes"] / 1e6, _points(row["loss"], *interval)
    return f"| {name} | {runtime} | {size:.2f} | {ms:.2f} | {loss} | {mark}".rstrip() + " |"


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
