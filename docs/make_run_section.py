"""Prints the table of docs/run-folder.md, and copies a run's curves: python docs/make_run_section.py RUN NAME."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

NAMES = ("accuracy", "precision_macro", "recall_macro", "f1_macro", "loss")
SIDES = ("train", "validation", "test")


def section(run: Path) -> str:
    """Return the metrics table as Markdown."""
    metrics = json.loads((run / "metrics.json").read_text())
    lines = [
        "| | " + " | ".join(f"{side} ({metrics[side]['num_images']:,})" for side in SIDES) + " |",
        "|---|---|---|---|",
    ]
    for name in NAMES:
        cells = []
        for side in SIDES:
            cells.append(f"{metrics[side][name]:.3f}")
            if "intervals" in metrics[side]:  # training photos have none
                low, high = metrics[side]["intervals"][name]
                cells[-1] += f" ({low:.3f} to {high:.3f})"
        lines.append(f"| {name.replace('_', ', ')} | {' | '.join(cells)} |")
    seconds = f"{metrics['seconds_total']:.0f} s from files to metrics, {metrics['seconds_training']:.0f} s of training"
    return "\n".join([*lines, "", f"{seconds}, peak memory {metrics['peak_memory_mb']:.0f} MB."])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shutil.copy(folder / "curves.png", Path(__file__).parent / "pictures" / f"{sys.argv[2]}-curves.png")
    sys.stdout.write(section(folder) + "\n")
