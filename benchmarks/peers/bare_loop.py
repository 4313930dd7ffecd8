"""Decode and runtime alone, no server: python bare_loop.py BUNDLE JPEG SECONDS. Prints one JSON line."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from pathlib import Path

from serving_model import Model


def main() -> None:
    """Measure one picture at a time with two threads inside, then two loops at once with one thread each."""
    data, seconds = Path(sys.argv[2]).read_bytes(), float(sys.argv[3])
    alone, laps = Model(sys.argv[1], threads=2), []
    for _ in range(20):
        alone.predict(data)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        alone.predict(data)
        laps.append(time.perf_counter() - start)
    both, counts = Model(sys.argv[1], threads=2, streams=2), [0, 0]
    stop = time.perf_counter() + seconds

    def loop(place: int) -> None:
        while time.perf_counter() < stop:
            both.predict(data)
            counts[place] += 1

    threads = [threading.Thread(target=loop, args=(place,)) for place in range(2)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({
        "p50_ms": 1000 * statistics.median(laps),
        "requests_per_second": sum(counts) / (time.perf_counter() - start),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
