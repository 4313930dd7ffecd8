"""Commands that train: train, reproduce and demo."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tellapart.cli.machine import cache_of_user
from tellapart.errors import InputError

STARTED = time.time()
"""When the process began: a time budget counts from here."""


def train(
    photos: Annotated[
        Path | None, typer.Argument(help="A folder per class, train/val/test folders of those, or a table.")
    ] = None,
    *,
    recipe: Annotated[str | None, typer.Option(help="A TOML file, or reference, fast, transfer or demo.")] = None,
    model: Annotated[str | None, typer.Option(help="The network: convnet, mobilenet_v2, … (model.name).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times over the training photos (train.epochs).")] = None,
    image_px: Annotated[int | None, typer.Option(help="Side of the pictures (data.image_px).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step (train.batch_size).")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate (train.learning_rate).")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu [default: a GPU where there is one].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation (train.seed).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: train.epochs=3. Can be repeated.")
    ] = None,
    time_: Annotated[
        str | None,
        typer.Option("--time", help="Time for the whole run: 90s, 10m, 1h [default: 10m, where no recipe is named]."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the new run [default: runs/NAME-DATE].")] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume an interrupted run.")] = None,
    split_from: Annotated[
        Path | None, typer.Option(help="An earlier run: photos that it knows stay in their split.")
    ] = None,
    begin_from: Annotated[
        Path | None,
        typer.Option(help="An earlier run of the same network, whose weights training begins with."),
    ] = None,
    extend: Annotated[
        Path | None, typer.Option(help="A finished run that these photos join: new photos, or new classes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Threads that make batches, at least 2 [default: one for each processor].", min=0)
    ] = None,
    cache_limit_gb: Annotated[
        float | None, typer.Option(help="GB of decoded pictures to cache on disk; 0 disables the cache.", min=0)
    ] = None,
) -> None:
    """Train a classifier on photos and measure it.

    Without a recipe several ways race for the time, and validation decides: a head on a pretrained network, a network
    from scratch, fine-tuning.

    Example: tellapart train photos --time 10m
    """
    from tellapart.cli.show import announce, import_keras, progress_bar

    _choose_device(device)  # before Keras, whose backend looks for GPUs when it is imported
    import_keras()
    _check_device(device)
    from tellapart.records import Observer
    from tellapart.run import reopen
    from tellapart.run_folder import RunRequest
    from tellapart.settings import machine_from, parse_duration
    from tellapart.verbs import begin_any, begin_extension, describe_any, go_on

    own_options = {
        "model.name": model, "train.epochs": epochs, "data.image_px": image_px, "train.batch_size": batch_size,
        "train.learning_rate": lr, "train.seed": seed,
    }  # fmt: skip
    # --set last: of two changes of one setting the later one counts.
    changes = [f"{name}={value}" for name, value in own_options.items() if value is not None] + list(set_ or ())
    run_options = {"--split-from": split_from, "--begin-from": begin_from, "--dry-run": dry_run}
    seconds = parse_duration(time_) if time_ else None
    # Three ways to a run folder: resume one, extend a finished one, or create a new one. `go_on` then does what is
    # left.
    if resume is not None:
        new_run_options = {"--recipe": recipe, "--set": changes, "--time": time_, "--out": out, "--extend": extend}
        _refuse_beside_resume(new_run_options | run_options)
        # Beside --resume, PHOTOS says where they are now.
        folder = reopen(resume, photos)
    elif photos is None:
        raise InputError("No photos were given. Expected a folder of photos, or a run to resume: --resume RUN.")
    elif extend is not None:
        _refuse_beside_extend(run_options)
        folder = begin_extension(photos, extend, recipe, changes, seconds, out)
    else:
        request = RunRequest(
            photos=str(photos),
            time_budget=seconds,
            split_from=str(split_from) if split_from else None,
            begin_from=str(begin_from) if begin_from else None,
        )
        if dry_run:
            for line in describe_any(recipe, changes, request):
                announce(line)
            return
        folder = begin_any(recipe, changes, request, out)
    machine = machine_from(workers=workers, cache_limit_gb=cache_limit_gb)
    # Only in here does Ctrl-C wait for the next report of progress; before this line it ends the command at once.
    with progress_bar() as progress:
        run = go_on(folder, cache_of_user(), Observer(progress, announce), machine=machine, started=STARTED)
    show_run(run)


def _choose_device(device: str | None) -> None:
    """Hide the GPUs where none is wanted: both backends look for them once, when they are imported."""
    if device not in (None, "cpu", "gpu"):
        raise InputError(f"--device is {device!r}. Expected cpu or gpu.")
    if device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


def _check_device(device: str | None) -> None:
    from tellapart.training.environment import accelerators

    if device == "gpu" and not accelerators():
        import keras

        raise InputError(
            f"--device gpu: {keras.backend.backend()} sees no GPU here. tellapart doctor says what it sees; the extras "
            "cuda and jax-cuda bring what NVIDIA GPUs need."
        )


def _refuse_beside_resume(options: dict[str, Any]) -> None:
    """Refuse what a resumed run would have to ignore: half of it by one recipe and half by another is no run."""
    contradicting = [name for name, value in options.items() if value]
    if contradicting:
        raise InputError(
            f"A resumed run keeps its recipe, time budget and folder; got {', '.join(contradicting)} as well. Leave "
            "that out to go on with the run, or leave out --resume to train a new one."
        )


def _refuse_beside_extend(options: dict[str, Any]) -> None:
    if beside := [name for name, value in options.items() if value]:
        raise InputError(
            f"{', '.join(beside)} cannot stand beside --extend, which takes split and weights from its run."
        )


def reproduce(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the new run [default: RUN-again].")] = None,
) -> None:
    """Train a run again and compare the weights.

    From the run's own record. Exit code 1 when they are not identical.

    Example: tellapart reproduce runs/pets
    """
    from tellapart.cli.show import announce, import_keras, progress_bar

    import_keras()
    from tellapart.records import Observer
    from tellapart.reproduction import reproduce as reproduce_run

    with progress_bar() as progress:
        result = reproduce_run(run, out=out, cache=cache_of_user(), observer=Observer(progress, announce))
    for line in result.changed:
        typer.echo(f"changed since: {line}")
    old, new = result.accuracies
    typer.echo(f"Test accuracy then {old:.4f}, now {new:.4f}.")
    if result.same_weights:
        typer.echo("The weights are the same, bit for bit.")
    else:
        typer.echo(
            f"The weights are not the same: the largest difference is {result.largest_difference:.3g}. "
            "Bits are only promised for train.deterministic=true on the same machine and packages."
        )
        raise typer.Exit(1)


def _verdict(test: dict[str, Any]) -> str:
    """Say in a line what to expect of the model, and where it is worst."""
    from tellapart.cli.show import escaped

    low, high = (100 * end for end in test["intervals"]["accuracy"])
    share = f"{100 * test['accuracy']:.1f} % ({low:.1f} to {high:.1f} %)"
    line = f"Expect {share} of new photos like these to be named rightly"
    # A class without test photos has no recall and must not be called the worst.
    measured = {name: metrics for name, metrics in test["per_class"].items() if metrics["num_images"]}
    name, worst = min(measured.items(), key=lambda item: item[1]["recall"])
    if worst["recall"] < test["accuracy"]:
        line += f"; fewest of {escaped(name)}: {100 * worst['recall']:.0f} % of {worst['num_images']}"
    return line + "."


def _of_extension(extension: dict[str, Any]) -> str:
    """Say what joining new photos did."""
    from tellapart.cli.show import escaped

    classes = f" and the classes {escaped(', '.join(extension['new_classes']))}" if extension["new_classes"] else ""
    low, high = (100 * end for end in extension["interval"])
    return (
        f"{extension['num_new']:,} new photos{classes} joined. Of the earlier run's {extension['num_test']:,} test "
        f"photos it named {extension['before']:.1%} rightly, this one {extension['after']:.1%} ({low:+.1f} to "
        f"{high:+.1f} points, p = {extension['p_value']:.2g})."
    )


def show_run(run: Any) -> None:
    """Print the metrics of a run and where it is."""
    from tellapart.cli.show import console, escaped, metrics_table, race_table

    output, metrics = console(), run.metrics
    output.print(metrics_table(metrics))
    if "race" in metrics:
        output.print(race_table(metrics["race"]))
    if "test" in metrics:
        output.print(_verdict(metrics["test"]))
    if extension := metrics.get("extension"):
        output.print(_of_extension(extension))
    # Either may be missing: an ensemble that won a race has no speed and no best epoch.
    speed = f" at {metrics['images_per_second']:.0f} images/s" if metrics.get("images_per_second") else ""
    epoch = f"best epoch {metrics['best_epoch']}, " if metrics.get("best_epoch") else ""
    output.print(
        f"{metrics['seconds_total']:.0f} s in all, {metrics['seconds_training']:.0f} s of training{speed}, {epoch}"
        f"peak memory {metrics['peak_memory_mb']:.0f} MB."
    )
    output.print(
        f"Everything is in {escaped(str(run.path))}: curves.png, metrics.json, predictions.csv, model.keras, …"
    )
