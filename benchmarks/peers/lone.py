"""One picture at a time without a server: python lone.py bare|tellapart BUNDLE JPEG.

"bare" decodes and runs the network; "tellapart" is `tellapart.load(BUNDLE).predict`, which also measures the photo's
quality. For each number that comes on a line of the standard input it works for so many seconds, and prints the median
in ms: whoever asks can do so in turns with something else.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


def opened(kind: str, bundle: str) -> Callable[[bytes], object]:
    """Return what names an encoded picture, on all processors."""
    if kind == "bare":
        from serving_model import CORES, Model

        return Model(bundle, threads=CORES).predict
    import tellapart

    classifier = tellapart.load(bundle)
    return lambda data: classifier.predict([data])


def main() -> None:
    """Answer until the input ends."""
    name, data = opened(sys.argv[1], sys.argv[2]), Path(sys.argv[3]).read_bytes()
    for _ in range(20):
        name(data)
    for line in sys.stdin:
        laps, end = [], time.perf_counter() + float(line)
        while (start := time.perf_counter()) < end:
            name(data)
            laps.append(time.perf_counter() - start)
        print(1000 * statistics.median(laps), flush=True)


if __name__ == "__main__":
    main()
