"""Follows a model in a registry from a process of its own: a server must not carry MLflow, which takes 230 MB.

The process copies the bundles that are needed into a folder, and then writes which of them is what into ``roles.json``;
servers look at that file. Where the registry does not answer, all goes on as it was.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tellapart.errors import RunError, TellapartError
from tellapart.files import write_json
from tellapart.monitoring.ab_test import TEST_NOTE, ABTest
from tellapart.supervisor import Supervisor

if TYPE_CHECKING:
    from tellapart.registry import Registry

logger = logging.getLogger(__name__)

ROLES_FILE, VERSIONS_FILE = "roles.json", "versions.json"
_VERSIONS_SECONDS = 30.0
"""Between two looks at all versions, for the page: each takes a question of its own."""
_LOOK_SECONDS = 1.0
_START_SECONDS = 120.0
_STOP_SECONDS = 3.0


@dataclass(frozen=True)
class Roles:
    """Which bundle is what, each by its digest, which is also the name of its folder.

    Attributes:
        champion: the one that answers.
        test: that runs, with the digest of its challenger; None: none runs.
    """

    champion: str
    test: ABTest | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """Those that a server needs."""
        return (self.champion,) if self.test is None else (self.champion, self.test.challenger)


def read_roles(folder: Path) -> Roles | None:
    """Return what the follower wrote last; None: nothing yet."""
    try:
        values = json.loads((folder / ROLES_FILE).read_text())
        return Roles(values["champion"], ABTest.from_json(values["test"]))
    # Not there yet, or of another version: whoever reads it goes on with the roles that it has.
    except (OSError, ValueError, KeyError, TypeError):
        return None


class RegistryFollower:
    """Keeps the following process alive. `stop` has to be called in the end.

    Args:
        url: of the registry.
        name: of the model.
        folder: that it writes into.
    """

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self._process = Supervisor(_follow, (url, name, folder), name="tellapart-registry", stop_seconds=_STOP_SECONDS)
        self._folder, self._stop = folder, threading.Event()
        # The process is started by this thread, and ends with it: it must live as long as the server.
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)

    def start(self) -> None:
        """Start it, and wait until it has found the champion.

        Raises:
            RunError: it did not find one; what was wrong stands on stderr.
        """
        self._thread.start()
        until = time.monotonic() + _START_SECONDS
        while read_roles(self._folder) is None:
            if not self._thread.is_alive() or time.monotonic() > until:
                self.stop()
                raise RunError("The registry could not be followed; the reason is above.")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join(2 * _STOP_SECONDS)
        self._process.stop()

    def _watch(self) -> None:
        self._process.start(1)
        while not self._stop.wait(0.2):
            for ended in self._process.poll():
                # Before the first answer the cause is a name or a URL, which does not mend itself.
                if not ended.ready.is_set() and read_roles(self._folder) is None:
                    return
                pause = self._process.replace(ended)
                logger.error("What follows the registry ended with code %s; again in %g s.", ended.code, pause)


def _follow(number: int, ready: Event, url: str, name: str, folder: Path) -> None:
    """Be the process."""
    import sys

    from tellapart.registry import Registry

    def end(signal_number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        registry = Registry(url)
        # Roles last: the server waits for them, and then loads models and measures their runtimes, beside this process.
        write_versions(registry, name, folder)
        roles = write_roles(registry, name, folder)
    except TellapartError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    ready.set()
    failing, looked = False, time.monotonic()
    while True:
        time.sleep(_LOOK_SECONDS)
        try:
            before, roles = roles, write_roles(registry, name, folder)
            if roles != before or time.monotonic() > looked + _VERSIONS_SECONDS:
                write_versions(registry, name, folder)
                looked = time.monotonic()
        except Exception as error:  # noqa: BLE001  # whatever it is, the next look may go well
            if not failing:
                logger.warning("The registry cannot be followed, all goes on as it is: %s", error)
            failing = True
        else:
            failing = False


def write_versions(registry: Registry, name: str, folder: Path) -> None:
    """Write down all versions of a model, the latest first, for the page."""
    versions = [
        {
            "number": version.number,
            "digest": version.digest,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(version.created)),
            "aliases": list(version.aliases),
            "accuracy": version.metrics.get("test.accuracy"),
            "rolled_back": version.tags.get("tellapart.rolled_back", ""),
        }
        for version in registry.versions(name)
    ]
    write_json(folder / VERSIONS_FILE, versions)


def write_roles(registry: Registry, name: str, folder: Path) -> Roles:
    """Look at a model once: copy the bundles that are new, and write down who is what, if that changed.

    Raises:
        InputError: there is no such model, it has no champion, or the registry does not answer.
    """
    from tellapart.errors import InputError

    champion = registry.champion_digest(name)
    if champion is None:
        raise InputError(
            f"{name} has no champion in {registry.shown}. Expected one: tellapart models promote {name} 1."
        )
    test = ABTest.from_json(registry.note(name, TEST_NOTE))
    # A test of a champion that was replaced meanwhile tells nothing about the new one.
    if test is not None and test.champion != champion:
        test = None
    roles = Roles(champion, test)
    # Bundles first: whoever reads the file finds them whole.
    for digest in roles.digests:
        if not (folder / digest).exists():
            registry.fetch_bundle(registry.version(name, digest), folder)
    if roles != read_roles(folder):
        values = {"champion": roles.champion, "test": None if test is None else test.to_json()}
        write_json(folder / ROLES_FILE, values)
    return roles
