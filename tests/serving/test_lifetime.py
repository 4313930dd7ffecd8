"""From start to stop: how soon it is ready, what is in memory, swaps under load, draining, several processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from serving.process import COMMAND, ServerProcess, changed, running, slow_form
from tellapart.bundles.bundle import open_bundle

pytestmark = pytest.mark.integration


def memory_mb(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 1e6


def test_a_server_in_use_stays_small(bundle: Path, tmp_path: Path, photos: list[Path]):
    with running(tmp_path, bundle) as server:
        assert server.call("/v2/health/ready")[0] == 200
        for path in photos[:40]:
            server.call("/predict", path.read_bytes())
        server.call("/explain", photos[0].read_bytes())
        if sys.platform == "linux":
            assert memory_mb(server.process.pid) < 350


def test_no_framework_is_loaded(bundle: Path, photos: list[Path]):
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "import tellapart.cli.serving, tellapart.serving.processes, tellapart.serving.http_server\n"
        "from tellapart.serving.app import make_app; from tellapart.serving.options import ServerOptions\n"
        "app = make_app(ServerOptions((Path(sys.argv[1]),), log=False))\n"
        "import httpx\n"
        "async def ask():\n"
        "    async with app.router.lifespan_context(app), httpx.AsyncClient(\n"
        "        transport=httpx.ASGITransport(app), base_url='http://localhost') as client:\n"
        "        for path in ('/predict', '/explain?format=json'):\n"
        "            answer = await client.post(path, content=Path(sys.argv[2]).read_bytes())\n"
        "            assert answer.status_code == 200, answer.text\n"
        "asyncio.run(ask())\n"
        "heavy = {'keras', 'tensorflow', 'jax', 'torch', 'pandas', 'sklearn', 'matplotlib', 'tellapart.training'}\n"
        "assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, bundle, photos[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_swap_under_load_fails_no_request(bundle: Path, tmp_path: Path, photos: list[Path]):
    place = tmp_path / "served"
    shutil.copytree(bundle, place)
    fresh = changed(bundle, tmp_path / "fresh", threshold=0.999)
    versions = {open_bundle(bundle).version, open_bundle(fresh).version}
    data = photos[0].read_bytes()
    found: list[tuple[int, str]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, values = server.json("/predict?quality=false", data)
            found.append((status, values.get("version", "")))

    with running(tmp_path / "log", place) as server:
        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        try:
            time.sleep(0.3)
            place.rename(tmp_path / "old")
            fresh.rename(place)
            shutil.rmtree(tmp_path / "old")
            until = time.monotonic() + 20
            while time.monotonic() < until and {version for _, version in found} != versions:
                time.sleep(0.05)
            time.sleep(0.2)
        finally:
            stop.set()
            for asker in askers:
                asker.join()
        assert {status for status, _ in found} == {200}
        assert {version for _, version in found} == versions
        assert found[-1][1] == open_bundle(place).version
        metrics = server.call("/metrics")[1].decode()
        assert re.search(r"tellapart_swaps_total\{.*\} 1\.0", metrics)


def test_a_corrupt_bundle_is_refused_by_a_running_server(bundle: Path, tmp_path: Path, photos: list[Path]):
    place = tmp_path / "served"
    shutil.copytree(bundle, place)
    with running(tmp_path / "log", place) as server:
        version = server.json("/predict", photos[0].read_bytes())[1]["version"]
        with open(place / "SHA256SUMS", "ab") as stream:
            stream.write(b"nonsense\n")
        until = time.monotonic() + 10
        while b"tellapart_refused_bundles_total 1.0" not in server.call("/metrics")[1] and time.monotonic() < until:
            time.sleep(0.1)
        assert server.json("/predict", photos[0].read_bytes())[1]["version"] == version
        assert b"tellapart_refused_bundles_total 1.0" in server.call("/metrics")[1]
        time.sleep(0.3)
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        assert any("was refused" in line.get("message", "") for line in lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_says_so_finishes_what_was_accepted_and_ends_with_0(
    start: Callable[..., ServerProcess], bundle: Path, number: signal.Signals
):
    # Three large pictures one after the other, beside whatever else this machine does.
    server = start(bundle, "--threads", "1", "--drain-seconds", "0.5", "--deadline-ms", "60000")
    slow = cv2.imencode(".png", np.zeros((6000, 6000), np.uint8))[1].tobytes()
    found: list[int] = []
    askers = [threading.Thread(target=lambda: found.append(server.call("/predict", slow)[0])) for _ in range(3)]
    for asker in askers:
        asker.start()
    time.sleep(0.2)
    server.process.send_signal(number)
    time.sleep(0.1)
    status, _, headers = server.call("/v2/health/ready")
    assert (status, headers["retry-after"]) == (503, "1")
    assert server.call("/v2/health/live")[0] == 200
    assert server.process.wait(timeout=90) == 0
    for asker in askers:
        asker.join()
    assert found == [200, 200, 200]


def test_several_processes_share_a_port_and_their_numbers(
    start: Callable[..., ServerProcess], bundle: Path, photos: list[Path]
):
    server = start(bundle, "--workers", "2")
    data = photos[0].read_bytes()
    port = int(server.url.rpartition(":")[2])
    # At once: who is woken first must not take all of them.
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))

        def held() -> list[int]:
            return [num_connections(process, port) for process in children_of(server.process.pid)]

        assert until(5, lambda: sum(held()) == 12), held()
        assert min(held()) >= 3, held()
    for _ in range(40):
        assert server.json("/predict", data)[0] == 200
    text = server.call("/metrics")[1].decode()
    assert sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("tellapart_images_total")) == 40
    children = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=True
    )
    servers = [int(line.split()[0]) for line in children.stdout.splitlines() if "spawn_main" in line]
    assert len(servers) == 2
    assert server.stop() == 0
    for child in servers:
        assert not Path(f"/proc/{child}").exists()


def test_a_bundle_that_is_none_is_one_clear_error(tmp_path: Path):
    for more in ([], ["--workers", "2"]):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, tmp_path, "--port", "0", *more], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert f"{tmp_path} has no SHA256SUMS. Expected a bundle made by tellapart export." in done.stderr


def children_of(process: int) -> list[int]:
    """Return the server processes that another one started."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(process)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "spawn_main" in line]


def num_connections(process: int, port: int) -> int:
    """Return how many connections to a port of this machine a process has."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Columns: local address, state (01: established), inode.
    inodes = {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"}
    held = [os.readlink(place) for place in Path(f"/proc/{process}/fd").iterdir() if place.is_symlink()]
    return sum(name[len("socket:[") : -1] in inodes for name in held if name.startswith("socket:["))


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return "Z" not in state.stdout  # dead, and nobody has asked how


def until(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait until something holds; return whether it does."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@pytest.mark.slow
def test_a_process_that_cannot_start_again_leaves_the_others_alone(bundle: Path, tmp_path: Path, photos: list[Path]):
    place = tmp_path / "served"
    shutil.copytree(bundle, place)
    data = photos[0].read_bytes()
    with running(tmp_path / "log", place, "--workers", "2") as server:
        first, second = children_of(server.process.pid)
        record = (place / "bundle.json").read_bytes()
        (place / "bundle.json").write_bytes(record + b" ")
        os.kill(first, signal.SIGKILL)
        assert until(30, lambda: server.log.read_text().count("before it was ready; its error is above") == 2)
        assert server.process.poll() is None
        assert children_of(server.process.pid)[0] == second
        assert [server.json("/predict", data)[0] for _ in range(5)] == [200] * 5
        assert "The next one starts in 4 s" in server.log.read_text(), "the pauses grow"
        (place / "bundle.json").write_bytes(record)
        assert until(30, lambda: len(children_of(server.process.pid)) == 2)
        assert server.stop() == 0


def test_the_children_of_a_killed_parent_end(start: Callable[..., ServerProcess], bundle: Path):
    server = start(bundle, "--workers", "2")
    children = children_of(server.process.pid)
    assert len(children) == 2
    server.process.kill()
    server.process.wait()
    try:
        assert until(10, lambda: not any(map(lives, children)))
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.by_hand)])
@pytest.mark.slow
def test_a_stop_ends_though_something_hangs(
    start: Callable[..., ServerProcess], bundle: Path, tmp_path: Path, workers: int
):
    """A pipe that nobody reads takes no verdict and keeps the thread that would write it."""
    pipe = tmp_path / "verdicts.jsonl"
    os.mkfifo(pipe)
    server = start(bundle, "--feedback", pipe, "--deadline-ms", "500", "--workers", str(workers))
    asker = threading.Thread(target=lambda: server.call("/feedback", b'{"request_id":"a","verdict":"right"}'))
    hook, threading.excepthook = threading.excepthook, lambda arguments: None
    try:
        asker.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) in (0, -signal.SIGKILL)
        asker.join(10)
    finally:
        threading.excepthook = hook


def test_refusals_are_counted_and_do_not_make_latency_look_better(
    start: Callable[..., ServerProcess], bundle: Path, photos: list[Path]
):
    server = start(bundle, "--threads", "1", "--max-queue", "1", "--max-batch-size", "1")
    slow, data, found, form = (
        slow_form(20),
        photos[0].read_bytes(),
        [],
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    asker = threading.Thread(target=lambda: found.append(server.call("/predict", slow, form)[0]))
    asker.start()
    assert until(5, lambda: server.json("/stats")[1]["queue"] > 1)
    statuses = []
    while asker.is_alive():
        statuses.append(server.call("/predict", data)[0])
    found += statuses
    assert statuses.count(503) > 10
    values = server.json("/stats")[1]
    assert values["requests_per_second"] == pytest.approx(found.count(200) / 10)
    assert values["refused_per_second"] == pytest.approx(found.count(503) / 10)
    metrics = server.call("/metrics")[1].decode()
    (whole,) = re.findall(r'tellapart_seconds_count\{.*stage="whole".*\} (\S+)', metrics)
    assert float(whole) == found.count(200)
    assert f'tellapart_errors_total{{kind="busy"}} {found.count(503)}.0' in metrics


def test_a_ctrl_c_is_one_signal_to_several_processes(start: Callable[..., ServerProcess], bundle: Path):
    """A terminal sends it to the whole group: were it a second signal to the servers, they would drop what they do."""
    server = start(bundle, "--workers", "2", "--threads", "2", "--drain-seconds", "0.5", "--deadline-ms", "60000")
    slow = cv2.imencode(".png", np.zeros((6000, 6000), np.uint8))[1].tobytes()
    found: list[int] = []
    asker = threading.Thread(target=lambda: found.append(server.call("/predict", slow)[0]))
    asker.start()
    time.sleep(0.2)
    for process in (server.process.pid, *children_of(server.process.pid)):
        os.kill(process, signal.SIGINT)
    assert server.process.wait(timeout=90) == 0
    asker.join()
    assert found == [200]
