"""The command that looks for drift in what a server keeps: watch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tellapart.cli.ab import Store
from tellapart.errors import InputError

_RECENT = 500
"""Photos at the end that stand for now."""


def watch(
    bundle: Annotated[Path, typer.Argument(help="The bundle that answers.")],
    *,
    store: Store,
    name: Annotated[str | None, typer.Option(help="Name that it is served under [default: its own].")] = None,
    false_alarm_every: Annotated[
        int, typer.Option(help="Photos until a false alarm, on average, at the least.", min=100)
    ] = 10_000,
    days: Annotated[float | None, typer.Option(help="Look back so many days [default: all].", min=0.001)] = None,
) -> None:
    """Look for drift in stored predictions.

    Exit code 1 where an alarm was raised within the last 500 photos.

    Example: tellapart watch bundle --store requests.db
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.bundles.bundle import open_bundle
    from tellapart.cli.show import console, escaped
    from tellapart.databases import url_of
    from tellapart.monitoring.drift import find_drift, signals_of
    from tellapart.request_store import RequestStore

    opened = open_bundle(bundle)
    reference = opened.reference_similarities()
    if opened.detector is None or not len(reference):
        raise InputError(
            f"{bundle} has nothing that photos could be compared with: its run had too few validation photos. Train "
            "with more photos, and export again."
        )
    requests = RequestStore(url_of(store))
    try:
        since = 0.0 if days is None else time.time() - 86400 * days
        at, similarity = requests.similarities(name or opened.record.name, opened.version, since=since)
    finally:
        requests.close()
    if not len(at):
        typer.echo(f"No photos of {name or opened.record.name} {opened.version} are stored.")
        return
    signals = signals_of(opened.detector, reference, similarity)
    drift = find_drift(signals, photos_between_false_alarms=false_alarm_every, recent=_RECENT)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in ("", f"last {min(_RECENT, len(at)):,} photos", "usual, at most"):
        table.add_column(title, justify="left" if not title else "right")
    for signal, (now, usual) in drift.means.items():
        table.add_row(escaped(signal), f"{now:.3f}", f"{usual:.3f}")
    console().print(table)
    typer.echo(f"{len(at):,} photos; evidence {drift.evidence[-1]:.3g}, an alarm is raised at 1.")
    if not drift.alarms:
        typer.echo("No drift.")
        return
    first, last = (_when(at[number - 1]) for number in (drift.alarms[0], drift.alarms[-1]))
    typer.echo(
        f"{len(drift.alarms)} alarm(s), the first after {drift.alarms[0]:,} photos ({first}), the last at {last}."
    )
    if len(at) - drift.alarms[-1] < _RECENT:
        typer.echo(f"Drift: photos are {drift.leading}, more often than those that the model was measured on.")
        raise typer.Exit(1)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
