"""A minute of everything that is expensive, on sixteen connections, while honest clients go on.

    python benchmarks/attack.py BUNDLE PHOTOS

The attacker sends, again and again and as fast as it is answered: JSON with a long text among many elements, JSON
nested deeply, bodies of 32 MB (numbers, base64, zeros, forms), transparent PNGs just below `data.max_pixels`,
progressive JPEGs of thousands of scans, bodies that come slowly, bytes that are no HTTP. The honest clients ask for
predictions of photos, one after the other each. Measured are the server's memory, the most that it ever took against
what it took when idle, and how long honest clients waited for their answers. Client and server share the processors.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

MAX_BODY = 32 * 1024 * 1024
MAX_PIXELS = 100_000_000
SUFFIXES = {".jpg", ".jpeg", ".png"}
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def string_bomb() -> bytes:
    """Return 60 kB of JSON that make an array of 1.2 GB where nobody looks before."""
    return json.dumps({"instances": [["x" * 30_000, *[""] * 10_000]]}).encode()


def deep_nesting(size: int) -> bytes:
    """Return JSON of `size` bytes that is nested as deeply as a parser goes, over and over."""
    one = b"[" * 900 + b"]" * 900
    return b'{"instances":[' + b",".join([one] * (size // (len(one) + 1))) + b"]}"


def many_objects(size: int) -> bytes:
    """Return JSON of `size` bytes of what takes thirty times as much when it is parsed."""
    return b'{"instances":[[' + b",".join([b"[0.5]"] * (size // 6 - 4)) + b"]]}"


def one_text(size: int) -> bytes:
    """Return JSON of `size` bytes with one base64 text that is no image."""
    return b'{"instances":[{"b64":"' + base64.b64encode(bytes(3 * ((size - 30) // 4))) + b'"}]}'


def tensor(size: int) -> bytes:
    """Return an Open Inference request of `size` bytes of numbers."""
    head = b'{"inputs":[{"name":"image","shape":[1,1,1,3],"datatype":"UINT8","data":['
    return head + b",".join([b"255"] * ((size - len(head) - 4) // 4)) + b"]}]}"


def form(size: int) -> bytes:
    """Return a form of 60 files that fill `size` bytes."""
    head = b'--tellapartboundary\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    part = head + bytes(size // 60 - len(head) - 2) + b"\r\n"
    return part * 60 + b"--tellapartboundary--\r\n"


def flat_png(side: int, channels: int = 4) -> bytes:
    """Return a PNG of one half transparent colour; of 0.4 MB where it is decoded to 400."""
    picture = np.zeros((side, side, channels), np.uint8)
    picture[..., -1] = 128
    return cv2.imencode(".png", picture)[1].tobytes()


def scans_jpeg(side: int, more: int) -> bytes:
    """Return a grey progressive JPEG whose last scan, of a few bytes, comes `more` times again."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 100).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    end = _MARKER.search(data, last + 2 + int.from_bytes(data[last + 2 : last + 4], "big")).start()
    return data[:end] + data[last:end] * more + data[end:]


def attacks(name: str, *, body: int = MAX_BODY, pixels: int = MAX_PIXELS) -> list[tuple[str, str, str, bytes]]:
    """Return (kind, path, content type, body) of each request; they are made once.

    Args:
        name: of the model.
        body: bytes of the large ones.
        pixels: of the large pictures.
    """
    rest, infer, native = f"/v1/models/{name}:predict", f"/v2/models/{name}/infer", "/predict"
    side = int(pixels**0.5) - 4
    large, text = flat_png(side), "application/json"
    return [
        ("texts among numbers", rest, text, string_bomb()),
        ("texts among numbers", infer, text, string_bomb()),
        ("deep nesting", rest, text, b"[" * 60_000),
        ("deep nesting", rest, text, deep_nesting(60_000)),
        ("deep nesting", rest, text, deep_nesting(body)),
        ("large body", rest, text, many_objects(body)),
        ("large body", rest, text, one_text(body)),
        ("large body", infer, text, tensor(body)),
        ("large body", native, "multipart/form-data; boundary=tellapartboundary", form(body)),
        ("large body", native, "image/jpeg", bytes(body)),
        ("numbers within the budget", rest, text, many_objects(1_000_000)),
        ("flat picture", native, "image/png", large),
        ("flat picture", "/explain", "image/png", large),
        ("flat picture", rest, text, json.dumps({"instances": [{"b64": base64.b64encode(large).decode()}]}).encode()),
        ("many scans", native, "image/jpeg", scans_jpeg(4000, 5000)),
        ("many scans", native, "image/jpeg", scans_jpeg(side, 5000)),
        ("garbage", native, "image/jpeg", random.Random(0).randbytes(50_000)),
    ]


@dataclass
class Found:
    """What came back.

    Attributes:
        statuses: of the attacker's requests, by kind; 0 where the connection was closed.
        honest: statuses of the honest clients' requests.
        seconds: that each of their answered requests took.
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    honest: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


async def send(port: int, path: str, kind: str, body: bytes, wait: float = 30) -> int:
    """Send one request on a connection of its own and return its status; 0: none came."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        for at in range(0, len(body), 2**20):
            writer.write(body[at : at + 2**20])
            await asyncio.wait_for(writer.drain(), wait)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), wait)
        return int(answer.split(b" ", 2)[1])
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return 0
    finally:
        if writer is not None:
            writer.close()


async def send_slowly(port: int, seconds: float) -> int:
    """Declare 32 MB and send them in pieces of 1 MB with pauses, for a while."""
    writer = None
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {MAX_BODY}\r\n\r\n"
        writer.write(head.encode())
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            writer.write(bytes(2**20))
            await asyncio.wait_for(writer.drain(), seconds)
            await asyncio.sleep(0.3)
    except (OSError, TimeoutError):
        pass
    finally:
        if writer is not None:
            writer.close()
    return 0


async def send_garbage(port: int, rng: random.Random) -> int:
    """Send bytes that are no HTTP."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(rng.randbytes(rng.randrange(1, 100_000)))
        return int((await asyncio.wait_for(reader.read(100), 5)).split(b" ", 2)[1] or 0)
    except (OSError, TimeoutError, IndexError, ValueError):
        return 0
    finally:
        if writer is not None:
            writer.close()


async def attack(port: int, requests: list, number: int, goes_on: Callable[[], bool], counts: Found) -> None:
    """Be one connection of the attacker: every kind in turn, each connection at another place of the list."""
    rng, at = random.Random(number), number
    while goes_on():
        turn = at % (len(requests) + 2)
        if turn < len(requests):
            kind, path, content_type, body = requests[turn]
            status = await send(port, path, content_type, body)
        elif turn == len(requests):
            kind, status = "slow body", await send_slowly(port, 3)
        else:
            kind, status = "garbage", await send_garbage(port, rng)
        counts.statuses.setdefault(kind, Counter())[status] += 1
        at += 1


async def ask(port: int, photos: Iterator[bytes], goes_on: Callable[[], bool], counts: Found) -> None:
    """Be an honest client: ask for a prediction, wait for it, think for a moment."""
    while goes_on():
        start = time.perf_counter()
        status = await send(port, "/predict", "image/jpeg", next(photos))
        counts.honest[status] += 1
        if status == 200:
            counts.seconds.append(time.perf_counter() - start)
        await asyncio.sleep(0.02)


def photos_of(folder: Path) -> list[bytes]:
    """Return up to 200 photos of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [path.read_bytes() for path in random.Random(0).sample(files, min(200, len(files)))]


async def under_attack(
    port: int, requests: list, photos: list[bytes], *, seconds: float, attackers: int = 16, honest: int = 4
) -> Found:
    """Attack a server for a while and return what came back."""
    counts, end, rng = Found(), time.perf_counter() + seconds, random.Random(3)

    def goes_on() -> bool:
        return time.perf_counter() < end

    def endless() -> Iterator[bytes]:
        while True:
            yield rng.choice(photos)

    asking = [ask(port, endless(), goes_on, counts) for _ in range(honest)]
    attacking = [attack(port, requests, number, goes_on, counts) for number in range(attackers)]
    await asyncio.gather(*asking, *attacking)
    return counts


def resident_mb(process: int) -> tuple[float, float]:
    """Return the memory of a process now and the most that it ever took, in MB (10^6 bytes); Linux."""
    text = Path(f"/proc/{process}/status").read_text()
    return tuple(int(text.split(f"{key}:")[1].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return p50 and p99 in ms."""
    return {"p50_ms": 1000 * float(np.median(seconds)), "p99_ms": 1000 * float(np.quantile(seconds, 0.99))}


def main() -> None:
    """Measure and write the result."""
    from machine import write_result
    from serving import Server, free_port, multipart

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--attackers", type=int, default=16)
    parser.add_argument("--honest", type=int, default=4)
    arguments = parser.parse_args()
    photos, port = photos_of(arguments.photos), free_port()
    requests = attacks(json.loads((arguments.bundle / "bundle.json").read_text())["name"])
    command = [sys.executable, "-m", "tellapart", "serve", str(arguments.bundle.resolve()), "--port", str(port)]
    server = Server([*command, "--no-log"], port, multipart(photos[0]))
    try:
        before = asyncio.run(under_attack(port, requests, photos, seconds=5, attackers=0, honest=arguments.honest))
        idle, _ = resident_mb(server.process.pid)
        result = asyncio.run(
            under_attack(
                port,
                requests,
                photos,
                seconds=arguments.seconds,
                attackers=arguments.attackers,
                honest=arguments.honest,
            )
        )
        after, most = resident_mb(server.process.pid)
        values = {
            "seconds": arguments.seconds, "attackers": arguments.attackers, "honest_clients": arguments.honest,
            "memory_mb": {"idle": idle, "most": most, "after": after, "most_of_idle": most / idle},
            "honest_before": percentiles(before.seconds) | {"statuses": dict(sorted(before.honest.items()))},
            "honest_under_attack": percentiles(result.seconds) | {"statuses": dict(sorted(result.honest.items()))},
            "attacker_statuses": {kind: dict(sorted(tally.items())) for kind, tally in sorted(result.statuses.items())},
            "still_answers": server.ask()["predictions"][0]["label"],
            "alive": server.process.poll() is None,
        }  # fmt: skip
    finally:
        server.stop()
    print(json.dumps(values, indent=2))
    print(f"Written to {write_result('attack', values)}")


if __name__ == "__main__":
    main()
