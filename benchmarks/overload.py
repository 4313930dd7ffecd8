"""Twice as many requests as `tellapart serve` can answer, at a steady rate: what becomes of each.

    python benchmarks/overload.py BUNDLE photo.jpg

First the rate at which the server is saturated is measured with closed connections (each asks when it has its answer),
then twice that rate is kept up whether answers come or not. The client is on the same processors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np

from machine import write_result
from serving import Server, free_port

CONNECTIONS = 8


class Client:
    """Connections to a server that are kept open and used again."""

    def __init__(self, port: int, data: bytes) -> None:
        self.port, self.idle = port, []
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        self.request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data

    async def ask(self) -> tuple[int, float]:
        """Return status and seconds; status 0 where no answer came."""
        start = time.perf_counter()
        try:
            reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return 0, time.perf_counter() - start
        self.idle.append((reader, writer))
        return int(head.split(b" ", 2)[1]), time.perf_counter() - start


async def saturate(client: Client, seconds: float) -> float:
    """Return the answers per second with a few connections."""
    end, counts = time.perf_counter() + seconds, []

    async def keep_asking() -> None:
        while time.perf_counter() < end:
            status, _ = await client.ask()
            counts.append(status)

    await asyncio.gather(*(keep_asking() for _ in range(CONNECTIONS)))
    return counts.count(200) / seconds


async def overload(client: Client, rate: float, seconds: float) -> list[tuple[int, float]]:
    """Send `rate` requests per second for a while and return what became of each."""
    start, tasks = time.perf_counter(), []
    while (now := time.perf_counter() - start) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.ensure_future(client.ask()))
        await asyncio.sleep(0.001)
    return list(await asyncio.gather(*tasks))


async def measure(port: int, data: bytes, seconds: float, factor: float) -> dict:
    """Find the saturating rate and go beyond it."""
    client = Client(port, data)
    await saturate(client, 2)
    rate = await saturate(client, seconds)
    answers = await overload(client, factor * rate, seconds)
    accepted = np.array([1000 * seconds_taken for status, seconds_taken in answers if status == 200])
    refused = np.array([1000 * seconds_taken for status, seconds_taken in answers if status == 503])
    return {
        "saturated_per_second": rate,
        "offered_per_second": len(answers) / seconds,
        "accepted_per_second": len(accepted) / seconds,
        "accepted_ms": {"p50": float(np.median(accepted)), "p99": float(np.quantile(accepted, 0.99))},
        "refused": len(refused),
        "refused_ms": {"p50": float(np.median(refused)), "p99": float(np.quantile(refused, 0.99))}
        if len(refused) else None,
        "lost": len(answers) - len(accepted) - len(refused),
    }  # fmt: skip


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--factor", type=float, default=2)
    arguments = parser.parse_args()
    data, port = arguments.photo.read_bytes(), free_port()
    body = b'--tellapartboundary\r\nContent-Disposition: form-data; name="file"; filename="p.jpg"\r\n\r\n' + data
    command = [sys.executable, "-m", "tellapart", "serve", str(arguments.bundle.resolve()), "--port", str(port)]
    server = Server(command, port, body + b"\r\n--tellapartboundary--\r\n")
    try:
        values = asyncio.run(measure(port, data, arguments.seconds, arguments.factor))
        values["memory_mb"] = server.memory_mb()
    finally:
        server.stop()
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('overload', values)}")


if __name__ == "__main__":
    main()
