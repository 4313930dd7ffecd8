"""The command that weighs runs against each other: compare."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tellapart.experiments.comparison import Comparison


class Against(enum.StrEnum):
    """With which runs each run is compared."""

    first = "first"
    all = "all"


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more finished run folders; the first is the baseline.")],
    out: Annotated[Path, typer.Option(help="Folder for compare.html and compare.json.")] = Path("compare"),
    against: Annotated[Against, typer.Option(help="Compare each run with the first, or every pair.")] = Against.first,
    speed: Annotated[bool, typer.Option("--speed", help="Also load each model and measure its latency.")] = False,
) -> None:
    """Compare runs photo by photo.

    On held-out photos: which is better, by how much, and whether the difference is significant.

    Example: tellapart compare runs/a runs/b
    """
    from tellapart.cli.show import console, escaped, import_keras, progress_bar

    # Only --speed needs the networks. Everything else is in the runs' tables of predictions, and importing Keras takes
    # seconds.
    if speed:
        import_keras()
    from tellapart.experiments.compare import compare as compare_runs

    with progress_bar() as progress:
        comparison = compare_runs(runs, against=against.value, out=out, speed=speed, progress=progress)
    output = console()
    output.print(table_of_runs(comparison))
    output.print(table_of_pairs(comparison))
    for pair in comparison.pairs:
        output.print(escaped(pair.verdict), soft_wrap=True)
    output.print(escaped(f"Photos, slices and intervals: {out / 'compare.html'}"), soft_wrap=True)


def table_of_runs(comparison: Comparison) -> object:
    """Return a rich table of the runs, with what each costs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import escaped

    title = f"{comparison.num_photos:,} test photos that are new to every run"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("run", overflow="fold", min_width=16)
    speed = ("ms, 1", "ms, 32") if any(run.cost.ms_per_image for run in comparison.runs) else ()
    for name in ("accuracy", "F1", "loss", "seconds", "parameters", *speed):
        table.add_column(name, justify="right", no_wrap=True)
    for run in comparison.runs:
        cost, measures = run.cost, run.measures
        speeds = list((cost.ms_per_image or {}).values())
        table.add_row(
            escaped(run.name),
            *(f"{measures[name].value:.3f}" for name in ("accuracy", "f1_macro", "loss")),
            *(_known(cost.seconds_training, ",.0f"), _known(cost.parameters, ",")),
            *([f"{value:.2f}" for value in speeds] or ["–"] * len(speed)),
        )
    return table


def table_of_pairs(comparison: Comparison) -> object:
    """Return a rich table of the differences, two runs at a time."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import escaped
    from tellapart.evaluation.wording import p_text, points

    table = Table(
        title="Second less first; flips: photos that only the first, only the second got right",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for name in ("first", "second"):
        table.add_column(name, overflow="fold", min_width=12)
    for name in ("points of accuracy", "p", "flips"):
        table.add_column(name, justify="right", no_wrap=True)
    for pair in comparison.pairs:
        gained = pair.differences["accuracy"]
        interval_text = f"{points(gained.interval.low)} to {points(gained.interval.high)}"
        table.add_row(
            escaped(pair.first),
            escaped(pair.second),
            f"{points(gained.value)} ({interval_text})",
            p_text(pair.corrected_p_value).removeprefix("p = ").removeprefix("p "),
            f"{len(pair.only_first)}, {len(pair.only_second)}",
        )
    return table


def _known(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
