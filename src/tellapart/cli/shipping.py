"""Commands that ship a run: export and benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tellapart.cli.machine import cache_of_user


def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    to: Annotated[Path, typer.Option(help="Output folder; an existing bundle is replaced.")],
    format_: Annotated[
        str, typer.Option("--format", help="Formats beside ONNX, comma-separated: openvino,litert,saved_model,keras.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="Model name [default: the run folder's name].")] = None,
    coverage: Annotated[float, typer.Option(help="Target coverage of the prediction sets.")] = 0.95,
) -> None:
    """Export a run to a self-contained bundle.

    Verified against the Keras model.

    Example: tellapart export runs/pets --to bundle
    """
    from tellapart.cli.show import announce, import_quietly, progress_bar

    import_quietly("keras")
    from tellapart.shipping.export import export as export_run

    formats = [part.strip() for part in format_.split(",") if part.strip()]
    with progress_bar() as progress:
        bundle = export_run(
            run, to, name=name, formats=formats, coverage=coverage, cache=cache_of_user(), progress=progress,
            announce=announce,
        )  # fmt: skip
    size = sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())
    typer.echo(f"{bundle.folder}: {bundle.record.name} {bundle.version}, {size / 1e6:.1f} MB")


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
