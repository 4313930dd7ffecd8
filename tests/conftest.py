"""Makes the helpers beside this file importable and finds the real photos that some tests read."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Python's collector would go through all that TensorFlow and the tests import again and again: an eighth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """Leave out what is imported, and collect from now on what tests leave."""
    gc.freeze()
    gc.enable()


# Longest first, so that both workers end together: by number of tests, xdist's own order, one of them had nothing to do
# in the last three of seventeen minutes. Slow tests: `make test-slow` says which those are.
_LONGEST = (
    "test_report", "test_retraining", "test_run", "test_on_device", "test_tune", "test_export", "test_compress",
    "test_transfer", "test_commands", "test_ensemble", "test_install", "test_web", "test_race", "test_train",
    "test_quantize", "test_lifetime", "test_page", "test_memory", "test_registry", "test_openapi", "test_backbones",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))  # stable: files stay together


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests cache out of the user's cache folder, and what lies there out of the tests."""
    os.environ["TELLAPART_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _memory_that_is_kept() -> None:
    """Train in a process that keeps the memory it frees, as commands do: a third of a report's time."""
    from tellapart.memory import keep_freed_memory

    keep_freed_memory()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the folder of a set of real photos by its name, or skip the test where it is absent."""

    def find(name: str) -> Path:
        folder = Path(__file__).resolve().parents[2] / "shared" / "data" / name
        if not folder.is_dir():
            pytest.skip(f"the real photos {name!r} are not on this machine: {folder} does not exist")
        return folder

    return find


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a registry's database without models, to be copied: making its tables takes a second and a half."""
    pytest.importorskip("mlflow")
    from tellapart.registry import Registry

    file = tmp_path_factory.mktemp("registry") / "models.db"
    Registry(file)
    return file


class PostgreSQL:
    """A server of our own, on loopback. Called with a name it makes a new database and returns its URL."""

    def __init__(self, programs: Path) -> None:
        self._programs, self._folder = programs, Path(tempfile.mkdtemp(prefix="tellapart-postgresql-"))
        # It refuses to run as root.
        self._as_user = {"user": "postgres"} if os.geteuid() == 0 else {}
        if self._as_user:
            shutil.chown(self._folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._run("initdb", "-D", str(self._folder / "data"), "-U", "me", "--auth=trust", "--no-sync")
        self.start()

    def __call__(self, name: str) -> str:
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "me", name)
        return f"postgresql+pg8000://me@127.0.0.1:{self._port}/{name}"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self._port} -c unix_socket_directories={self._folder}"
        folder = ["-D", str(self._folder / "data"), "-l", str(self._folder / "log")]
        self._run("pg_ctl", *folder, "-o", f"{options} -c fsync=off", "--wait", "start")

    def kill(self) -> None:
        """End it as a power cut does: connections break, and what was committed comes back with the next start."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop")

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as_user)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Return a server of our own; skip where PostgreSQL is absent."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "/nowhere").parent]
    if not (programs[-1] / "initdb").exists():
        pytest.skip("PostgreSQL is not installed here: NOTHING IS TESTED ON IT (apt-get install postgresql)")
    server = PostgreSQL(programs[-1])
    yield server
    server.remove()


QUICK = [
    "data.image_px=48", "train.epochs=6", "train.batch_size=16", "train.learning_rate=4e-3", "train.precision=float32",
    "train.warmup_epochs=1", "train.recalibrate_photos=256", "model.dropout=0.1",
    "model.l2=0.0", "augment.rotation=0.02",
]  # fmt: skip


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `photos`, their `run` and its `bundle` in all formats. Do not change them: copy them.

    TEST_PLACE names a folder where it is kept for later calls: it takes half a minute.
    """
    import tellapart
    from tellapart.bundles.runtimes import RUNTIMES
    from tellapart.shipping.formats import FORMATS

    if kept := os.environ.get("TEST_PLACE"):
        here = Path(kept)
        here.mkdir(parents=True, exist_ok=True)
    elif os.environ.get("PYTEST_XDIST_WORKER"):  # one of the processes makes it, for all
        here = tmp_path_factory.getbasetemp().parent / "place"
        here.mkdir(exist_ok=True)
    else:
        here = tmp_path_factory.mktemp("place")
    with open(here / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (here / "bundle").exists():
            photos = tellapart.draw(here / "photos", num_images=400)
            tellapart.train(photos, changes=QUICK, out=here / "run", cache=here / "cache")
            wanted = [name for name in FORMATS if name != "litert" or RUNTIMES["litert"].installed]
            tellapart.export(here / "run", here / "bundle", name="shapes", formats=wanted, cache=here / "cache")
    return here
