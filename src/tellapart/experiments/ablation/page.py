"""Lays an ablation out as one HTML file that needs nothing else, and as a picture. Knows nothing about training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tellapart.experiments.ablation.result import Ablation, Row
from tellapart.files import atomic_file
from tellapart.report import html

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#8c959f"


def write_page(folder: Path, ablation: Ablation) -> None:
    """Write ``ablation.html`` and ``ablation.png`` into the folder."""
    drawn = draw_differences(ablation)
    with atomic_file(folder / "ablation.png") as stream:
        stream.write(drawn)
    values = {"ablation": ablation, "picture": base64.b64encode(drawn).decode()}
    html.write_page(folder / "ablation.html", "ablation.html", values)


def draw_differences(ablation: Ablation) -> bytes:
    """Draw as PNG what each change does to the accuracy: blue helps, orange harms, grey is chance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [
        ("Additive: gain over the step before", [row for row in ablation.architecture if row.gained is not None]),
        ("Changed alone: gain over the baseline", [row for row in ablation.hyperparameters if row.gained is not None]),
    ]
    groups = [(title, rows) for title, rows in groups if rows]
    counts = [len(rows) for _, rows in groups] or [1]
    figure = Figure(figsize=(8.5, 1.2 + 0.27 * sum(counts) + 0.5 * len(counts)), layout="constrained")
    FigureCanvasAgg(figure)
    # At least one panel: without rows to draw the picture is empty, but it is there.
    panels = figure.subplots(len(counts), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 1 for n in counts]})
    for panel, (title, rows) in zip(panels[:, 0], groups, strict=False):
        _draw_rows(panel, rows)
        panel.set_title(title, fontsize=10, loc="left")
    panels[-1, 0].set_xlabel(
        f"points of test accuracy, with 95 % intervals ({ablation.photos}, {ablation.num_test:,} test photos, "
        f"{ablation.seeds} seed{'s' if ablation.seeds != 1 else ''})"
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _draw_rows(panel: Any, rows: Sequence[Row]) -> None:
    for position, row in enumerate(rows):
        assert row.gained is not None
        value, low, high = (
            100 * share for share in (row.gained.value, row.gained.interval.low, row.gained.interval.high)
        )
        colour = _GREY if not row.is_detectable else _BLUE if value > 0 else _ORANGE
        mark = "o" if row.is_detectable else "|"  # nothing is said by colour alone
        panel.plot([low, high], [position, position], color=colour, linewidth=2)
        panel.plot(value, position, mark, color=colour, markersize=6)
    panel.axvline(0, color="#333333", linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(rows)), [f"{row.factor} {row.value}".strip() for row in rows], fontsize=8)
    # Turned round: the first row of the table is on top.
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis="x", color="#eeeeee")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
