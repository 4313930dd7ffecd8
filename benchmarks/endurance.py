"""`tellapart serve` for ten minutes under load, damaged images among it, and ten thousand more: memory, crashes, 5xx.

    python benchmarks/endurance.py BUNDLE PHOTOS

Load: connections that ask again as soon as they are answered, with photos drawn from the folder, one in fifty of them
damaged; /predict mostly, now and then TensorFlow Serving's path and an explanation. The memory that the server has
taken for itself is read every five seconds. Then damaged images only: bits turned, cut, overwritten, spliced, headers
that lie.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from machine import write_result
from serving import Server, free_port, multipart

DAMAGED = 0.02
"""Of the images of the load."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def damaged(rng: random.Random, photos: list[bytes]) -> bytes:
    """Return a photo that something has happened to."""
    data = bytearray(rng.choice(photos))
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind, at = rng.randrange(8), rng.randrange(max(1, len(data)))
        if kind == 0:  # bits turned anywhere
            for _ in range(rng.choice((1, 8, 64))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:  # bits turned where the header is
            for _ in range(rng.choice((1, 4, 16))):
                data[rng.randrange(min(len(data), 700))] ^= 1 << rng.randrange(8)
        elif kind == 2:  # cut
            del data[at:]
        elif kind == 3:  # a hole
            del data[at : at + rng.choice((1, 16, 1000))]
        elif kind == 4:  # overwritten by zeros, ones or noise
            length = min(rng.choice((2, 64, 4000)), len(data) - at)
            data[at : at + length] = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
        elif kind == 5:  # another photo's rest
            data[at:] = rng.choice(photos)[at:]
        elif kind == 6:  # the size that the frame declares
            frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
            if 0 <= frame < len(data) - 9:
                data[frame + 5 : frame + 9] = rng.randbytes(4)
        else:  # twice
            data += data[at:]
        if not data:
            data = bytearray(rng.randbytes(rng.randrange(64)))
    return bytes(data)


def requests(rng: random.Random, photos: list[bytes], name: str, *, only_damaged: bool) -> Iterator[tuple[str, bytes]]:
    """Yield (path and content type, body) without end."""
    while True:
        kind = rng.random()
        data = damaged(rng, photos) if only_damaged or rng.random() < DAMAGED else rng.choice(photos)
        if (kind < 0.9 and not only_damaged) or kind < 0.6:
            yield "/predict|image/jpeg", data
        elif (kind < 0.8 and only_damaged) or kind < 0.94:
            yield "/predict|multipart/form-data; boundary=tellapartboundary", multipart(data)
        elif kind < 0.97:
            body = json.dumps({"instances": [{"b64": base64.b64encode(data).decode()}]}).encode()
            yield f"/v1/models/{name}:predict|application/json", body
        else:
            yield "/explain|application/octet-stream", data


class Counts:
    """What came back: (path, status) → number, and how long it took."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.failures: list[str] = []


async def ask_on(port: int, source: Iterator[tuple[str, bytes]], counts: Counts, goes_on: object) -> None:
    """Ask on one connection, opened anew when the server closes it, until `goes_on` says no."""
    reader = writer = None
    while goes_on():
        target, body = next(source)
        path, kind = target.split("|")
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\n"
        start = time.perf_counter()
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            fields = answer.lower()
            await reader.readexactly(int(fields.partition(b"content-length:")[2].split(b"\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            counts.failures.append(f"{path}: {error!r}")
            writer = None
            continue
        counts.statuses[int(answer.split(b" ", 2)[1])] += 1
        counts.seconds.append(time.perf_counter() - start)
        if b"connection: close" in fields:
            writer.close()
            writer = None


async def load(server: Server, photos: list[bytes], name: str, seconds: float, connections: int) -> dict:
    """Keep the server busy and read its memory."""
    counts, end, memory = Counts(), time.perf_counter() + seconds, []
    source = requests(random.Random(1), photos, name, only_damaged=False)

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(server.own_memory_mb())
            print(f"\r{len(counts.seconds):,} requests, {memory[-1]:.1f} MB", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(5)

    asking = [ask_on(server.port, source, counts, lambda: time.perf_counter() < end) for _ in range(connections)]
    await asyncio.gather(watch(), *asking)
    print(file=sys.stderr)
    tenth = max(1, len(memory) // 10)
    first, last = float(np.median(memory[tenth : 2 * tenth])), float(np.median(memory[-tenth:]))
    return {
        "seconds": seconds,
        "requests": len(counts.seconds),
        "statuses": {str(status): number for status, number in sorted(counts.statuses.items())},
        "failures": counts.failures[:20],
        "p50_ms": 1000 * float(np.median(counts.seconds)),
        "p99_ms": 1000 * float(np.quantile(counts.seconds, 0.99)),
        "own_memory_mb": [round(megabytes, 1) for megabytes in memory],
        "own_memory_second_tenth_mb": first,
        "own_memory_last_tenth_mb": last,
        "own_memory_grew_by": last / first - 1,
        "proportional_memory_mb": server.memory_mb(),
    }


async def fuzz(server: Server, photos: list[bytes], name: str, images: int, connections: int) -> dict:
    """Send damaged images, and a whole one at the end."""
    counts, source = Counts(), requests(random.Random(2), photos, name, only_damaged=True)
    sent = iter(range(images))
    before = server.own_memory_mb()

    def goes_on() -> bool:
        number = next(sent, None)
        if number is not None and number % 200 == 0:
            print(f"\r{number:,} of {images:,} damaged images", end="", file=sys.stderr, flush=True)
        return number is not None

    await asyncio.gather(*(ask_on(server.port, source, counts, goes_on) for _ in range(connections)))
    print(file=sys.stderr)
    label = server.ask()["predictions"][0]["label"]
    return {
        "images": images,
        "statuses": {str(status): number for status, number in sorted(counts.statuses.items())},
        "failures": counts.failures[:20],
        "num_5xx": sum(number for status, number in counts.statuses.items() if status >= 500 and status != 503),
        "own_memory_before_mb": before,
        "own_memory_after_mb": server.own_memory_mb(),
        "proportional_memory_after_mb": server.memory_mb(),
        "still_answers": label,
        "alive": server.process.poll() is None,
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    photos = [path.read_bytes() for path in random.Random(0).sample(files, min(500, len(files)))]
    name, port = json.loads((arguments.bundle / "bundle.json").read_text())["name"], free_port()
    command = [sys.executable, "-m", "tellapart", "serve", str(arguments.bundle.resolve()), "--port", str(port)]
    server = Server([*command, "--no-log"], port, multipart(photos[0]))
    try:
        values = {
            "load": asyncio.run(load(server, photos, name, 60 * arguments.minutes, arguments.connections)),
            "damaged": asyncio.run(fuzz(server, photos, name, arguments.images, arguments.connections)),
        }
    finally:
        server.stop()
    shown = {key: {k: v for k, v in value.items() if k != "own_memory_mb"} for key, value in values.items()}
    print(json.dumps(shown, indent=2))
    print(f"Written to {write_result('endurance', values)}")


if __name__ == "__main__":
    main()
