"""A real server process that serves a bundle."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.in_browser import CHROMIUM, FAKE_CAMERA
from serving.process import ServerProcess, running


@pytest.fixture(scope="session")
def bundle(place: Path) -> Path:
    """Return the folder of a bundle. Do not change it: copy it."""
    return place / "bundle"


@pytest.fixture(scope="session")
def photos(place: Path) -> list[Path]:
    """Return photos of the kind that the bundle names."""
    return sorted(path for path in (place / "photos").rglob("*") if path.suffix in (".jpg", ".png"))


@pytest.fixture(scope="session")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server process with a file for feedback; on a busy machine it must not refuse what a test asks."""
    folder = tmp_path_factory.mktemp("server")
    with running(folder, bundle, "--feedback", folder / "feedback.jsonl", "--max-queue-ms", "5000") as found:
        yield found


@pytest.fixture(scope="session")
def server_url(server: ServerProcess) -> str:
    """Return the URL of `server`, without a slash at its end."""
    return server.url


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Return a function that starts a server with other options; all are stopped in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(running(tmp_path / f"server{time.monotonic_ns()}", *arguments))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return Chromium with a camera that shows a test picture."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *FAKE_CAMERA])
        yield browser
        browser.close()
