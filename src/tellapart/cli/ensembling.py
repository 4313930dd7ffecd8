"""The command that joins runs into one network: ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tellapart.cli.machine import cache_of_user

if TYPE_CHECKING:
    from rich.table import Table

    from tellapart.experiments.ensembling.result import Ensemble


def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Finished run folders; one is enough with --snapshots.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the new run [default: runs/ensemble-DATE].")] = None,
    snapshots: Annotated[
        bool,
        typer.Option("--snapshots", help="Also use the snapshots that runs kept while training (train.snapshots)."),
    ] = False,
    distill: Annotated[
        bool, typer.Option("--distill", help="Also distill the ensemble into one student, in OUT-student.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="The student's recipe: a TOML file or a name [default: the best run's].")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting of the student: distill.temperature=4. Can be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of folds and bags.")] = 0,
) -> None:
    """Combine runs into one model.

    Weighted on the validation set; reports the gain on test photos.

    Example: tellapart ensemble runs/a runs/b runs/c
    """
    from tellapart.cli.comparison import table_of_pairs, table_of_runs
    from tellapart.cli.show import announce, console, escaped, import_keras, progress_bar

    import_keras()
    from tellapart.experiments.ensembling.ensemble import ensemble as join_runs

    with progress_bar() as progress:
        result = join_runs(
            runs, out=out, snapshots=snapshots, distill=distill, recipe=recipe, changes=list(set_ or ()),
            cache=cache_of_user(), seed=seed, progress=progress, announce=announce,
        )  # fmt: skip
    output = console()
    output.print(_table_of_networks(result))
    output.print(_table_of_weightings(result))
    if result.test is not None:
        output.print(table_of_runs(result.test))
        output.print(table_of_pairs(result.test))
    lines = [result.choice, result.decoding, *result.verdicts, *result.losses]
    if result.student is not None:
        lines.append(f"The student in {result.student.path} was trained with {result.student.loss}.")
    for line in [*lines, f"A run folder like any other: {result.path}"]:
        if line:
            output.print(escaped(line), soft_wrap=True)


def _table(title: str, first: str, *numbers: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column(first, overflow="fold", min_width=16)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _table_of_networks(result: Ensemble) -> Table:
    """Return what each network, and all together, said of the validation photos."""
    from tellapart.cli.show import escaped

    title = f"{result.num_validation:,} validation photos that no network was trained on"
    table = _table(title, "network", "weight", "loss", "accuracy")
    for standing in result.standings:
        weight = f"{standing.weight:.3f}" if standing.weight else "–"
        table.add_row(escaped(standing.name), weight, f"{standing.loss:.4f}", f"{standing.accuracy:.4f}")
    table.add_row(escaped(result.name), "", f"{result.loss:.4f}", f"{result.accuracy:.4f}")
    return table


def _table_of_weightings(result: Ensemble) -> Table:
    """Return how each way of weighing did."""
    table = _table("Ways to weigh them, by their loss on these photos", "way", "members", "fitted", "held out")
    for score in result.ways:
        mark = " (kept)" if score.method == result.method else ""
        table.add_row(score.method + mark, str(score.members), f"{score.loss:.4f}", f"{score.held_out_loss:.4f}")
    return table
