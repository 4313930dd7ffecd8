"""The command with which a person labels what a server has kept: review."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tellapart.cli.ab import Store
from tellapart.cli.models import Where
from tellapart.errors import InputError

if TYPE_CHECKING:
    from tellapart.request_store import RequestStore

_MOST_TASKS = 10_000


def review(
    bundle: Annotated[
        Path | None, typer.Argument(help="The bundle that answers [default: that of --registry].")
    ] = None,
    *,
    store: Store,
    name: Annotated[str | None, typer.Option(help="Name that it is served under [default: its own].")] = None,
    registry: Annotated[str | None, typer.Option(help="A model of the registry, instead of a bundle.")] = None,
    registry_url: Where = None,
    export: Annotated[Path | None, typer.Option(help="Write tasks for Label Studio, and end.")] = None,
    import_: Annotated[Path | None, typer.Option("--import", help="Read what Label Studio exported, and end.")] = None,
    count: Annotated[int, typer.Option(help="Photos to export at most.", min=1, max=_MOST_TASKS)] = 200,
    port: Annotated[int, typer.Option(help="Port of the page; 0 picks a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Label photos that a server has kept.

    Opens a page on this machine: first the photos on which two versions disagree, then unknown and unsure ones. The
    server must keep photos (--keep-photos).

    Example: tellapart review bundle --store requests.db
    """
    from tellapart.databases import url_of
    from tellapart.request_store import RequestStore

    url = url_of(store)
    if export is not None or import_ is not None:
        if bundle is None:
            raise InputError("--export and --import need the bundle, which knows the classes. Name it.")
        from tellapart.bundles.bundle import open_bundle

        record = open_bundle(bundle).record
        with closing(RequestStore(url)) as requests:
            if import_ is not None:
                _import(import_, requests, record.classes)
            if export is not None:
                _export(export, requests, name or record.name, record.classes, count)
        return
    if name is not None:
        raise InputError("--name goes with --export. For what a registry's server keeps: --registry NAME.")
    if (bundle is None) == (registry is None):
        raise InputError("What is to be reviewed? Expected a bundle, or --registry with a model's name.")
    RequestStore(url).close()  # found out in a moment, before a server starts
    _show(bundle, registry, registry_url, url, port, browser)


def _show(
    bundle: Path | None, registry: str | None, registry_url: str | None, url: str, port: int, browser: bool
) -> None:
    """Serve the page, with a key of its own: others on this machine must not see the photos."""
    import os
    import secrets

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `serve` does, and why
    from tellapart.cli.serving import serve_options
    from tellapart.serving.options import ServerOptions, StoreOptions

    options = ServerOptions(
        bundles=() if bundle is None else (bundle,),
        port=port,
        api_key=secrets.token_urlsafe(24),
        store=StoreOptions(url),
        log=False,
    )

    def say(where: str) -> None:
        # Behind the #, which browsers send to no server: so the key stands in no log.
        address = f"{where}/operations.html#key={options.api_key}"
        typer.echo(f"Review: {address}\nCtrl-C ends it.")
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve_options(options, registry, registry_url, say)


def _export(file: Path, store: RequestStore, name: str, classes: tuple[str, ...], count: int) -> None:
    from tellapart.files import write_text
    from tellapart.monitoring.review import label_studio_config, next_questions, to_label_studio

    tasks = to_label_studio(next_questions(store, name, count=count), store)
    write_text(file, json.dumps(tasks))
    typer.echo(f"{len(tasks)} tasks in {file}. The labelling interface of the project:\n{label_studio_config(classes)}")


def _import(file: Path, store: RequestStore, classes: tuple[str, ...]) -> None:
    from tellapart.monitoring.review import answer, from_label_studio

    try:
        tasks = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}. Expected what Label Studio exports as JSON.") from error
    listed = tasks if isinstance(tasks, list) else []
    ids = [str(task["data"]["tellapart_id"]) for task in listed if _has_id(task)]
    said = list(from_label_studio(tasks, store.labels(ids)))
    typer.echo(f"{answer(store, said, classes)} verdicts of {len(listed)} tasks stored.")


def _has_id(task: object) -> bool:
    data = task.get("data") if isinstance(task, dict) else None
    return isinstance(data, dict) and "tellapart_id" in data
