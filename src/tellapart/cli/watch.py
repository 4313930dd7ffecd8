"""The command that looks at what a server keeps: watch."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tellapart.cli.ab import Store
from tellapart.cli.models import Where
from tellapart.errors import InputError

if TYPE_CHECKING:
    from tellapart.bundles.bundle import Bundle
    from tellapart.monitoring.watching import Look

_POST_SECONDS = 10.0


def watch(
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle that answers [default: the champion of --name].")
    ] = None,
    *,
    store: Store,
    name: Annotated[str | None, typer.Option(help="Name that it is served under [default: its own].")] = None,
    false_alarm_every: Annotated[
        int, typer.Option(help="Photos until a false alarm, on average, at the least.", min=100)
    ] = 10_000,
    days: Annotated[float | None, typer.Option(help="Look back so many days [default: all].", min=0.001)] = None,
    every: Annotated[str | None, typer.Option(help="Look again after so long, as in 10m [default: look once].")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL that gets a POST when drift begins and ends.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="File for Prometheus' textfile collector.")] = None,
    registry_url: Where = None,
) -> None:
    """Look for drift in stored predictions.

    Also estimates, without labels, how many answers are right and how often each class comes. Exit code 1 where an
    alarm was raised within the last 500 photos.

    Example: tellapart watch bundle --store requests.db
    """
    import tempfile

    from sqlalchemy.exc import SQLAlchemyError

    from tellapart.cli.show import announce
    from tellapart.databases import reason_of, url_of
    from tellapart.errors import UnavailableError
    from tellapart.monitoring.watching import look
    from tellapart.request_store import RequestStore
    from tellapart.settings import parse_duration

    pause, told = None if every is None else parse_duration(every), False
    with tempfile.TemporaryDirectory(prefix="tellapart-watch-") as folder:
        while True:
            try:
                opened = _opened(bundle, name, registry_url, Path(folder))
                since = 0.0 if days is None else time.time() - 86400 * days
                with closing(RequestStore(url_of(store))) as requests:
                    seen = look(opened, requests, name=name, since=since, false_alarm_every=false_alarm_every)
            except (UnavailableError, SQLAlchemyError) as error:
                # Whoever watches for weeks sees databases restart.
                if pause is None:
                    raise
                announce(f"warning: not looked: {reason_of(error)}. Again in {every}.")
            else:
                told = _tell(seen, opened, told, webhook, metrics)
            if pause is None:
                break
            time.sleep(pause)
    if seen is not None and seen.is_drifting:
        raise typer.Exit(1)


def _opened(bundle: Path | None, name: str | None, registry_url: str | None, folder: Path) -> Bundle:
    """Return the bundle that is meant: that of the champion may be another one at each look."""
    from tellapart.bundles.bundle import open_bundle

    if bundle is not None:
        return open_bundle(bundle)
    if name is None:
        raise InputError("What is to be watched? Expected a bundle, or --name of a model in the registry.")
    from tellapart.registry import Registry

    registry = Registry(registry_url)
    champion = registry.champion(name)
    if champion is None:
        raise InputError(f"{name} has no champion in {registry.shown}. Expected: tellapart models promote {name} 1.")
    return open_bundle(registry.fetch_bundle(champion, folder))


def _tell(seen: Look | None, opened: Bundle, told: bool, webhook: str | None, metrics: Path | None) -> bool:
    """Say what was seen, to all who want to know; return whether the webhook knows that there is drift."""
    if seen is None:
        typer.echo(f"No photos of {opened.record.name} {opened.version} are stored.")
        return told
    _print(seen)
    if metrics is not None:
        from tellapart.files import write_text

        # Replaced by a rename: the collector may read it at any moment, and must not find half a file.
        write_text(metrics, _metrics(seen))
    if webhook is None or seen.is_drifting == told:
        return told
    return seen.is_drifting if _post(webhook, seen) else told


def _print(seen: Look) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import console, escaped
    from tellapart.monitoring.watching import RECENT

    recent = min(RECENT, seen.num_photos)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in ("", f"last {recent:,} photos", "usual, at most"):
        table.add_column(title, justify="left" if not title else "right")
    for signal, (now, usual) in seen.drift.means.items():
        table.add_row(escaped(signal), f"{now:.3f}", f"{usual:.3f}")
    console().print(table)
    if seen.accuracy is not None and seen.accuracy_before is not None:
        # Without its interval, which does not hold how far off the estimate is where photos have changed.
        typer.echo(
            f"About {100 * seen.accuracy.value:.0f} % of the last {recent:,} answers are right, estimated "
            f"without labels; {100 * seen.accuracy_before:.0f} % of the validation photos are."
        )
    for change in seen.classes[:5]:
        typer.echo(escaped(f"{change.name}: {100 * change.now.value:.0f} % of the photos, {100 * change.before:.0f} % "
                           "before."))  # fmt: skip
    typer.echo(f"{seen.num_photos:,} photos; evidence {seen.drift.evidence[-1]:.3g}, an alarm is raised at 1.")
    if seen.alarms:
        typer.echo(
            f"{len(seen.alarms)} alarm(s), the first after {seen.drift.alarms[0]:,} photos ({_when(seen.alarms[0])}), "
            f"the last at {_when(seen.alarms[-1])}."
        )
    typer.echo(("Drift: " if seen.is_drifting else "") + seen.sentence)


def _post(url: str, seen: Look) -> bool:
    """Send what was seen; return whether it arrived. A failure is said, and tried again at the next look."""
    import urllib.request

    from tellapart.cli.show import announce

    body = json.dumps(seen.to_dict()).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_POST_SECONDS):
            return True
    except (OSError, ValueError) as error:
        announce(f"warning: {url} was not told: {error}")
        return False


def _metrics(seen: Look) -> str:
    """Return what was seen, as Prometheus reads it."""
    of = f'model="{_quoted(seen.model)}",version="{seen.version}"'
    lines: dict[str, list[tuple[str, float]]] = {
        "tellapart_watched_photos": [(of, seen.num_photos)],
        "tellapart_drift": [(of, int(seen.is_drifting))],
        "tellapart_drift_evidence": [(of, float(seen.drift.evidence[-1]))],
        "tellapart_drift_alarms": [(of, len(seen.alarms))],
        "tellapart_signal_mean": [
            (f'{of},signal="{_quoted(name)}"', now) for name, (now, _) in seen.drift.means.items()
        ],
    }
    if seen.accuracy is not None:
        lines["tellapart_estimated_accuracy"] = [(of, seen.accuracy.value)]
    return "".join(
        f"# TYPE {name} gauge\n" + "".join(f"{name}{{{labels}}} {value!r}\n" for labels, value in values)
        for name, values in lines.items()
    )


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
