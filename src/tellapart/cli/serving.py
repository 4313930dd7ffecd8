"""The command that puts bundles behind HTTP: serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tellapart.cli.models import Where

if TYPE_CHECKING:
    import socket

    from tellapart.serving.options import ServerOptions


def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Bundles made by tellapart export. A bundle that is exported again replaces the running one."
        ),
    ] = None,
    *,
    models: Annotated[Path | None, typer.Option(help="A folder of bundles; each becomes a model.")] = None,
    registry: Annotated[
        str | None, typer.Option(help="A model of the registry: its champion is served, and its A/B test carried out.")
    ] = None,
    registry_url: Where = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(help="Worker processes; they share the threads.", min=1)] = 1,
    threads: Annotated[int | None, typer.Option(help="Inference threads [default: one per processor].", min=1)] = None,
    max_batch_size: Annotated[int, typer.Option(help="Largest batch for one forward pass.", min=1, max=1024)] = 16,
    max_wait_ms: Annotated[float, typer.Option(help="Milliseconds a free thread waits for more images.", min=0)] = 0.0,
    max_queue: Annotated[int, typer.Option(help="Images that may wait; further ones get 503.", min=1)] = 256,
    max_queue_ms: Annotated[
        float, typer.Option(help="Longest expected wait before requests get 503; 0: no limit.", min=0)
    ] = 80.0,
    deadline_ms: Annotated[float, typer.Option(help="Milliseconds from arrival to answer.", min=1)] = 10_000.0,
    max_body_mb: Annotated[float, typer.Option(help="Largest request body.", min=0.001)] = 32.0,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Larger images are rejected [default and maximum: data.max_pixels of the run].", min=1),
    ] = None,
    max_held_mb: Annotated[
        float | None,
        typer.Option(help="Memory for all requests in flight, parsed [default: 2.75 bodies, at least 88].", min=1),
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests per second for each client address; 0: no limit.", min=0)] = 0.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="TELLAPART_API_KEY", show_envvar=True, help="API key that clients must send.")
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Serve without an API key.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="Further host name that is allowed in requests.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Inference runtime [default: fastest verified on this machine].")
    ] = None,
    feedback: Annotated[Path | None, typer.Option(help="A .jsonl file to which users' feedback is appended.")] = None,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="TELLAPART_STORE",
            show_envvar=True,
            help="Database for all predictions and feedback: a file, or the URL of PostgreSQL.",
        ),
    ] = None,
    keep_photos: Annotated[bool, typer.Option("--keep-photos", help="Store the photos too, shrunk.")] = False,
    retention_days: Annotated[
        float | None, typer.Option(help="Delete what is stored after so many days [default: never].", min=0.01)
    ] = None,
    log: Annotated[bool, typer.Option(help="Log each request to stderr as a line of JSON.")] = True,
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds between failing readiness and closing the listener.", min=0)
    ] = 1.0,
) -> None:
    """Serve models over HTTP.

    With a web page at / and the API's description at /docs.

    Example: tellapart serve bundle --port 8080
    """
    import os

    # Before NumPy is imported: its matrix products are small here, and its threads would wait for the networks'.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tellapart.databases import url_of
    from tellapart.errors import InputError
    from tellapart.serving.options import BatchOptions, Limits, ServerOptions, StoreOptions, check_access

    if store is None and (keep_photos or retention_days is not None):
        raise InputError("--keep-photos and --retention-days act with --store only. Name a file or a database there.")
    url = None if store is None else url_of(store)
    share = max(1, (threads or os.cpu_count() or 1) // workers)
    # Large requests may use three quarters of the budget, so 2.75 bodies leave room for two of the largest size.
    body_bytes = int(max_body_mb * 1024 * 1024)
    held_bytes = max(11 * body_bytes // 4, 88 * 2**20) if max_held_mb is None else int(max_held_mb * 2**20)
    options = ServerOptions(
        bundles=tuple(bundles or ()), models=models, host=host, port=port, processes=workers, runtime=runtime,
        api_key=None if no_auth else api_key, allowed_hosts=tuple(allowed_host or ()), feedback=feedback, log=log,
        store=None if url is None else StoreOptions(url, keep_photos, retention_days),
        drain_seconds=drain_seconds,
        batches=BatchOptions(share, max_batch_size, max_wait_ms, max_queue, max_queue_ms, deadline_ms),
        limits=Limits(max_body_bytes=body_bytes, max_held_bytes=held_bytes, max_pixels=max_pixels, rate=rate),
    )  # fmt: skip
    check_access(options, no_auth=no_auth)
    serve_options(options, registry, registry_url)


def serve_options(
    options: ServerOptions,
    registry: str | None = None,
    registry_url: str | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve until it is stopped.

    Args:
        options: of the server.
        registry: name of a model to follow; None: what `options` name is served.
        registry_url: where the registry is; None: in its usual file.
        say: called with the server's address when it answers; None: that is printed.
    """
    if registry is None:
        _run(options, say)
    else:
        _follow_registry(options, registry_url, registry, say)


def _follow_registry(options: ServerOptions, where: str | None, name: str, say: Callable[[str], None] | None) -> None:
    """Serve what a registry says, with a process beside the server that looks there."""
    import tempfile
    from dataclasses import replace

    from tellapart.databases import url_of
    from tellapart.errors import InputError
    from tellapart.registry import DEFAULT_FILE
    from tellapart.serving.options import RegistryOptions
    from tellapart.serving.registry_follower import RegistryFollower

    if options.bundles or options.models:
        raise InputError("--registry stands alone. Leave bundles and --models away, or serve them elsewhere.")
    with tempfile.TemporaryDirectory(prefix="tellapart-registry-") as folder:
        followed = RegistryOptions(url_of(where or DEFAULT_FILE), name, Path(folder))
        # Stopped before the folder is deleted: it writes there until its end.
        follower = RegistryFollower(followed.url, name, followed.folder)
        try:
            follower.start()
            _run(replace(options, registry=followed), say)
        finally:
            follower.stop()


def _run_several(options: ServerOptions, bound: socket.socket, where: str) -> None:
    import os
    import tempfile
    from dataclasses import replace

    from tellapart.serving.processes import run_processes

    with tempfile.TemporaryDirectory(prefix="tellapart-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # prometheus-client reads it when a process imports it
        message = f"Serving at {where} with {options.processes} processes"
        run_processes(replace(options, metrics_folder=Path(folder)), bound, ready=lambda: typer.echo(message))


def _run(options: ServerOptions, say: Callable[[str], None] | None) -> None:
    from tellapart.serving.http_server import address, bind

    # Bind before loading models: a port that is taken fails at once. Nothing listens until the models are loaded.
    bound = bind(options.host, options.port)
    where = address(bound, options.host)
    if options.processes > 1:
        _run_several(options, bound, where)
        return
    from tellapart.memory import keep_memory_flat
    from tellapart.serving.app import make_app
    from tellapart.serving.http_server import Server

    keep_memory_flat()  # must come before the first thread
    app = make_app(options)
    names = ", ".join(f"{served.name} {served.version} ({served.runtime})" for served in app.state.service.models.all())

    def ready() -> None:
        if say is None:
            typer.echo(f"Serving {names} at {where}")
        else:
            say(where)

    Server(app, options, ready=ready).run([bound])
