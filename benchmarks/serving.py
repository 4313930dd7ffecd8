"""`tellapart serve` beside LitServe, BentoML and FastAPI: one ONNX, one picture, client on the same processors.

    python benchmarks/serving.py BUNDLE photo.jpg --peer-python ENV/bin/python --keras RUN/model.keras

ENV has what `pip install litserve bentoml openvino opencv-python-headless` brings. Needs wrk. All servers are started
one after the other in each round; wrk asks with 1 connection for latency and with --connections for throughput. Peers
are started once for each: with all processors for a lone client, with one for each of several; OpenVINO pins no threads
where several processes share the processors, as in tellapart itself.
What HTTP adds to a lone client's wait is measured in turns, second by second, beside a bare loop of decoding and the
runtime and beside `classifier.predict` in a process of its own, which measures the photo's quality as the server does.
benchmarks/overload.py puts more on the server than it can do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from operator import sub, truediv
from pathlib import Path
from typing import Any

from machine import write_result

PEERS = Path(__file__).parent / "peers"
_TURNS = 7
LUA = """
wrk.method = "POST"
local f = io.open("{body}", "rb")
wrk.body = f:read("*a")
wrk.headers["Content-Type"] = "multipart/form-data; boundary=tellapartboundary"
"""


def multipart(data: bytes) -> bytes:
    """Return a form with the picture in the field `file`."""
    head = b'--tellapartboundary\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
    return head + b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n--tellapartboundary--\r\n"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wrk(url: str, script: Path, connections: int, seconds: float) -> dict[str, Any]:
    """Ask for a while; return requests per second, latencies in ms and the number of errors."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "--timeout", "10s"]
    text = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True).stdout
    scale = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
    latency = {
        share: float(value) * scale[suffix]
        for share, value, suffix in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    }
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return {
        "requests_per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        "p50_ms": latency.get("50", float("nan")),
        "p99_ms": latency.get("99", float("nan")),
        "errors": int(errors[1]) if errors else 0,
        "socket_errors": "Socket errors" in text,
    }


class Server:
    """A server process, waited for until it answers."""

    def __init__(self, command: list[str], port: int, body: bytes, environment: dict[str, str] | None = None) -> None:
        self.port, self.body = port, body
        start = time.perf_counter()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, start_new_session=True, cwd=PEERS,
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        while True:
            try:
                self.ask()
                break
            except OSError:
                if self.process.poll() is not None or time.perf_counter() - start > 90:
                    self.log.seek(0)
                    raise SystemExit(f"{command}: {self.log.read().decode()[-2000:]}") from None
                time.sleep(0.05)
        self.ready_seconds = time.perf_counter() - start

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}/predict"

    def ask(self) -> dict:
        """Ask once."""
        headers = {"Content-Type": "multipart/form-data; boundary=tellapartboundary"}
        request = urllib.request.Request(self.url, data=self.body, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def memory_mb(self) -> float:
        """Return the proportional memory of the process and its children in MB (10^6 bytes)."""
        return self._sum_mb("smaps_rollup", "Pss:")

    def own_memory_mb(self) -> float:
        """Return what they have taken for themselves, in MB: other processes that open the same files do not count."""
        return self._sum_mb("status", "RssAnon:")

    def _sum_mb(self, file: str, field: str) -> float:
        total, group = 0.0, str(self.process.pid)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "stat").read_text().rpartition(")")[2].split()[2] == group:
                    total += int(re.search(rf"{field}\s+(\d+)", (folder / file).read_text())[1]) * 1024 / 1e6
            except (OSError, TypeError):
                continue
        return total

    def stop(self) -> None:
        """End the process and its children."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        time.sleep(0.5)


def commands(arguments: argparse.Namespace, port: int) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return name → (command, environment) of every server."""
    bundle, peer = str(arguments.bundle.resolve()), arguments.peer_python
    serve = [sys.executable, "-m", "tellapart", "serve", bundle, "--port", str(port)]
    # The peers have a process for each processor too.
    several = [*serve, "--workers", str(os.cpu_count())]
    servers: dict[str, tuple[list[str], dict[str, str]]] = {
        "tellapart": (serve, {}), "tellapart, a process for each processor": (several, {}),
    }  # fmt: skip
    if peer:
        environment = {"PYTHONPATH": str(PEERS), "BUNDLE": bundle}
        bentoml = ["-m", "bentoml", "serve", "serve_bentoml:Classifier", "--host", "127.0.0.1", "--port", str(port)]
        servers |= {
            "fastapi": ([peer, "serve_fastapi.py", bundle, str(port)], environment),
            "fastapi, a process for each processor": (
                [peer, "serve_fastapi.py", bundle, str(port)],
                environment | {"PEER_PROCESSES": "yes"},
            ),
            "litserve": ([peer, "serve_litserve.py", bundle, str(port)], environment),
            "bentoml": ([peer, *bentoml], environment),
        }
    if arguments.keras:
        servers["fastapi + model.predict"] = (
            [sys.executable, "serve_keras.py", str(arguments.keras.resolve()), str(port)],
            {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    return {name: value for name, value in servers.items() if not arguments.only or name in arguments.only}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--keras", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    body = multipart(arguments.photo.read_bytes())
    rounds: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "body").write_bytes(body)
        script = Path(folder) / "post.lua"
        script.write_text(LUA.format(body=Path(folder) / "body"))
        for _ in range(arguments.rounds):
            bare = [arguments.peer_python or sys.executable, str(PEERS / "bare_loop.py"), str(arguments.bundle)]
            done = subprocess.run(
                [*bare, str(arguments.photo), str(arguments.seconds)], capture_output=True, text=True, check=True
            )
            rounds.setdefault("bare loop", []).append(json.loads(done.stdout.strip().splitlines()[-1]))
            rounds.setdefault("in turns", []).append(in_turns(arguments, body, script))
            for name, (command, environment) in commands(arguments, port := free_port()).items():
                measured: dict[str, Any] = {}
                for mode, connections in (("one", 1), ("many", arguments.connections)):
                    lone = {"PEER_MODE": "lone"} if mode == "one" else {}
                    server = Server(command, port, body, environment | lone)
                    try:
                        wrk(server.url, script, connections, 2)  # warms up
                        measured[mode] = wrk(server.url, script, connections, arguments.seconds)
                        measured |= {"ready_seconds": server.ready_seconds, "memory_mb": server.memory_mb()}
                    finally:
                        server.stop()
                rounds.setdefault(name, []).append(measured)
    write(arguments, rounds)


def in_turns(arguments: argparse.Namespace, body: bytes, script: Path) -> dict[str, list[float]]:
    """Return the medians in ms of a lone client and of no server at all, second by second in turns.

    The machine changes its speed within seconds: what HTTP adds cannot be told from runs that follow each other.
    """
    command, environment = commands(arguments, port := free_port())["tellapart"]
    photo = [str(arguments.bundle.resolve()), str(arguments.photo.resolve())]
    server = Server(command, port, body, environment)
    loops = {}
    try:
        for name, kind, python in (
            ("bare loop", "bare", arguments.peer_python or sys.executable),
            ("in process", "tellapart", sys.executable),
        ):
            loops[name] = subprocess.Popen(
                [python, str(PEERS / "lone.py"), kind, *photo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        found: dict[str, list[float]] = {"http": [], **{name: [] for name in loops}}
        for turn in range(_TURNS + 1):
            seen = {"http": wrk(server.url, script, 1, 1)["p50_ms"]}
            for name, process in loops.items():
                process.stdin.write("1\n")
                process.stdin.flush()
                seen[name] = float(process.stdout.readline())
            for name in seen if turn else ():  # the first turn warms up
                found[name].append(seen[name])
        return found
    finally:
        for process in loops.values():
            process.kill()
        server.stop()


def ends(values: Iterable[float]) -> list[float]:
    """Return the smallest and the largest value over the rounds."""
    numbers = list(values)
    return [min(numbers), max(numbers)]


def write(arguments: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> None:
    """Reduce the rounds to medians and write them."""
    bare = {key: statistics.median(row[key] for row in rounds["bare loop"]) for key in rounds["bare loop"][0]}
    table = {}
    for name, rows in rounds.items():
        if name in ("bare loop", "in turns"):
            continue
        table[name] = {
            "p50_ms": statistics.median(row["one"]["p50_ms"] for row in rows),
            "p99_ms": statistics.median(row["one"]["p99_ms"] for row in rows),
            "p50_ms_loaded": statistics.median(row["many"]["p50_ms"] for row in rows),
            "p99_ms_loaded": statistics.median(row["many"]["p99_ms"] for row in rows),
            "requests_per_second": statistics.median(row["many"]["requests_per_second"] for row in rows),
            "errors": sum(row["many"]["errors"] + row["one"]["errors"] for row in rows),
            "ready_seconds": statistics.median(row["ready_seconds"] for row in rows),
            "memory_mb": statistics.median(row["memory_mb"] for row in rows),
            "requests_per_second_lone": statistics.median(row["one"]["requests_per_second"] for row in rows),
            "spread": {
                "p50_ms": ends(row["one"]["p50_ms"] for row in rows),
                "requests_per_second": ends(row["many"]["requests_per_second"] for row in rows),
            },
        }
    ours = table["tellapart"]
    values = {
        "what": f"one JPEG of {arguments.photo.stat().st_size:,} bytes, {arguments.connections} connections",
        "bare_loop": bare,
        "servers": table,
        "throughput_of_bare_loop": ours["requests_per_second"] / bare["requests_per_second"],
        "http_adds_ms_in_each_round": {
            to: [statistics.median(map(sub, row["http"], row[to])) for row in rounds["in turns"]]
            for to in ("bare loop", "in process")
        },
        "in_process_of_the_bare_loop_in_each_round": [
            statistics.median(map(truediv, row["in process"], row["bare loop"])) for row in rounds["in turns"]
        ],
        "throughput_ratio": {
            name: ours["requests_per_second"] / row["requests_per_second"] for name, row in table.items()
        },
        "throughput_ratio_in_each_round": {
            ours_name: {
                name: [
                    mine["many"]["requests_per_second"] / theirs["many"]["requests_per_second"]
                    for mine, theirs in zip(rounds[ours_name], rounds[name], strict=True)
                ]
                for name in table
            }
            for ours_name in table
            if ours_name.startswith("tellapart")
        },
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in values.items() if key != "rounds"}, indent=2))
    print(f"Written to {write_result('serving', values)}")


if __name__ == "__main__":
    main()
