"""Commands about automated retraining: retrain run and history."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from tellapart.cli.ab import Store, share_of
from tellapart.cli.models import Name, Where
from tellapart.errors import InputError, UnavailableError


def run(
    name: Name,
    *,
    store: Store,
    if_needed: Annotated[
        bool, typer.Option("--if-needed", help="Only for a reason: drift, enough labels, age.")
    ] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Give up one that was begun elsewhere.")] = False,
    every: Annotated[str | None, typer.Option(help="Call again after so long, as in 1h [default: once].")] = None,
    labels: Annotated[int, typer.Option(help="New labelled photos that are reason enough.", min=20)] = 200,
    max_days: Annotated[float | None, typer.Option(help="Age that is reason enough [default: none].", min=0)] = None,
    no_drift: Annotated[bool, typer.Option("--no-drift", help="Drift is no reason.")] = False,
    time_: Annotated[
        str | None, typer.Option("--time", help="For the training, as in 10m [default: as the champion's].")
    ] = None,
    trial: Annotated[str, typer.Option(help="Before it is promoted: shadow, split or none.")] = "shadow",
    share: Annotated[str | None, typer.Option(help="That the trial gets [default: 100% in shadow, else 10%].")] = None,
    margin: Annotated[float, typer.Option(help="Points that it may be worse in the trial.", min=0)] = 0.0,
    accuracy_points: Annotated[float, typer.Option(help="Gate: points of accuracy that may be lost.", min=0)] = 1.0,
    class_points: Annotated[float, typer.Option(help="Gate: points that one class may lose.", min=0)] = 5.0,
    negative_flips: Annotated[
        float, typer.Option(help="Gate: percent of photos that may be wrong now and were right.", min=0)
    ] = 3.0,
    slowdown: Annotated[float, typer.Option(help="Gate: largest ratio of the latencies.", min=0)] = 1.5,
    most_labels: Annotated[int | None, typer.Option(help="Labels after which the champion stays.", min=1)] = None,
    out: Annotated[Path, typer.Option(help="Folder for photos, runs and bundles.")] = Path("runs") / "retraining",
    registry_url: Where = None,
) -> None:
    """Train a model again, and take the new version up.

    Each call does what can be done now, and goes on where the last one stopped: call it from cron. Exit code 1 where a
    step cannot be done.

    Example: tellapart retrain run pets --store requests.db --if-needed
    """
    from tellapart.cli.machine import cache_of_user
    from tellapart.cli.show import announce, progress_bar
    from tellapart.databases import url_of
    from tellapart.promotion import GateLimits
    from tellapart.records import Observer
    from tellapart.registry import Registry
    from tellapart.request_store import RequestStore
    from tellapart.retraining import RetrainingOptions, retrain
    from tellapart.settings import parse_duration

    if trial not in ("shadow", "split", "none"):
        raise InputError(f"--trial is {trial!r}. Expected shadow, split or none.")
    is_shadow = trial == "shadow"
    options = RetrainingOptions(
        labels=labels,
        max_days=max_days,
        on_drift=not no_drift,
        time_budget=None if time_ is None else parse_duration(time_),
        trial=trial,
        share=share_of(share or ("100%" if is_shadow else "10%"), is_shadow),
        margin=margin / 100,
        most_labels=most_labels,
        limits=GateLimits(accuracy_points, class_points, negative_flips, slowdown=slowdown),
    )
    pause = None if every is None else parse_duration(every)
    while True:
        try:
            # Opened inside the `try`: a database that is away at this moment is waited for as well.
            with closing(RequestStore(url_of(store))) as requests, progress_bar() as progress:
                outcome = retrain(
                    # With --every for a reason only: without one each round would train the same photos again.
                    Registry(registry_url), requests, name, out, if_needed=if_needed or pause is not None, anew=anew,
                    options=options, cache=cache_of_user(), observer=Observer(progress, announce),
                )  # fmt: skip
            typer.echo(f"{name}: {outcome.state}: {outcome.reason}.")
        except UnavailableError as error:
            # Whoever watches for weeks sees databases restart.
            if pause is None:
                raise
            announce(f"warning: {error} Again in {every}.")
        if pause is None:
            raise typer.Exit(int(outcome.state == "failed"))
        time.sleep(pause)


def history(
    name: Annotated[str | None, typer.Argument(help="Name of a model [default: all].")] = None, *, store: Store
) -> None:
    """Show what was done in each retraining, and why."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import console, escaped
    from tellapart.databases import url_of
    from tellapart.monitoring.retraining_history import RetrainingHistory
    from tellapart.request_store import RequestStore

    with closing(RequestStore(url_of(store))) as requests:
        retrainings = RetrainingHistory(requests).all_of(name)
    if not retrainings:
        typer.echo("There was no retraining yet: tellapart retrain run NAME begins one.")
    for retraining in retrainings:
        title = f"{retraining.model} {retraining.id}: {retraining.outcome or 'goes on'}, in {retraining.place}"
        table = Table(box=SIMPLE_HEAD, padding=(0, 1), title=escaped(title), title_justify="left")
        for column in ("when", "step", "reason"):
            table.add_column(column, no_wrap=column != "reason")
        for step in retraining.steps:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(step.at))
            table.add_row(at, step.name, escaped(step.reason))
        console().print(table)
