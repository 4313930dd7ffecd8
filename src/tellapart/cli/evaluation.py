"""Commands that look into a trained run: evaluate and explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tellapart.cli.machine import cache_of_user


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run folder, or a bundle.")],
    photos: Annotated[
        Path | None, typer.Argument(help="Other labelled photos [default: the run's own test split].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report [default: RUN/report].")] = None,
) -> None:
    """Write a report on a run.

    One HTML page on how good it is, why, and what to do next. A bundle is measured on labelled photos, without a page.

    Example: tellapart evaluate runs/pets
    """
    from tellapart.bundles.bundle import is_bundle
    from tellapart.cli.show import announce, import_keras, progress_bar

    # Also for a bundle: what measures it is imported from modules that need Keras.
    import_keras()
    if is_bundle(run):
        _measure_bundle(run, photos, out)
        return
    from tellapart.report.evaluate import evaluate as evaluate_run

    with progress_bar() as progress:
        report = evaluate_run(run, photos, out=out, cache=cache_of_user(), progress=progress, announce=announce)
    typer.echo(f"{report.page} ({report.page.stat().st_size / 1e6:.1f} MB)")


def _measure_bundle(bundle: Path, photos: Path | None, out: Path | None) -> None:
    from tellapart.cli.show import console, metrics_table, progress_bar
    from tellapart.errors import InputError
    from tellapart.report.bundle import evaluate_bundle

    if photos is None:
        raise InputError(
            f"{bundle} is a bundle, which has no photos of its own. Expected labelled photos to measure it on."
        )
    with progress_bar() as progress:
        metrics = evaluate_bundle(bundle, photos, out=out, cache=cache_of_user(), progress=progress)
    console().print(metrics_table(metrics))
    typer.echo(f"{metrics['runtime']}, version {metrics['bundle']}")


def explain(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the heat maps.")] = Path("explanations"),
    method: Annotated[
        str | None,
        typer.Option(
            help="grad-cam, hires-cam, layer-cam, integrated-gradients or occlusion [default: integrated-gradients]."
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Class to explain [default: the predicted one].")] = None,
) -> None:
    """Draw heat maps of what the model looked at.

    One picture per image, and a contact sheet.

    Example: tellapart explain runs/pets photos/cat
    """
    from tellapart.cli.show import import_keras, progress_bar

    import_keras()
    from tellapart.data.listing import image_files
    from tellapart.evaluation.predict import load
    from tellapart.explain.files import explain_files
    from tellapart.explain.maps import DEFAULT_METHOD

    classifier = load(run)
    with progress_bar() as progress:
        explained = explain_files(
            classifier, image_files(images), out, method=method or DEFAULT_METHOD, label=label, progress=progress
        )
    if explained.sheet is not None:
        typer.echo(f"{len(explained.written)} pictures in {out}, all of them on {explained.sheet}")
    for path, reason in explained.unreadable:
        typer.echo(f"{path}: {reason}", err=True)
    if explained.unreadable:
        raise typer.Exit(1)
