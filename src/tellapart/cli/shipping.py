"""Commands that ship a run: export, compress and benchmark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tellapart.cli.machine import cache_of_user

if TYPE_CHECKING:
    from rich.table import Table

    from tellapart.compress.compress import Compression


def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder; with --format web a bundle.")],
    to: Annotated[Path, typer.Option(help="Output folder; an existing bundle is replaced.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="Formats beside ONNX, comma-separated: openvino,litert,saved_model,keras; or web or coreml alone.",
        ),
    ] = "",
    name: Annotated[str | None, typer.Option(help="Model name [default: the run folder's name].")] = None,
    coverage: Annotated[float, typer.Option(help="Target coverage of the prediction sets.")] = 0.95,
    precision: Annotated[
        str, typer.Option(help="float32; float16 (half as large); int8-weights, int8 (a quarter; int8 is faster too).")
    ] = "float32",
    margin: Annotated[
        float, typer.Option(help="Largest loss of accuracy that fewer bits must be shown to stay below, as a share.")
    ] = 0.005,
    int8_epochs: Annotated[
        int, typer.Option(help="Epochs of training with rounded weights and activations before int8.", min=0)
    ] = 0,
) -> None:
    """Export a run to a self-contained bundle.

    Verified against the Keras model. --format web makes a static page of a bundle, which runs in the browser.

    Example: tellapart export runs/pets --to bundle
    """
    from tellapart.cli.show import announce, import_keras, progress_bar

    if (alone := format_.strip()) in ("web", "coreml"):
        if name is not None or coverage != 0.95 or precision != "float32" or int8_epochs:
            raise typer.BadParameter(f"--format {alone} takes no other options: a page is made of a bundle as it is.")
        if alone == "coreml":
            import_keras()
            from tellapart.shipping.coreml import export_coreml

            typer.echo(f"{export_coreml(run, to)}: converted, not proved")
            return
        from tellapart.shipping.web import export_web

        folder = export_web(run, to, announce=announce)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        typer.echo(f"{folder}: a page for any web server, {size / 1e6:.1f} MB")
        return
    import_keras()
    from tellapart.shipping.export import export as export_run

    formats = [part.strip() for part in format_.split(",") if part.strip()]
    with progress_bar() as progress:
        bundle = export_run(
            run, to, name=name, formats=formats, coverage=coverage, precision=precision, margin=margin,
            int8_epochs=int8_epochs, cache=cache_of_user(), progress=progress, announce=announce,
        )  # fmt: skip
    size = sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())
    typer.echo(f"{bundle.folder}: {bundle.record.name} {bundle.version}, {size / 1e6:.1f} MB")


def compress(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out: Annotated[Path | None, typer.Option(help="Output folder [default: RUN-compressed].")] = None,
    budget: Annotated[str, typer.Option(help="Largest loss of accuracy: 0.5pp, or a share.")] = "0.5pp",
    shares: Annotated[
        str, typer.Option(help="Shares of the network's cost to try, comma-separated.")
    ] = "90%,75%,55%,40%",
    epochs: Annotated[
        int | None, typer.Option(help="Epochs for each narrower network [default: by its recipe].", min=1)
    ] = None,
) -> None:
    """Find the smallest and the fastest model.

    Fewer channels and int8, each proved against the run. Run it again to resume.

    Example: tellapart compress runs/pets --budget 0.5pp
    """
    from tellapart.cli.show import announce, console, escaped, import_keras, progress_bar
    from tellapart.records import Observer

    import_keras()
    from tellapart.compress.compress import compress as compress_run

    target = out or run.with_name(f"{run.resolve().name}-compressed")
    with progress_bar() as progress:
        result = compress_run(
            run, target, budget=_share(budget), shares=[_share(part) for part in shares.split(",") if part.strip()],
            epochs=epochs, cache=cache_of_user(), observer=Observer(progress, announce),
        )  # fmt: skip
    output = console()
    output.print(_table_of_candidates(result))
    for line in _verdicts(result):
        output.print(escaped(line), soft_wrap=True)


def _share(text: str) -> float:
    """Return a share from "0.5pp", "0.5%" or a plain number such as 0.005."""
    number = text.strip().removesuffix("pp").removesuffix("%").strip()
    try:
        return float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a share. Expected one such as 0.5pp, 75% or 0.75.") from None


def _table_of_candidates(result: Compression) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    titles = ("network", "runtime", "MB", "ms", "accuracy", "loses", "at most", "")
    for title in titles:
        table.add_column(title, justify="left" if title in ("network", "runtime", "") else "right", no_wrap=True)
    marks = {result.smallest: "smallest", result.fastest: "fastest"}
    if result.smallest == result.fastest:
        marks = {result.smallest: "both"}
    for at, candidate in enumerate(result.candidates):
        if not candidate.error:
            table.add_row(
                candidate.name, candidate.runtime, f"{candidate.bytes / 1e6:.2f}", f"{candidate.p50_ms:.2f}",
                f"{candidate.accuracy:.3f}", f"{100 * candidate.loss:+.2f}", f"{100 * candidate.loss_high:+.2f}",
                marks.get(at, ""),
            )  # fmt: skip
    return table


def _verdicts(result: Compression) -> list[str]:
    """Return what was chosen, in sentences."""
    lines = [f"{candidate.name}: {candidate.error}" for candidate in result.candidates if candidate.error]
    if result.smallest is None or result.fastest is None:
        compressed = [candidate for candidate in result.candidates if candidate.name != result.candidates[0].name]
        losses = [candidate.loss_high for candidate in compressed if not math.isnan(candidate.loss_high)]
        near = f" The nearest loses {100 * min(losses):.2f} points at most." if losses else ""
        return [*lines, f"None was shown to lose less than {100 * result.budget:g} points on validation.{near}"]
    for at, confirmation in result.confirmations.items():
        candidate = result.candidates[at]
        kept = "within the budget" if confirmation.high < result.budget else "not shown to be within the budget"
        lines.append(
            f"{candidate.name} in {candidate.runtime}, on test photos: {confirmation.accuracy:.3f}, the whole network "
            f"{confirmation.whole:.3f}; it loses {100 * confirmation.loss:.1f} points "
            f"({100 * confirmation.low:.1f} to {100 * confirmation.high:.1f}): {kept}."
        )
    chosen = {result.candidates[at].bundle for at in (result.smallest, result.fastest)}
    return [*lines, *(f"A bundle like any other: {result.folder / bundle}" for bundle in sorted(chosen))]


def benchmark(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by tellapart export.")],
    threads: Annotated[int | None, typer.Option(help="Threads for one call [default: all processors].", min=1)] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure a bundle in every runtime.

    Latency, images per second, memory, agreement with Keras.

    Example: tellapart benchmark bundle
    """
    import json
    from dataclasses import asdict

    from rich.table import Table

    from tellapart.bundles.latency import benchmark as benchmark_bundle
    from tellapart.cli.show import console, progress_bar
    from tellapart.records import plain

    with progress_bar() as progress:
        speeds = benchmark_bundle(bundle, threads=threads, progress=progress)
    if json_:
        typer.echo(json.dumps(plain([asdict(speed) for speed in speeds]), indent=2))
        return
    table = Table()
    for title in ("runtime", "p50 ms", "p99 ms", "1/call, /s", "32/call, /s", "memory MB", "agrees"):
        table.add_column(title, justify="left" if title == "runtime" else "right", no_wrap=title == "runtime")
    for speed in speeds:
        if speed.error:
            continue
        one, many = speed.images_per_second
        table.add_row(
            speed.runtime, f"{speed.p50_ms:.2f}", f"{speed.p99_ms:.2f}", f"{one:,.0f}", f"{many:,.0f}",
            f"{speed.memory_mb:.0f}", f"{speed.agreement:.2%}",
        )  # fmt: skip
    console().print(table)
    for speed in speeds:
        if speed.error:
            typer.echo(f"{speed.runtime}: {speed.error}")
