"""Commands about data: draw and check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def draw(
    folder: Annotated[Path, typer.Argument(help="Output folder; one folder per class is made in it.")],
    images: Annotated[int, typer.Option(help="Number of pictures.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Draw a synthetic data set of ten classes.

    Needs no photos and no internet.

    Example: tellapart draw drawn --images 1000
    """
    from tellapart.cli.show import progress_bar
    from tellapart.data.drawn import draw as draw_pictures

    with progress_bar() as progress:
        draw_pictures(folder, num_images=images, seed=seed, progress=progress)
    typer.echo(f"Drew {images} pictures in {folder}.")


def check(
    photos: Annotated[Path, typer.Argument(help="A folder per class, train/val/test folders of those, or a table.")],
    out: Annotated[Path | None, typer.Option(help="Where to write health.json.", dir_okay=True)] = None,
) -> None:
    """Check photos for problems.

    For those that would invalidate your metrics. Nothing is changed or deleted. Exit code 1 when a finding would
    falsify a result.

    Example: tellapart check photos
    """
    from tellapart.cli.show import console, escaped, progress_bar
    from tellapart.data.health import check as check_photos
    from tellapart.data.health import to_json
    from tellapart.files import write_json

    with progress_bar() as progress:
        health = check_photos(photos, progress=progress)
    target = out if out is not None else Path("health.json")
    target = target / "health.json" if target.is_dir() else target
    # Before anything is printed: a closed pipe must not cost the file.
    write_json(target, to_json(health))
    output = console()
    output.print(f"{health.num_readable:,} of {health.num_photos:,} photos can be read, {len(health.classes)} classes.")
    colours = {"falsifies": "bold red", "warning": "yellow", "note": "dim"}
    for finding in health.findings:
        colour = colours[finding.severity]
        output.print(f"[{colour}]{finding.severity:9}[/] [bold]{finding.kind}[/] {escaped(finding.message)}")
        if finding.examples:
            output.print(escaped("          for example " + ", ".join(finding.examples[:3])), style="dim")
    if not health.findings:
        output.print("No problems found.")
    output.print(f"Written to {escaped(str(target))}.")
    if not health.trustworthy:
        raise typer.Exit(1)
