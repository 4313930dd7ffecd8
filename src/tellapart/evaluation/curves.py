"""Draws the learning curves. Knows nothing about how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from tellapart.files import atomic_file

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"  # told apart by the colour-blind (Okabe & Ito 2008)


def draw_curves(history: pd.DataFrame, best_epoch: int, path: Path) -> None:
    """Draw loss, accuracy and learning rate over the epochs as a PNG.

    Args:
        history: the rows of ``history.csv``.
        best_epoch: marked with a dotted line.
        path: the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Not pyplot, whose state belongs to the whole process: a run may be trained in a notebook.
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    # Two of the three panels; the third is the learning rate's.
    for panel, name, title in zip(panels, ("loss", "accuracy"), ("Loss", "Accuracy"), strict=False):
        _draw_measure(panel, history, name, title)
    panels[1].set_ylim(top=1.0)
    panels[2].plot(history["epoch"], history["learning_rate"], color=_GREY)
    panels[2].set_title("Learning rate")
    panels[2].set_ylim(bottom=0)
    # A thin line wherever the size of the pictures changes: curves jump there.
    changes = history["epoch"][history["image_px"].diff().fillna(0) != 0]
    for panel in panels:
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.axvline(best_epoch, color=_GREY, linestyle=":", linewidth=1)
        for epoch in changes:
            panel.axvline(epoch - 0.5, color="#dddddd", linewidth=1, zorder=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#eeeeee")
    _name_sizes(panels[2], history)
    panels[0].annotate(f"best: {best_epoch}", (best_epoch, panels[0].get_ylim()[1]), fontsize=8, color=_GREY,
                       ha="right", va="top", rotation=90)  # fmt: skip
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=110)


def _draw_measure(panel: Any, history: pd.DataFrame, name: str, title: str) -> None:
    """Draw the loss or the accuracy of training and validation."""
    panel.plot(history["epoch"], history[name], color=_ORANGE, label="train (augmented)")
    if f"val_{name}" in history:
        # Not every epoch is validated: a line over the gaps, with marks where there are few.
        validated = history.dropna(subset=[f"val_{name}"])
        marker = "o" if len(validated) < 30 else None
        panel.plot(
            validated["epoch"], validated[f"val_{name}"], color=_BLUE, marker=marker, markersize=3, label="validation"
        )
    panel.set_title(title)
    panel.legend(frameon=False)


def _name_sizes(panel: Any, history: pd.DataFrame) -> None:
    """Write each picture size over the epochs that were trained at it, where there is more than one."""
    sizes = history.groupby("image_px", sort=False)["epoch"].mean()
    if len(sizes) > 1:
        for image_px, middle in sizes.items():
            position = (middle, 0.02)
            panel.annotate(
                f"{image_px} px", position, xycoords=("data", "axes fraction"), ha="center", color=_GREY, fontsize=9
            )
