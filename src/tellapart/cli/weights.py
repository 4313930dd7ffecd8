"""Commands about pretrained weights: weights list, get and add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def list_weights() -> None:
    """List the networks whose weights are at hand."""
    from rich.table import Table

    from tellapart.cli.show import console, escaped, import_keras

    import_keras()
    from tellapart.models.weights import listed

    table = Table("network", "MB", "file")
    for weights in listed():
        size = f"{weights.path.stat().st_size / 1e6:.1f}" if weights.path else ""
        where = str(weights.path) if weights.path else f"none; tellapart weights get {weights.name}"
        table.add_row(weights.name, size, escaped(where))
    console().print(table)


def get_weights(names: Annotated[list[str], typer.Argument(help="Networks, as in mobilenet_v2.")]) -> None:
    """Download weights before they are needed."""
    from tellapart.cli.show import import_keras

    import_keras()
    from tellapart.models.weights import get

    for name in names:
        typer.echo(f"{name}: {get(name) or 'kept by Keras'}")


def add_weights(
    file: Annotated[Path, typer.Argument(help="The network without its top: .weights.h5 or .h5.")],
    model: Annotated[str, typer.Option(help="Which network it is, as in mobilenet_v2.")],
) -> None:
    """Bring a file of weights to this machine, which may have no network."""
    from tellapart.cli.show import import_keras

    import_keras()
    from tellapart.models.weights import add

    typer.echo(f"{model}: {add(file, model)}. Train with it: --recipe transfer --model {model}")
