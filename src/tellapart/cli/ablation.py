"""The command that says what each ingredient of a recipe is worth: ablate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tellapart.experiments.ablation.result import Row


def ablate(
    photos: Annotated[Path, typer.Argument(help="A folder per class, train/val/test folders of those, or a table.")],
    seeds: Annotated[int, typer.Option(help="Runs of each variant.", min=1)] = 3,
    recipe: Annotated[str, typer.Option(help="A recipe's name or file: the baseline.")] = "fast",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: train.epochs=12. Can be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this variant or factor: no-flip, 'dropout rate'. Can be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for all runs [default: ablations/NAME].")] = None,
) -> None:
    """Measure what each part of a recipe is worth.

    Each is changed alone, with several seeds, on your photos. Re-run to resume.

    Example: tellapart ablate photos --seeds 3
    """
    from tellapart.cli.machine import cache_of_user
    from tellapart.cli.show import announce, console, escaped, import_keras, progress_bar

    # Before the next import, which brings Keras along and would let TensorFlow greet the terminal.
    import_keras()
    from tellapart.experiments.ablation.ablate import ablate as ablate_photos

    folder = out if out is not None else Path("ablations") / photos.resolve().stem
    with progress_bar() as progress:
        result = ablate_photos(
            photos, recipe=recipe, changes=set_ or (), seeds=seeds, only=only or (), out=folder,
            cache=cache_of_user(), progress=progress, announce=announce,
        )  # fmt: skip
    output = console()
    output.print(_table("Hyperparameter impact: one ingredient changed", [result.recipe, *result.hyperparameters]))
    if result.architecture:
        output.print(_table("Architecture: gain over the step before", list(result.architecture)))
    for insight in result.insights:
        mark = {True: "+", False: "·", None: "!"}[insight.is_detectable]
        output.print(f"{mark} {escaped(insight.sentence)}")
    output.print(escaped(f"Tables and pictures: {folder / 'ablation.html'}, {folder / 'ablation.md'}"), soft_wrap=True)


def _table(title: str, rows: list[Row]) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import escaped
    from tellapart.evaluation.wording import points

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", overflow="fold", min_width=16)
    for name in ("accuracy", "points", "p", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        style = "" if not row.is_detectable or row.gained is None else "green" if row.gained.value > 0 else "red"
        gained = "–"
        if row.gained is not None:
            low, high = row.gained.interval.low, row.gained.interval.high
            gained = f"{points(row.gained.value)} ({points(low)} to {points(high)})"
        table.add_row(
            escaped(f"{row.factor} {row.value}".strip()),
            "–" if row.accuracy is None else f"{row.accuracy.value:.3f}",
            gained,
            _chance(row.corrected_p_value),
            "–" if row.seconds is None else f"{row.seconds:.0f}",
            style=style,
        )
    return table


def _chance(p_value: float | None) -> str:
    from tellapart.evaluation.wording import p_text

    return "–" if p_value is None else p_text(p_value).removeprefix("p = ").removeprefix("p ")
