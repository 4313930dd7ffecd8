"""What a server can be told. Knows nothing about how it is parsed or obeyed."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from tellapart.errors import InputError


@dataclass(frozen=True)
class BatchOptions:
    """How waiting images become batches.

    Attributes:
        threads: that work; each has a processor. 0: one per processor.
        max_batch_size: images in one run of the network.
        max_wait_ms: how long a free thread waits for more; 0: it takes what is there.
        max_queue: images that may wait; what comes beyond is refused at once.
        max_queue_ms: how long what waits may take at the pace of the last batches; what comes while it is more is
            refused at once. 0: any time.
        deadline_ms: from arrival to answer.
    """

    threads: int = 0
    max_batch_size: int = 16
    max_wait_ms: float = 0.0
    max_queue: int = 256
    # At twice the load that the server can answer, 64 places without this limit gave a median of 450 ms; this limit and
    # smaller batches gave 114 ms (docs/experiments.md).
    max_queue_ms: float = 80.0
    deadline_ms: float = 10_000.0

    @property
    def num_threads(self) -> int:
        """The threads that work, at least one."""
        return self.threads or os.cpu_count() or 1


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Attributes:
        max_body_bytes: of one request.
        max_held_bytes: of all requests that are being received or answered, with what their bodies are parsed to; a
            quarter of it is for small requests only.
        max_decoding_bytes: that pictures take while they are decoded, of all threads together; one that takes more than
            half of it is decoded when no other such one is, beside them.
        max_pixels: images that declare more are not decoded; None, or more than the bundle's own limit: that one.
        max_files: in one request.
        rate: requests per second and client address; 0: no limit.
        header_seconds: for the headers of a request to arrive.
        body_seconds: for its body.
        max_connections: at a time.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    max_held_bytes: int = 88 * 1024 * 1024  # three quarters, for large requests, hold two bodies of the largest size
    max_decoding_bytes: int = 96 * 1024 * 1024
    max_pixels: int | None = None
    max_files: int = 64
    rate: float = 0.0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    max_connections: int = 1000


@dataclass(frozen=True)
class StoreOptions:
    """What is kept of what was answered.

    Attributes:
        url: of the database, as SQLAlchemy takes it.
        keep_photos: also the photos, shrunk, without what else is in their files.
        retention_days: after which all of it is deleted; None: never.
    """

    url: str = field(repr=False)  # it may hold a password
    keep_photos: bool = False
    retention_days: float | None = None


@dataclass(frozen=True)
class RegistryOptions:
    """Which model of a registry is served.

    Attributes:
        url: of the registry.
        name: of the model.
        folder: into which a process beside the server copies its bundles (`serving.registry_follower`).
    """

    url: str = field(repr=False)  # it may hold a password
    name: str
    folder: Path


@dataclass(frozen=True)
class ServerOptions:
    """All that a server is told.

    Attributes:
        bundles: folders to serve.
        models: a folder of bundles, or None.
        registry: a model of a registry, whose champion is followed, or None.
        host: address to listen on.
        port: 0: any that is free.
        processes: that listen on it.
        runtime: for all bundles; None: the fastest here of those that are right.
        api_key: that clients must send; None: none.
        allowed_hosts: names, beside its own, under which a server on this machine may be called.
        feedback: file to which verdicts are appended, or None.
        store: where what was answered is kept, or None.
        log: whether to write a line of JSON to stderr for each request.
        poll_seconds: how often served folders are looked at.
        drain_seconds: seconds between failing readiness and closing the listener.
        metrics_folder: where several processes keep their counts, or None.
        batches: how images become batches.
        limits: for clients.
    """

    bundles: tuple[Path, ...] = ()
    models: Path | None = None
    registry: RegistryOptions | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    processes: int = 1
    runtime: str | None = None
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    feedback: Path | None = None
    store: StoreOptions | None = None
    log: bool = True
    poll_seconds: float = 1.0
    drain_seconds: float = 1.0
    metrics_folder: Path | None = None
    batches: BatchOptions = BatchOptions()
    limits: Limits = Limits()

    @property
    def stop_seconds(self) -> float:
        """The longest time that a server takes to end: notice, requests that it accepted, and what hangs."""
        # Longer than uvicorn's own grace of deadline + 5 s (http_server.Server), so that killing stays the last resort.
        return self.drain_seconds + self.batches.deadline_ms / 1000 + 8.0

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from its own machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_access(options: ServerOptions, *, no_auth: bool) -> None:
    """Refuse to open a server to others without a key, unless that was said aloud.

    Raises:
        InputError: it would be open, or the key is too short to be one.
    """
    # ASCII only: clients encode other characters in a header in different ways.
    if options.api_key is not None:
        if len(options.api_key) < 16 or not options.api_key.isascii() or not options.api_key.isprintable():
            raise InputError(
                f"The API key has {len(options.api_key)} characters. Expected at least 16 printable ASCII characters; "
                "`openssl rand -hex 24` makes one."
            )
    elif not options.is_local and not no_auth:
        raise InputError(
            f"--host {options.host} opens the server to other machines and there is no API key. Give --api-key or set "
            "TELLAPART_API_KEY; or say --no-auth if everybody who reaches it may use it."
        )
