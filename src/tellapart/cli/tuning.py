"""The command that searches for better settings: tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tellapart.cli.machine import cache_of_user

if TYPE_CHECKING:
    from tellapart.experiments.tuning.result import Tuning

_SHOWN = 5


def tune(
    photos: Annotated[Path, typer.Argument(help="A folder per class, train/val/test folders of those, or a table.")],
    *,
    trials: Annotated[int, typer.Option(help="Trials to finish, including earlier ones.", min=1)] = 30,
    time_: Annotated[str | None, typer.Option("--time", help="Start no trial after this time: 90s, 10m, 1h.")] = None,
    recipe: Annotated[str, typer.Option(help="The recipe to improve: a TOML file or a name.")] = "fast",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting of all trials: train.epochs=12. Can be repeated."),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            help='Search this: "train.learning_rate=1e-4..1e-2 log", "train.batch_size=16,32", a TOML file, or default.'
            " Can be repeated; nothing else is searched then."
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of a database that workers share [default: a file in OUT].",
            envvar="TELLAPART_STORAGE",
            show_envvar=True,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search [default: tuning/NAME].")] = None,
    workers: Annotated[int, typer.Option(help="Processes that run trials in parallel.", min=1)] = 1,
    confirm: Annotated[
        int, typer.Option(help="Fresh seeds with which the winner and the recipe are trained at the end.", min=0)
    ] = 3,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Trade accuracy against milliseconds per image; disables pruning.")
    ] = False,
    prune: Annotated[bool, typer.Option(help="Stop poor trials early.")] = True,
    seed: Annotated[int, typer.Option(help="Random seed of the search.")] = 0,
) -> None:
    """Search for better settings.

    The best are confirmed on fresh seeds. Run it again, here or elsewhere, to share the work.

    Example: tellapart tune photos --trials 30
    """
    from tellapart.cli.show import announce, import_keras, progress_bar
    from tellapart.experiments.tuning.study import optuna_or_error
    from tellapart.settings import parse_duration

    # Report a wrong duration or a missing Optuna before importing Keras, which takes seconds.
    limit = parse_duration(time_) if time_ else None
    optuna_or_error()
    import_keras()
    from tellapart.experiments.tuning.tune import tune as tune_photos

    with progress_bar() as progress:
        result = tune_photos(
            photos, trials=trials, recipe=recipe, changes=set_ or (), space=space or (), time_limit=limit,
            storage=storage, out=out, workers=workers, seeds=confirm, pareto=pareto, prunes=prune, seed=seed,
            cache=cache_of_user(), progress=progress, announce=announce,
        )  # fmt: skip
    _show(result)


def _show(result: Tuning) -> None:
    from tellapart.cli.show import console, escaped

    output = console()
    output.print(_best_trials(result))
    output.print(_winner(result))
    stopped = sum(trial.state == "stopped" for trial in result.trials)
    output.print(
        f"{len(result.trials)} trials, {stopped} of them stopped early; {result.seconds['trials']:.0f} s in trials, "
        f"{result.seconds['overhead']:.1f} s around them."
    )
    if result.verdict:
        output.print(escaped(result.verdict), soft_wrap=True)
    output.print(
        escaped(
            f"Everything is in {result.folder}: tune.html, trials.csv; train with --recipe {result.folder}/best.toml"
        ),
        soft_wrap=True,
    )


def _best_trials(result: Tuning) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    finished = [trial for trial in result.trials if trial.state == "finished" and trial.accuracy is not None]
    if result.front:
        listed = [trial for number in result.front for trial in finished if trial.number == number]
        title = "Not beaten in both aims"
    else:
        listed = sorted(finished, key=lambda trial: (-(trial.accuracy or 0), trial.loss or 0))[:_SHOWN]
        title = "The best on validation"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("trial", "accuracy", "loss", "seconds", *(("ms per image",) if result.front else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in listed:
        speed = (f"{trial.ms_per_image:.2f}",) if result.front and trial.ms_per_image is not None else ()
        table.add_row(str(trial.number), f"{trial.accuracy:.3f}", f"{trial.loss:.3f}", f"{trial.seconds:.0f}", *speed)
    return table


def _winner(result: Tuning) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import escaped

    table = Table(title=f"Trial {result.best}, the winner", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("setting", overflow="fold")
    for name in ("value", "matters"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("searched", overflow="fold")
    for name, value in result.winner.values.items():
        share = f"{100 * result.importance[name]:.0f} %" if name in result.importance else "–"
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        table.add_row(escaped(name), escaped(text), share, escaped(result.space[name]))
    return table
