"""The command that shows everything on drawn pictures: demo."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from tellapart.cli.machine import cache_of_user
from tellapart.cli.training import show_run


def demo(
    folder: Annotated[Path, typer.Option(help="Output folder for the pictures and the run.")] = Path("demo"),
    images: Annotated[int, typer.Option(help="Number of pictures to draw.", min=200)] = 2000,
) -> None:
    """Run the whole story on drawn pictures.

    Train, measure, classify new ones, report, export, serve.

    Example: tellapart demo
    """
    from tellapart.cli.show import announce, console, import_keras, progress_bar

    import_keras()
    from tellapart.data.drawn import draw as draw_pictures
    from tellapart.data.listing import image_files
    from tellapart.evaluation.predict import load
    from tellapart.records import Observer
    from tellapart.report.evaluate import evaluate as evaluate_run
    from tellapart.shipping.export import export as export_run
    from tellapart.verbs import train as train_run

    photos, new, bundle = folder / "photos", folder / "new", folder / "bundle"
    out = folder / f"run-{time.strftime('%Y%m%d-%H%M%S')}"
    with progress_bar() as progress:
        announce(f"Drawing {images} pictures of 10 classes in {photos}")
        draw_pictures(photos, num_images=images, progress=progress)
        # Another seed: the network must not have seen these.
        draw_pictures(new, num_images=10, seed=1, progress=progress)
        run = train_run(photos, recipe="demo", out=out, cache=cache_of_user(), observer=Observer(progress, announce))
    show_run(run)
    console().print("\nTen pictures that it has never seen:")
    predictions = load(run.path).predict(image_files([new]))
    from tellapart.cli.prediction import prediction_lines

    console().print(prediction_lines(predictions))
    with progress_bar() as progress:
        report = evaluate_run(run.path, cache=cache_of_user(), progress=progress)
    typer.echo(f"The report, one page for your browser: {report.page}")
    announce(f"One folder with all that is needed to run it: {bundle}")
    with progress_bar() as progress:
        export_run(run.path, bundle, name="demo", cache=cache_of_user(), progress=progress, announce=announce)
    _ask_a_server(bundle, image_files([new])[0])
    typer.echo(f"Name your own: tellapart predict {bundle} IMAGE")
    typer.echo(f"Serve it, with a page for your browser: tellapart serve {bundle}")


def _ask_a_server(bundle: Path, picture: Path) -> None:
    """Start a server, ask it about one picture, and stop it."""
    # Port 0 picks a free one; the line that the server prints when it is ready names it.
    command = [sys.executable, "-m", "tellapart", "serve", str(bundle), "--port", "0", "--drain-seconds", "0"]
    # stderr is no pipe: nobody reads it, so the log of requests would fill it and stop the server.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            line = server.stdout.readline().strip() if server.stdout else ""
            if " at http" not in line:
                raise typer.Exit(1)
            address = line.rpartition(" at ")[2]
            request = urllib.request.Request(f"{address}/predict", data=picture.read_bytes())
            with urllib.request.urlopen(request, timeout=30) as answer:
                values = json.load(answer)
        finally:
            server.terminate()
    (first,) = values["predictions"]
    typer.echo(f"{line}\nPOST /predict with {picture.name}: {first['label']} {first['probability']:.3f}")
