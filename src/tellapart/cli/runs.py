"""Commands about what is there: runs, info and open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tellapart.errors import InputError, RunError

if TYPE_CHECKING:
    from rich.table import Table

    from tellapart.bundles.bundle import Bundle
    from tellapart.run_folder import RunFolder


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, up to three folders deep.")] = Path("runs"),
) -> None:
    """List runs, best first.

    By accuracy on the validation photos: whoever picks a run by its test accuracy has no honest figure left.

    Example: tellapart runs
    """
    from tellapart.cli.show import console, escaped
    from tellapart.run_folder import find_runs

    run_folders = find_runs(folder)
    if not run_folders:
        raise InputError(f"There are no runs in {folder}. Expected run folders made by tellapart train.")
    table = _table("run", "validation", "test", "network", "time", "MB")
    for run in sorted(run_folders, key=_validation_accuracy, reverse=True):
        name = str(run.path.relative_to(folder)) if run.path != folder else str(run.path)
        table.add_row(escaped(name), *map(escaped, _row(run)))
    console().print(table)


def _validation_accuracy(run: RunFolder) -> float:
    # Below any accuracy: runs that are not finished come last.
    accuracy: float = run.metrics().get("validation", {}).get("accuracy", -1.0)
    return accuracy


def _row(run: RunFolder) -> list[str]:
    """Return what the list says of a run beside its name."""
    metrics, recipe = run.metrics(), run.recipe()
    network = f"{recipe.model.name} {recipe.data.image_px} px"
    if not metrics:
        return ["not finished", "", network, "", ""]
    test = metrics.get("test")
    test_text = ""
    if test:
        low, high = test["intervals"]["accuracy"]
        test_text = f"{test['accuracy']:.3f} ({low:.3f}–{high:.3f})"
    seconds = metrics.get("seconds_total")
    size = f"{run.model_path.stat().st_size / 1e6:.1f}" if run.model_path.is_file() else "gone"
    accuracy = _validation_accuracy(run)
    return [
        f"{accuracy:.3f}" if accuracy >= 0 else "", test_text, network,
        f"{seconds / 60:.1f} min" if seconds else "", size,
    ]  # fmt: skip


def info(model: Annotated[Path, typer.Argument(help="A run folder, or a bundle.")]) -> None:
    """Show what a run or a bundle is.

    Example: tellapart info runs/pets
    """
    from tellapart.bundles.bundle import is_bundle, open_bundle
    from tellapart.cli.show import console, escaped, metrics_table
    from tellapart.run_folder import RunFolder

    if is_bundle(model):
        bundle = open_bundle(model)
        rows, metrics = _of_bundle(bundle), dict(bundle.record.metrics)
    else:
        run = RunFolder(model)
        if not run.is_begun:
            raise RunError(f"{model} is neither a run folder nor a bundle. tellapart runs lists the runs of a folder.")
        rows, metrics = _of_run(run), run.metrics()
    table = _table()
    for name, value in rows.items():
        if value:
            table.add_row(name, escaped(value))
    console().print(table)
    if metrics:
        console().print(metrics_table(metrics))


def _of_run(run: RunFolder) -> dict[str, str]:
    record, recipe, metrics = run.record(), run.recipe(), run.metrics()
    report = run.path / "report" / "report.html"
    state = "finished" if run.is_finished else f"not finished; tellapart train --resume {run.path} goes on with it"
    if record.request.ensemble:
        state = f"an ensemble of {', '.join(record.request.ensemble)}"
    budget = record.request.time_budget
    return {
        "run": f"{run.path} ({record.run_id[:12]})" if record.run_id else str(run.path),
        "state": state,
        "photos": f"{record.num_photos:,} of {record.root or record.request.photos}",
        "classes": _classes(record.classes),
        "network": f"{recipe.model.name}, {recipe.data.image_px} px, {record.precision}".rstrip(", "),
        "trained": f"{metrics['seconds_total']:.0f} s, best epoch {metrics['best_epoch']}"
        if {"seconds_total", "best_epoch"} <= set(metrics) else "",
        "time budget": f"{budget:.0f} s" if budget else "",
        "made from": ", ".join(parent[:12] for parent in record.parents),
        "report": f"{report} (tellapart open {run.path})" if report.is_file() else f"tellapart evaluate {run.path}",
    }  # fmt: skip


def _of_bundle(bundle: Bundle) -> dict[str, str]:
    record = bundle.record
    proofs = [
        f"{runtime} {'passed' if proof.passed else 'refused'} ({proof.agreement:.2%})"
        for artefact in record.artefacts
        for runtime, proof in artefact.proofs.items()
    ]
    limits = {
        name: " to ".join("…" if end is None else f"{end:.3g}" for end in ends)
        for name, ends in record.quality_range.items()
        if ends != (None, None)
    }
    return {
        "bundle": f"{record.name}, version {bundle.version}, made {record.created}",
        "classes": _classes(list(record.classes)),
        "input": f"{record.image_px} × {record.image_px} px, {record.preprocessing.channels}, "
        f"{record.preprocessing.dtype}, {record.preprocessing.layout}",
        "prediction sets": f"hold the true class in {record.coverage:.0%} of photos like these"
        if record.threshold is not None else "",
        "artefacts": ", ".join(f"{part.id} ({part.precision}, {part.bytes / 1e6:.2f} MB)" for part in record.artefacts),
        "runtimes": ", ".join(proofs),
        "heat maps": record.explains or "none",
        "quality range": ", ".join(f"{name} {ends}" for name, ends in limits.items()),
        "made from": f"the run {record.source.get('run', '?')}",
    }  # fmt: skip


def _classes(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else ""


def open_report(run: Annotated[Path, typer.Argument(help="A run folder, or a report's folder.")]) -> None:
    """Open a run's report in the browser.

    Example: tellapart open runs/pets
    """
    import webbrowser

    pages = [folder / "report.html" for folder in (run / "report", run)]
    page = next((page for page in pages if page.is_file()), None)
    if page is None:
        raise InputError(f"{run} has no report yet. Make it first: tellapart evaluate {run}.")
    typer.echo(page.resolve().as_uri())
    # Over SSH and in containers there is no browser, so the address is printed first.
    if not webbrowser.open(page.resolve().as_uri()):
        typer.echo("No browser could be started here: open that address in one.", err=True)


def _table(*titles: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    options: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1), "show_header": bool(titles)}
    table = Table(**options)
    for number, title in enumerate(titles or ("", "")):
        justify: Literal["left", "right"] = "left" if number in (0, 3) or not titles else "right"
        table.add_column(title, overflow="fold", no_wrap=title in ("test", "network", "time"), justify=justify)
    return table
