"""Prints the three tables of docs/ablate.md from kept ablations: python docs/make_ablation_section.py RESULT.json …"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tellapart.experiments.comparison import p_text, points

Values = dict[str, Any]


def section(sets: list[Values]) -> str:
    """Return hyperparameter impact, architecture variations and key insights of all sets side by side, as Markdown."""
    names = [each["photos"] for each in sets]
    first = sets[0]
    lines = [_head("factor", "baseline", "changed to", *names, "processor s")]
    accuracies = [_accuracy(each["recipe"]) for each in sets]
    lines.append(_row("**the recipe**", "", "", *accuracies, _seconds(first["recipe"])))
    for row in first["hyperparameters"]:
        others = [_find(each["hyperparameters"], row["name"]) for each in sets]
        lines.append(
            _row(row["factor"], row["in_recipe"], row["value"], *(_gain(each) for each in others), _seconds(row))
        )
    lines += ["", _head("network", "parameters", *names, "processor s")]
    for row in first["architecture"]:
        others = [_find(each["architecture"], row["name"]) for each in sets]
        cells = [f"{_accuracy(each)}; {_gain(each)}".removesuffix("; ") if each else "" for each in others]
        lines.append(_row(row["value"], f"{row['parameters']:,}", *cells, _seconds(row)))
    lines += ["", _head("photos", "about", "finding", "significant")]
    for each in sets:
        for insight in each["insights"]:
            said = {True: "yes", False: "no", None: ""}[insight["is_detectable"]]
            lines.append(_row(each["photos"], insight["about"], insight["sentence"], said))
    return "\n".join(lines)


def _head(*cells: str) -> str:
    return f"{_row(*cells)}\n{'|---' * len(cells)}|"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _find(rows: list[Values], name: str) -> Values | None:
    return next((row for row in rows if row["name"] == name), None)


def _accuracy(row: Values) -> str:
    if row["accuracy"] is None:
        return "the loss became infinite"
    low, high = row["accuracy"]["interval"]
    return f"{row['accuracy']['value']:.3f} ({low:.3f} to {high:.3f})"


def _gain(row: Values | None) -> str:
    if row is None or row["gained"] is None:
        return "" if row is None or row["accuracy"] else "the loss became infinite"
    low, high = row["gained"]["interval"]
    text = f"{points(row['gained']['value'])} ({points(low)} to {points(high)})"
    return f"**{text}, {p_text(row['corrected_p_value'])}**" if row["is_detectable"] else text


def _seconds(row: Values) -> str:
    return "–" if row["processor_seconds"] is None else f"{row['processor_seconds']:.0f}"


if __name__ == "__main__":
    sys.stdout.write(section([json.loads(Path(path).read_text()) for path in sys.argv[1:]]) + "\n")
