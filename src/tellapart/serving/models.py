"""The versions that are being served, and how a new one takes over from an old one.

Owns a thread that watches folders. Knows nothing about HTTP, batches or what an image is.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from tellapart.bundles.bundle import is_bundle
from tellapart.errors import BundleError, InputError
from tellapart.monitoring.ab_test import ABTest
from tellapart.serving.model_version import DecodeBudget, ModelVersion, open_served, open_version
from tellapart.serving.options import ServerOptions
from tellapart.serving.registry_follower import Roles, read_roles
from tellapart.serving.telemetry import Telemetry

logger = logging.getLogger(__name__)

_ABSENT_POLLS = 3
"""A folder that is missing for so long was removed; for less, it is being replaced."""


class UnknownModelError(InputError):
    """There is no such model or version here."""


@dataclass
class _Source:
    """A folder that is served: what is loaded from it, and what was last seen there."""

    folder: Path
    served: ModelVersion | None = None
    seen: object = None
    refused: object = None
    absent: int = 0
    from_folder: bool = False
    name: str | None = None


class Models:
    """What is served. Reading it takes no lock: tables are replaced, never changed.

    Raises:
        BundleError: a bundle cannot be served, or there is none.
    """

    def __init__(self, options: ServerOptions, telemetry: Telemetry) -> None:
        self._options, self._telemetry = options, telemetry
        self._budget = DecodeBudget(options.limits.max_decoding_bytes)
        self._numbers: dict[str, int] = {}
        self._sources = [_Source(Path(folder)) for folder in options.bundles]
        self._sources += [_Source(folder, from_folder=True) for folder in self._subfolders()]
        self._roles: Roles | None = None
        self._refused_roles: Roles | None = None
        if options.registry is not None:
            self._roles = read_roles(options.registry.folder)
            self._sources += self._registered(self._roles)
        if not self._sources:
            where = f"{options.models} holds no bundle" if options.models else "No bundle was named"
            raise BundleError(f"{where}. Expected a folder made by tellapart export.")
        self._table: dict[str, dict[str, ModelVersion]] = {}
        self._order: tuple[ModelVersion, ...] = ()
        for source in self._sources:
            source.served = self._open(source.folder, source.name)
        self._publish()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def find(self, name: str | None = None, version: str | None = None) -> ModelVersion:
        """Return a version.

        Args:
            name: None: the first model.
            version: twelve hexadecimal digits, or its number in the order of loading; None: the last one.

        Raises:
            UnknownModelError: there is none; the message names what there is.
        """
        table = self._table  # read once: the poller may replace it between two reads
        versions = table.get(next(iter(table)) if name is None else name)
        if versions is None:
            raise UnknownModelError(f"There is no model {name!r:.120} here. Expected one of: {', '.join(table)}.")
        if version is None:
            roles = self._roles
            if roles is not None and roles.champion in versions:
                return versions[roles.champion]
            return next(reversed(versions.values()))
        if version in versions:
            return versions[version]
        for served in versions.values():
            if str(served.number) == version:
                return served
        known = ", ".join(f"{served.version} (number {served.number})" for served in versions.values())
        raise UnknownModelError(f"There is no version {version!r:.80} of this model here. Expected one of: {known}.")

    def challenger(self, champion: ModelVersion) -> tuple[ABTest, ModelVersion] | None:
        """Return the test that a version is in as champion, with its challenger; None: it is in none."""
        roles = self._roles  # read once, as above
        if roles is None or roles.test is None or roles.champion != champion.version:
            return None
        challenger = self._table.get(champion.name, {}).get(roles.test.challenger)
        return None if challenger is None else (roles.test, challenger)

    def all(self) -> tuple[ModelVersion, ...]:
        """Return every version, in the order of the models and then of loading."""
        return self._order

    def of(self, name: str) -> list[ModelVersion]:
        """Return the versions of a model, the default one last.

        Raises:
            UnknownModelError: there is no such model.
        """
        self.find(name)
        return [served for served in self._order if served.name == name]

    def start_polling(self) -> None:
        """Begin to look at the folders, in a thread."""
        self._thread = threading.Thread(target=self._keep_polling, name="poll", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def poll(self) -> None:
        """Look at every folder once; a change is taken up when a second look finds it finished."""
        self._follow()
        known = {source.folder for source in self._sources}
        for folder in self._subfolders():
            if folder not in known:
                self._sources.append(_Source(folder, from_folder=True))
        for source in list(self._sources):  # a copy, since `_missing` removes sources
            if source.name is not None:
                continue  # of a registry: what is in such a folder never changes
            version = open_version(source.folder)
            if version is None:
                self._missing(source)
                continue
            source.absent = 0
            if source.served is not None and version == source.served.version:
                continue
            # Seen twice the same: a bundle that is still being copied changes from one look to the next. One that was
            # refused is not tried again until it changes.
            state = _fingerprint(source.folder)
            if state == source.seen and state != source.refused:
                self._swap(source, state)
            source.seen = state

    def _registered(self, roles: Roles | None) -> list[_Source]:
        """Return the folders of a registry that are needed; those that are loaded are kept as they are."""
        options = self._options.registry
        if options is None or roles is None:
            return []
        loaded = {source.folder: source for source in self._sources if source.name is not None}
        folders = [options.folder / digest for digest in roles.digests]
        return [loaded.get(folder) or _Source(folder, name=options.name) for folder in folders]

    def _follow(self) -> None:
        """Take up what the registry says: load what is new, then change the roles, then drop what nobody needs."""
        options = self._options.registry
        roles = None if options is None else read_roles(options.folder)
        if roles is None or roles in (self._roles, self._refused_roles):
            return
        wanted = self._registered(roles)
        try:
            for source in wanted:
                if source.served is None:
                    source.served = self._open(source.folder, source.name)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the old ones go on
            self._refused_roles = roles
            self._telemetry.refused.inc()
            logger.error("What the registry asks for cannot be served, all goes on as it is: %s", error)
            return
        before = self._roles
        others = [source for source in self._sources if source.name is None]
        # Published first with both, so that at no moment a champion is asked for that is not in the table.
        self._sources += [source for source in wanted if source not in self._sources]
        self._publish()
        self._roles = roles
        self._sources = others + wanted
        self._publish()
        if before is not None and before.champion != roles.champion:
            self._telemetry.swaps.labels(wanted[0].name).inc()
        test = f", in the test {roles.test.id} with {roles.test.challenger}" if roles.test else ""
        logger.warning("%s %s is champion%s", wanted[0].name, roles.champion, test)

    def _open(self, folder: Path, name: str | None = None) -> ModelVersion:
        served = open_served(
            folder, runtime=self._options.runtime, batches=self._options.batches, budget=self._budget,
            max_pixels=self._options.limits.max_pixels,
            telemetry=self._telemetry, name=name,
        )  # fmt: skip
        # Numbers are never reused: "version 2" of a client stays the same bundle.
        number = self._numbers[served.name] = self._numbers.get(served.name, 0) + 1
        return replace(served, number=number)

    def _swap(self, source: _Source, state: object) -> None:
        try:
            fresh = self._open(source.folder)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the old one goes on
            source.refused = state
            self._telemetry.refused.inc()
            outcome = f"{source.served.version} goes on" if source.served else "it is not served"
            logger.error("The bundle in %s was refused, %s: %s", source.folder, outcome, error)
            return
        # Requests in flight hold the old version, and it goes when the last of them is answered.
        old, source.served = source.served, fresh
        self._publish()
        if old is not None:
            self._telemetry.swaps.labels(fresh.name).inc()
        logger.warning("%s %s is served from %s", fresh.name, fresh.version, source.folder)

    def _missing(self, source: _Source) -> None:
        """Drop a model whose sub-folder is gone; a bundle that was named on the command line stays."""
        source.absent += 1
        if not source.from_folder or source.absent < _ABSENT_POLLS:
            return
        if source.served is not None and len(self._order) == 1:
            return  # a server without any model would be of no use
        self._sources.remove(source)
        if source.served is not None:
            logger.warning("%s %s is no longer served", source.served.name, source.served.version)
            self._publish()

    def _publish(self) -> None:
        """Make the tables anew. Of equal copies the last one counts."""
        table: dict[str, dict[str, ModelVersion]] = {}
        for source in self._sources:
            if source.served is not None:
                table.setdefault(source.served.name, {})[source.served.version] = source.served
        # In order of loading, since the last version is the default.
        table = {
            name: dict(sorted(versions.items(), key=lambda item: item[1].number)) for name, versions in table.items()
        }
        # Readers take no lock: the new table is complete before a single assignment replaces the old one.
        before, self._table = self._order, table
        self._order = tuple(served for versions in table.values() for served in versions.values())
        for served in before:
            if served not in self._order:
                # Set to 0, not removed: prometheus_client cannot remove labels when several processes share files.
                self._telemetry.info.labels(served.name, served.version, served.runtime).set(0)
        for served in self._order:
            self._telemetry.info.labels(served.name, served.version, served.runtime).set(1)

    def _subfolders(self) -> list[Path]:
        parent = self._options.models
        if parent is None:
            return []
        if not parent.is_dir():
            raise BundleError(f"{parent} is not a folder. Expected a folder of bundles.")
        # Hidden folders are bundles that export is still writing or replacing; it renames them at the end.
        return sorted(folder for folder in parent.iterdir() if not folder.name.startswith(".") and is_bundle(folder))

    def _keep_polling(self) -> None:
        while not self._stop.wait(self._options.poll_seconds):
            try:
                self.poll()
            except Exception:  # a disk that fails for a moment must not end the watch
                logger.exception("The served folders could not be looked at.")


def _fingerprint(folder: Path) -> object:
    """Return what changes when any file of a folder does."""
    try:
        return tuple(
            sorted(
                (str(path), path.stat().st_size, path.stat().st_mtime_ns)
                for path in folder.rglob("*")
                if path.is_file()
            )
        )
    except OSError:
        return None
