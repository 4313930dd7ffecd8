"""Commands about registered versions: models add, list, show, diff, promote, rollback, challenger and get."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tellapart.promotion import GateLimits, Verdict
    from tellapart.registry import RegisteredVersion, Registry

Where = Annotated[
    str | None,
    typer.Option(
        "--registry-url",
        envvar="TELLAPART_REGISTRY",
        show_envvar=True,
        help="The registry: a file, or the URL of an MLflow server or a database [default: runs/registry.db].",
    ),
]
Name = Annotated[str, typer.Argument(help="Name of a model.")]
Which = Annotated[str, typer.Argument(help="Number, alias or digest of a version.")]


def add(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by tellapart export.")],
    run: Annotated[
        Path | None, typer.Option(help="The run that it was made from [default: looked for in runs].")
    ] = None,
    *,
    name: Annotated[str | None, typer.Option(help="Name of the model [default: the bundle's].")] = None,
    challenger: Annotated[bool, typer.Option("--challenger", help="Make it the challenger.")] = False,
    registry_url: Where = None,
) -> None:
    """Add a bundle as a new version.

    Example: tellapart models add bundle --run runs/pets
    """
    opened = _open(registry_url)
    run = run or _run_of(bundle)
    version = opened.add(bundle, run=run, name=name)
    if challenger:
        opened.set_challenger(version)
    typer.echo(f"{version.name} {version.number} ({version.digest}) in {opened.shown}")
    if run is None:
        typer.echo(
            "Its run was not found, so versions cannot be compared photo by photo. Name it with --run.", err=True
        )
    elif opened.champion(version.name) is None:
        typer.echo(f"No champion yet: tellapart models promote {version.name} {version.number}")


def list_models(
    name: Annotated[str | None, typer.Argument(help="Name of a model [default: all].")] = None,
    *,
    registry_url: Where = None,
) -> None:
    """List models and their versions."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import console, escaped

    opened = _open(registry_url)
    names = [name] if name else opened.names()
    if not names:
        typer.echo(f"{opened.shown} has no models yet: tellapart models add BUNDLE")
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in ("model", "version", "alias", "test accuracy", "MB", "bundle"):
        # A digest that is cut cannot be copied.
        table.add_column(title, overflow="fold", no_wrap=title != "model")
    for model in names:
        for version in opened.versions(model):
            table.add_row(
                escaped(model), str(version.number), ", ".join(version.aliases), _accuracy(version),
                f"{version.metrics.get('bundle_mb', 0):.1f}", version.digest,
            )  # fmt: skip
    console().print(table)


def show(name: Name, which: Which = "champion", *, registry_url: Where = None) -> None:
    """Show a version: what it measures, where it comes from."""
    from rich.table import Table

    from tellapart.cli.show import console, escaped

    opened = _open(registry_url)
    version = opened.version(name, which)
    table = Table(show_header=False, box=None)
    tags = {
        key.removeprefix("tellapart."): value for key, value in version.tags.items() if key.startswith("tellapart.")
    }
    rows = {
        "version": f"{version.name} {version.number} ({version.digest})",
        "aliases": ", ".join(version.aliases),
        "added": _when(version.created),
        "classes": tags.get("classes", ""),
        "training run": tags.get("run_id", "")[:12],
        "made from": tags.get("parents", ""),
        "photos": tags.get("data_sha256", "")[:12],
        "commit": tags.get("commit", "")[:12],
        "rolled back": tags.get("rolled_back", ""),
        "MLflow run": version.run,
    }
    rows |= {key: f"{value:.4g}" for key, value in sorted(version.metrics.items())}
    for key, value in rows.items():
        if value:
            table.add_row(key, escaped(value))
    console().print(table)
    for change in opened.changes(name):
        before = "none" if change.before is None else str(change.before)
        typer.echo(f"{_when(change.at)}: champion {before} → {change.after}: {change.reason}")


def diff(
    name: Name,
    first: Annotated[str, typer.Argument(help="The baseline: number, alias or digest.")],
    second: Annotated[str, typer.Argument(help="The other version.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for compare.html and compare.json.")] = Path("compare"),
    speed: Annotated[bool, typer.Option("--speed", help="Also measure both bundles here.")] = False,
    registry_url: Where = None,
) -> None:
    """Compare two versions photo by photo.

    Example: tellapart models diff pets champion 4
    """
    import tempfile

    from tellapart.cli.comparison import table_of_pairs, table_of_runs
    from tellapart.cli.show import console, escaped, progress_bar
    from tellapart.promotion import compare_versions

    opened = _open(registry_url)
    versions = [opened.version(name, which) for which in (first, second)]
    with progress_bar() as progress:
        comparison = compare_versions(opened, versions[0], versions[1], out=out, progress=progress)
    output = console()
    output.print(table_of_runs(comparison))
    output.print(table_of_pairs(comparison))
    pair = comparison.pairs[0]
    for part in (part for part in pair.slices if part.is_detectable):
        gained = f"{100 * part.difference.value:+.1f}".replace("-", "−")
        output.print(escaped(f"{part.column} {part.value}: {gained} points on {part.num_images} photos"))
    output.print(escaped(pair.verdict), soft_wrap=True)
    loss = pair.differences["loss"]
    ends = f"{loss.interval.low:+.3f} to {loss.interval.high:+.3f}"
    typer.echo(f"Log loss (calibration): {loss.value:+.3f} nats ({ends}), lower is better".replace("-", "−"))
    for version in versions:
        typer.echo(f"{version.number}: {version.metrics.get('bundle_mb', 0):.1f} MB")
    if speed:
        from tellapart.bundles.bundle import open_bundle
        from tellapart.bundles.latency import median_latencies

        with tempfile.TemporaryDirectory() as folder:
            bundles = [open_bundle(opened.fetch_bundle(version, Path(folder))) for version in versions]
            for version, milliseconds in zip(versions, median_latencies(bundles), strict=True):
                typer.echo(f"{version.number}: {milliseconds:.2f} ms a picture on one thread")
    output.print(escaped(f"Photos, slices and intervals: {out / 'compare.html'}"), soft_wrap=True)


def promote(
    name: Name,
    which: Which = "challenger",
    *,
    margin: Annotated[float, typer.Option(help="Points of accuracy that may be lost.", min=0)] = 1.0,
    class_margin: Annotated[float, typer.Option(help="Points that one class may lose.", min=0)] = 5.0,
    negative_flips: Annotated[
        float, typer.Option(help="Percent of photos that may be wrong now and were right.", min=0)
    ] = 3.0,
    slowdown: Annotated[float, typer.Option(help="Largest ratio of the latencies.", min=0)] = 1.5,
    force: Annotated[bool, typer.Option("--force", help="Promote it even where gates fail.")] = False,
    registry_url: Where = None,
) -> None:
    """Make a version the champion, if it passes the gates.

    Exit code 1 where a gate fails; the champion stays.

    Example: tellapart models promote pets 4
    """
    from tellapart.cli.show import progress_bar
    from tellapart.promotion import GateLimits, judge

    opened = _open(registry_url)
    version = opened.version(name, which)
    # By place: accuracy, one class, flips. `loss_nats` would be next, and keeps its default.
    limits = GateLimits(margin, class_margin, negative_flips, slowdown=slowdown)
    if force:
        # The gates are tried all the same: what they say is noted with the promotion.
        verdict = _judged_anyway(opened, version, limits)
    else:
        with progress_bar() as progress:
            verdict = judge(opened, version, limits=limits, progress=progress)
    if verdict is not None:
        _print_gates(verdict)
    if not force and verdict is not None and not verdict.passed:
        champion = opened.champion(name)
        typer.echo(f"{name} {champion.number if champion else ''} stays champion.")
        raise typer.Exit(1)
    reason = "not judged" if verdict is None else verdict.reason
    opened.promote(version, f"forced; {reason}" if force else reason)
    typer.echo(f"{name} {version.number} is champion.")


def rollback(
    name: Name,
    *,
    reason: Annotated[str, typer.Option(help="Noted at the version that is rolled back.")] = "by hand",
    registry_url: Where = None,
) -> None:
    """Make the version champion that was it before.

    Example: tellapart models rollback pets --reason "complaints about owls"
    """
    version = _open(registry_url).rollback(name, reason)
    typer.echo(f"{name} {version.number} ({version.digest}) is champion again.")


def challenger(
    name: Name,
    which: Annotated[str | None, typer.Argument(help="Number or digest of a version [default: none any more].")] = None,
    *,
    registry_url: Where = None,
) -> None:
    """Name the challenger, or remove it."""
    opened = _open(registry_url)
    if which is None:
        opened.remove_challenger(name)
        typer.echo(f"{name} has no challenger.")
        return
    version = opened.version(name, which)
    opened.set_challenger(version)
    typer.echo(f"{name} {version.number} ({version.digest}) is challenger.")


def get(
    name: Name,
    which: Which = "champion",
    *,
    to: Annotated[Path, typer.Option(help="Folder that gets the bundle, under its digest.")] = Path("bundles"),
    registry_url: Where = None,
) -> None:
    """Copy a version's bundle out of the registry."""
    opened = _open(registry_url)
    typer.echo(str(opened.fetch_bundle(opened.version(name, which), to)))


def _open(where: str | None) -> Registry:
    from tellapart.registry import Registry

    return Registry(where)


def _run_of(bundle: Path) -> Path | None:
    """Return the run in ./runs that a bundle was made from; None: it is not there."""
    from tellapart.bundles.bundle import open_bundle
    from tellapart.run_folder import find_runs

    # By the id, not by the run's name in the bundle: a run folder may have been moved or renamed.
    run_id = open_bundle(bundle).record.source.get("run_id")
    return next((run.path for run in find_runs(Path("runs")) if run_id and run.record().run_id == run_id), None)


def _judged_anyway(registry: Registry, version: RegisteredVersion, limits: GateLimits) -> Verdict | None:
    """Judge a version that will be promoted whatever comes out; None: it cannot be judged."""
    from tellapart.errors import TellapartError
    from tellapart.promotion import judge

    try:
        return judge(registry, version, limits=limits)
    except TellapartError as error:  # a bundle that runs nowhere here is no reason not to be forced
        typer.echo(f"The gates cannot be tried: {error}", err=True)
        return None


def _print_gates(verdict: Verdict) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tellapart.cli.show import console, escaped

    table = Table("gate", "", "measured", box=SIMPLE_HEAD, padding=(0, 1))
    for gate in verdict.gates:
        table.add_row(gate.name, "passed" if gate.passed else "FAILED", escaped(gate.reason))
    console().print(table)


def _accuracy(version: RegisteredVersion) -> str:
    accuracy = version.metrics.get("test.accuracy")
    if accuracy is None:
        return ""
    low, high = (version.metrics.get(f"test.accuracy.{end}", float("nan")) for end in ("low", "high"))
    return f"{accuracy:.3f} ({low:.3f}–{high:.3f})"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
