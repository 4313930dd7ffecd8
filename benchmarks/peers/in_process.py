"""One photo at a time with `tellapart.load`, no server: python in_process.py BUNDLE JPEG SECONDS. Prints one JSON line.

With the photo's quality, as a server's answer has it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import tellapart


def main() -> None:
    """Measure."""
    data, seconds = Path(sys.argv[2]).read_bytes(), float(sys.argv[3])
    classifier, laps = tellapart.load(sys.argv[1]), []
    for _ in range(20):
        classifier.predict([data])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        classifier.predict([data])
        laps.append(time.perf_counter() - start)
    print(json.dumps({"p50_ms": 1000 * statistics.median(laps)}))


if __name__ == "__main__":
    main()
