"""The command that names pictures: predict."""

from __future__ import annotations

import enum
import io
import sys
from collections.abc import Iterator, Sequence
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
    model: Annotated[Path, typer.Argument(help="A finished run folder, or a bundle made by tellapart export.")],
    images: Annotated[
        list[Path], typer.Argument(help="Images, folders of images, or .txt files with one path per line.")
    ],
    top: Annotated[int, typer.Option(help="Number of classes to list for each image.", min=1)] = 3,
    format_: Annotated[Format, typer.Option("--format", help="Output format.")] = Format.table,
    out: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead: .csv, .jsonl or .parquet. Re-run to resume."),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Inference runtime of a bundle [default: fastest verified on this machine].")
    ] = None,
    quality: Annotated[
        bool, typer.Option(help="With a bundle: warn about photos of lower quality than it was measured on.")
    ] = True,
) -> None:
    """Classify images.

    Unreadable files are reported and skipped (exit code 1).

    Example: tellapart predict bundle photos --out labels.csv
    """
    from tellapart.bundles.tables import predict_files
    from tellapart.cli.show import progress_bar

    files = _files(images)
    classifier = _opened(model, runtime)
    with progress_bar() as progress:
        if out is None:
            predictions = classifier.predict(files, top_k=top, progress=progress)
        else:
            written = predict_files(classifier, files, out, top_k=top, with_quality=quality, progress=progress)
    if out is None:
        _print(predictions, format_)
        # Last of all: it ends the command with exit code 1.
        _report_unreadable(sum(prediction.label is None for prediction in predictions), len(predictions))
        return
    resumed = f" ({written.num_resumed:,} of them from an earlier try)" if written.num_resumed else ""
    unknown = f", {written.num_unknown:,} of no known class" if classifier.detector is not None else ""
    doubts = (
        f", {written.num_abstained:,} without a clear answer, {written.num_warned:,} of lower quality than was measured"
    )
    # Only a bundle has a runtime, a threshold for abstaining and a quality range.
    bundle_facts = f"{doubts}, by {classifier.runtime}" if hasattr(classifier, "runtime") else ""
    typer.echo(f"{written.path}: {written.num_images:,} images{resumed}{unknown}{bundle_facts}")
    _report_unreadable(written.num_unreadable, written.num_images)


def _opened(model: Path, runtime: str | None) -> Any:
    """Open a bundle, or a run, for which Keras is needed."""
    from tellapart.bundles.bundle import is_bundle

    if is_bundle(model):
        from tellapart.bundles.predictor import open_classifier

        return open_classifier(model, runtime=runtime)
    from tellapart.cli.show import import_keras

    import_keras()
    from tellapart.evaluation.predict import load

    return load(model)


def _files(images: list[Path]) -> list[Path]:
    from tellapart.data.listing import image_files, listed_files

    return [file for name in images for file in (listed_files(name) if name.suffix == ".txt" else image_files([name]))]


def _print(predictions: Sequence[Prediction], format_: Format) -> None:
    from tellapart.cli.show import console

    if format_ is Format.table:
        console().print(prediction_lines(predictions))
    else:
        # A file's name need not be UTF-8: it goes out as the bytes that it is, as it does into --out.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")
        # Not by rich, which would wrap long rows to the width of the terminal.
        sys.stdout.writelines(_lines(predictions, format_))


def _report_unreadable(failed: int, total: int) -> None:
    if failed:
        typer.echo(f"{failed} of {total} images could not be read.", err=True)
        raise typer.Exit(1)


def prediction_lines(predictions: Sequence[Prediction]) -> Any:
    """Return a rich table: image, label, probability and the runners-up; of an unknown photo all are runners-up."""
    from rich.table import Table

    from tellapart.cli.show import escaped

    table = Table()
    for title in ("image", "label", "probability", "then"):
        table.add_column(title, justify="right" if title == "probability" else "left", overflow="fold")
    for prediction in predictions:
        listed = prediction.top if prediction.unknown else prediction.top[1:]
        rest = ", ".join(f"{label} {probability:.2f}" for label, probability in listed)
        if prediction.label is None:
            table.add_row(escaped(prediction.path), "[red]unreadable[/]", "", escaped(prediction.error))
        elif prediction.unknown:
            table.add_row(escaped(prediction.path), "[yellow]none of the known[/]", "", escaped(f"nearest: {rest}"))
        else:
            table.add_row(
                escaped(prediction.path),
                escaped(prediction.label),
                f"{prediction.probability:.3f}",
                escaped(rest),
            )
    return table


def _lines(predictions: Sequence[Prediction], format_: Format) -> Iterator[str]:
    """Yield the lines that `--out` would write."""
    from tellapart.bundles.tables import CsvLines, JsonLines

    # As many columns as the longest row needs: an unreadable image has no classes.
    width = max((len(prediction.top) for prediction in predictions), default=1)
    lines = CsvLines(width) if format_ is Format.csv else JsonLines()
    yield lines.header()
    yield from map(lines.row, predictions)
