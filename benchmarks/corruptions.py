"""What the 15 corruptions cost at 224 px on one thread, beside a plain port of the published code in the same run.

    python benchmarks/corruptions.py --rounds 15

The two take turns, picture by picture, so that what else runs on the machine hits both. Medians over the rounds,
then means over severities 1 to 5, of processor time and of wall time. Tables and sheets of frost are drawn before
the clock starts; the first call of a process pays up to half a second for them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import scipy

from machine import write_result
from tellapart.data.corrupt import CORRUPTIONS, corrupt
from tellapart.data.corruptions.frost import frost_sheet
from tellapart.data.decode import decode_square
from tellapart.data.drawn import encoded_picture
from tellapart.randomness import generator

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import corruptions_plain

IMAGE_PX = 224
SEVERITIES = range(1, 6)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return processor and wall time of one call, in ms."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return 1000 * (time.process_time() - processor), 1000 * (time.perf_counter() - wall)


def measure(picture: np.ndarray, name: str, num_rounds: int) -> dict[str, float]:
    """Return means over the severities of both sides' median times, in ms, and their ratios."""
    sheets = [frost_sheet(number) for number in range(5)]
    rng, plain_rng = generator(0, "benchmark", name), np.random.default_rng(0)  # each side's own kind
    sums = np.zeros((2, 2))
    ratios = []
    for severity in SEVERITIES:
        calls = (
            lambda severity=severity: corrupt(picture, name, severity, rng),
            lambda severity=severity: corruptions_plain.corrupt(picture, name, severity, plain_rng, sheets),
        )
        calls[0]()
        rounds = np.array([[timed(call) for call in calls] for _ in range(num_rounds)])
        medians = np.median(rounds, axis=0)
        sums += medians
        ratios.append(medians[1, 0] / medians[0, 0])
    (ours_cpu, ours_wall), (plain_cpu, plain_wall) = (sums / len(SEVERITIES)).tolist()
    return {
        "cpu_ms": ours_cpu,
        "plain_cpu_ms": plain_cpu,
        "ratio": plain_cpu / ours_cpu,
        "smallest_ratio_of_a_severity": float(min(ratios)),
        "wall_ms": ours_wall,
        "plain_wall_ms": plain_wall,
        "wall_ratio": plain_wall / ours_wall,
    }


def summary(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return means over all corruptions, and ratios of the sums with and without the slowest of the port."""

    def mean(key: str, *without: str) -> float:
        return statistics.fmean(values[key] for name, values in rows.items() if name not in without)

    return {
        "cpu_ms": mean("cpu_ms"),
        "plain_cpu_ms": mean("plain_cpu_ms"),
        "ratio": mean("plain_cpu_ms") / mean("cpu_ms"),
        "ratio_without_glass_blur": mean("plain_cpu_ms", "glass_blur") / mean("cpu_ms", "glass_blur"),
        "geometric_mean_of_ratios": statistics.geometric_mean(values["ratio"] for values in rows.values()),
        "wall_ms": mean("wall_ms"),
        "plain_wall_ms": mean("plain_wall_ms"),
    }


def main() -> None:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="for each severity; glass_blur gets a fifth of them")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    picture = decode_square(encoded_picture(0, "flower", 2)[1], IMAGE_PX)
    rows: dict[str, dict[str, float]] = {}
    print(f"{'':20}{'ours, ms':>10}{'plain, ms':>11}{'ratio':>8}{'wall: ours':>12}{'plain':>9}{'ratio':>8}")
    for name in CORRUPTIONS:
        num_rounds = max(arguments.rounds // 5, 1) if name == "glass_blur" else arguments.rounds
        row = rows[name] = measure(picture, name, num_rounds)
        print(
            f"{name:20}{row['cpu_ms']:10.2f}{row['plain_cpu_ms']:11.2f}{row['ratio']:8.1f}"
            f"{row['wall_ms']:12.2f}{row['plain_wall_ms']:9.2f}{row['wall_ratio']:8.1f}",
            flush=True,
        )
    overall = summary(rows)
    print(json.dumps(overall, indent=2))
    title = f"one corruption of one picture of {IMAGE_PX} px, one thread, mean over severities 1 to 5"
    settings = {"what": title, "rounds": arguments.rounds, "scipy": scipy.__version__}
    path = write_result("corruptions", {**settings, **overall, "corruptions": rows})
    print(f"Written to {path}")


if __name__ == "__main__":
    main()
