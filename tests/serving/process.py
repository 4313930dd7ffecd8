"""A server in a process of its own, and other versions of a bundle."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

COMMAND = (
    "import sys; from tellapart.cli import main, serving; main.app.command('serve')(serving.serve); "
    "sys.argv.insert(1, 'serve'); main.main()"
)


def changed(bundle: Path, to: Path, **values: Any) -> Path:
    """Copy a bundle with other values in its record: another version, with right checksums."""
    from tellapart.bundles.bundle import open_bundle, write_record

    shutil.copytree(bundle, to)
    write_record(to, open_bundle(bundle).record.model_copy(update=values))
    return to


def slow_form(num_images: int) -> bytes:
    """Return a form, with the boundary x, of pictures of which each takes a twentieth of a second and none is large."""
    picture = cv2.imencode(".png", np.zeros((2000, 2090, 3), np.uint8))[1].tobytes()
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    return (head + picture + b"\r\n") * num_images + b"--x--\r\n"


@dataclass
class ServerProcess:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    def call(
        self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers (names in lower case)."""
        request = urllib.request.Request(self.url + path, data, self.headers | (headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read(), {name.lower(): value for name, value in answer.headers.items()}

    def json(self, path: str, data: bytes | None = None, **options: Any) -> tuple[int, Any]:
        """Return status and parsed body."""
        status, body, _ = self.call(path, data, **options)
        return status, json.loads(body)

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def running(folder: Path, *arguments: str | Path) -> Iterator[ServerProcess]:
    """Start `tellapart serve` on a free port, and stop it in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    log, out = folder / "server.log", folder / "server.out"
    command = [sys.executable, "-c", COMMAND, *arguments, "--port", "0", "--drain-seconds", "0.3"]
    with open(log, "wb") as errors, open(out, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
    try:
        until = time.monotonic() + 30
        while not (found := re.search(rb"at (http://\S+)", out.read_bytes())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        yield ServerProcess(process, found[1].decode(), log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
