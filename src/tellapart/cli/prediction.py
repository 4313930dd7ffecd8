"""The command that names pictures: predict."""

from __future__ import annotations

import csv
import enum
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tellapart.records import Prediction


class Format(enum.StrEnum):
    """How predictions are printed."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"


def predict(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    top: Annotated[int, typer.Option(help="How many classes to list for each image.", min=1)] = 3,
    format_: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Name images with a trained run. One that cannot be read costs the others nothing; exit code 1 then."""
    from tellapart.cli.show import console, import_quietly, progress_bar

    import_quietly("keras")
    from tellapart.evaluation.predict import image_files, load
    from tellapart.files import write_text

    files = image_files(images)
    classifier = load(run)
    with progress_bar() as progress:
        predictions = classifier.predict(files, top_k=top, progress=progress)
    if format_ is Format.table and out is None:
        console().print(prediction_lines(predictions))
    else:
        text = _as_csv(predictions) if format_ is Format.csv else _as_json_lines(predictions)
        if out is None:
            sys.stdout.write(text)
        else:
            write_text(out, text)
    failed = sum(prediction.label is None for prediction in predictions)
    if failed:
        typer.echo(f"{failed} of {len(predictions)} images could not be read.", err=True)
        raise typer.Exit(1)


def prediction_lines(predictions: Sequence[Prediction]) -> Any:
    """Return a rich table: image, label, probability and the runners-up."""
    from rich.table import Table

    from tellapart.cli.show import escaped

    table = Table()
    for title in ("image", "label", "probability", "then"):
        table.add_column(title, justify="right" if title == "probability" else "left", overflow="fold")
    for prediction in predictions:
        rest = ", ".join(f"{label} {probability:.2f}" for label, probability in prediction.top[1:])
        if prediction.label is None:
            table.add_row(escaped(prediction.path), "[red]unreadable[/]", "", escaped(prediction.error))
        else:
            table.add_row(
                escaped(prediction.path),
                escaped(prediction.label),
                f"{prediction.probability:.3f}",
                escaped(rest),
            )
    return table


def _as_csv(predictions: Sequence[Prediction]) -> str:
    import io

    stream = io.StringIO()
    writer = csv.writer(stream)
    width = max((len(prediction.top) for prediction in predictions), default=0)
    runners_up = [f"{name}_{rank}" for rank in range(2, width + 1) for name in ("label", "probability")]
    writer.writerow(["path", "label", "probability", "error", *runners_up])
    for prediction in predictions:
        rest = [value for pair in prediction.top[1:] for value in pair]
        probability = "" if prediction.label is None else prediction.probability
        writer.writerow([prediction.path, prediction.label or "", probability, prediction.error, *rest])
    return stream.getvalue()


def _as_json_lines(predictions: Sequence[Prediction]) -> str:
    lines = []
    for prediction in predictions:
        values = asdict(prediction)
        values["probability"] = None if prediction.label is None else prediction.probability
        values["top"] = [{"label": label, "probability": probability} for label, probability in prediction.top]
        lines.append(json.dumps(values))
    return "".join(f"{line}\n" for line in lines)
