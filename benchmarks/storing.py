"""What a request pays for what is kept of it: nothing, predictions, photos too, and a challenger in shadow or split.

    python benchmarks/storing.py BUNDLE photo.jpg

All servers run at once and are asked in turns, a hundred requests each in a round, one connection, at half of the rate
that the plain one can answer: what is kept is written, and the challenger sees photos, in the gaps. Differences of
medians are paired by round. The client is on the same processors.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from machine import write_result
from serving import Server, free_port, multipart
from tellapart.bundles.bundle import open_bundle, write_record
from tellapart.promotion import begin_test
from tellapart.registry import Registry
from tellapart.request_store import RequestStore

HEADERS = {"Content-Type": "multipart/form-data; boundary=tellapartboundary"}


def ask(connection: http.client.HTTPConnection, body: bytes, number: int) -> float:
    """Ask once, and return the milliseconds."""
    began = time.perf_counter()
    connection.request("POST", "/predict", body, HEADERS | {"X-User-ID": f"user {number}"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
    return 1000 * (time.perf_counter() - began)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument(
        "--runtime", default="onnxruntime", help="of all: two may be equally fast, and either be chosen"
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=100)
    arguments = parser.parse_args()
    body = multipart(arguments.photo.read_bytes())
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        place = Path(name)
        other = place / "other"
        shutil.copytree(arguments.bundle, other)
        record = open_bundle(arguments.bundle).record
        write_record(other, record.model_copy(update={"created": "2026-01-01T00:00:00Z"}))

        def followed(mode: str) -> list[str]:
            registry = Registry(place / f"{mode}.db")
            champion = registry.add(arguments.bundle)
            registry.promote(champion, "the first")
            begin_test(registry, registry.add(other), mode, 1.0 if mode == "shadow" else 0.5)
            return ["--registry", record.name, "--registry-url", str(place / f"{mode}.db"), "--store",
                    str(place / f"{mode}-requests.db"), "--keep-photos"]  # fmt: skip

        bundle = str(arguments.bundle.resolve())
        ways = {
            "plain": [bundle],
            "store": [bundle, "--store", str(place / "store.db")],
            "store with photos": [bundle, "--store", str(place / "photos.db"), "--keep-photos"],
            "split": followed("split"),
            "shadow": followed("shadow"),
        }
        connections = {}
        for way, options in ways.items():
            port = free_port()
            command = [sys.executable, "-m", "tellapart", "serve", *options, "--port", str(port),
                       "--runtime", arguments.runtime]  # fmt: skip
            server = Server(command, port, body)
            stack.callback(server.stop)
            connections[way] = http.client.HTTPConnection("127.0.0.1", port)
        alone = statistics.median(ask(connections["plain"], body, number) for number in range(200))
        pause = 2 * alone / 1000
        rng, rows = np.random.default_rng(0), []
        for _ in range(arguments.rounds):
            row = {}
            for way in rng.permutation(list(ways)):
                times, due = [], time.perf_counter()
                for number in range(arguments.requests):
                    due += pause
                    time.sleep(max(0.0, due - time.perf_counter()))
                    times.append(ask(connections[way], body, number))
                row[str(way)] = float(np.median(times))
            rows.append(row)
            print({way: round(value, 3) for way, value in row.items()}, flush=True)
        stored = RequestStore(f"sqlite:///{place / 'shadow-requests.db'}")
        seen = sum(1 for _ in stored.predictions(record.name))
        stored.close()
    added: dict[str, Any] = {}
    for way in list(ways)[1:]:
        apart = np.array([row[way] - row["plain"] for row in rows])
        added[way] = {"median_ms": float(np.median(apart)), "quartiles_ms": np.quantile(apart, [0.25, 0.75]).tolist()}
    values = {
        "runtime": arguments.runtime, "photo_bytes": len(body), "closed_loop_p50_ms": alone,
        "requests_per_second": 1 / pause,
        "rounds": rows, "added_to_p50": added, "stored_in_shadow": seen,
    }  # fmt: skip
    print(added)
    print("Written to", write_result("storing", values))


if __name__ == "__main__":
    main()
