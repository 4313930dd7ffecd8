"""How fast each runtime runs a bundle on this machine. Knows nothing about HTTP or the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.bundles.bundle import Bundle, open_bundle
from tellapart.bundles.predictor import choose
from tellapart.bundles.runtimes import RUNTIMES, artefact_for, open_runtime
from tellapart.errors import BundleError
from tellapart.records import Progress, no_progress

BATCHES = (1, 32)
_WARM_UP = 5
_NAN = float("nan")


@dataclass(frozen=True)
class Speed:
    """What was measured of one runtime.

    Attributes:
        runtime: its name.
        size_mb: of the artefact.
        agreement: with Keras, when the bundle was made; NaN where it was not compared.
        p50_ms: median milliseconds for one picture.
        p99_ms: of one picture.
        images_per_second: for each batch size that was measured: by default one picture at a time, and 32 at once.
        memory_mb: that the process took more with the model open and used, MB (10^6 bytes).
        error: why it could not be measured; "" when it was.
    """

    runtime: str
    size_mb: float
    agreement: float
    p50_ms: float = _NAN
    p99_ms: float = _NAN
    images_per_second: tuple[float, ...] = (_NAN, _NAN)
    memory_mb: float = _NAN
    error: str = ""


def benchmark(
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
    seconds: float = 2.0,
    batches: Sequence[int] = BATCHES,
    progress: Progress = no_progress,
) -> list[Speed]:
    """Measure every runtime that is installed, each in a process of its own.

    Args:
        folder: the bundle.
        threads: for one call; None: all processors.
        seconds: to measure each batch size for.
        batches: sizes to measure, 1 first.
        progress: called with ("measuring", done, total).

    Raises:
        BundleError: the bundle is damaged.
    """
    bundle, speeds = open_bundle(folder), []
    artefacts = {
        name: artefact
        for name, runtime in RUNTIMES.items()
        if runtime.installed and (artefact := artefact_for(bundle, runtime)) is not None
    }
    for done, (name, artefact) in enumerate(artefacts.items()):
        progress("measuring", done, len(artefacts))
        proof = artefact.proofs.get(name)
        values: dict[str, Any] = {"agreement": proof.agreement if proof else _NAN, "size_mb": artefact.bytes / 1e6}
        if proof is not None and not proof.passed:
            # How fast it is wrong does not matter.
            speeds.append(Speed(name, error=f"refused when the bundle was made: {proof.reason}", **values))
            continue
        values |= _measured_apart(Path(folder), name, threads or os.cpu_count() or 1, seconds, batches)
        speeds.append(Speed(name, **values))
    progress("measuring", len(artefacts), len(artefacts))
    return sorted(speeds, key=lambda speed: (bool(speed.error), speed.p50_ms))


def median_latencies(
    bundles: Sequence[Bundle], *, rounds: int = 3, seconds: float = 0.5, progress: Progress = no_progress
) -> list[float]:
    """Return the median milliseconds of one picture for each bundle, in the runtime that would serve it on one thread.

    Args:
        bundles: to measure, in turns: whatever else the machine does slows all alike.
        rounds: of which the median is taken.
        seconds: to measure each bundle for, in each round.
        progress: called with ("measuring", done, total).

    Raises:
        BundleError: no runtime here gives the probabilities that a bundle should.
    """
    names = [choose(bundle, None, threads=1)[0] for bundle in bundles]
    laps: list[list[float]] = [[] for _ in bundles]
    for done in range(rounds):
        progress("measuring", done, rounds)
        for bundle, name, times in zip(bundles, names, laps, strict=True):
            values = _measured_apart(bundle.folder, name, 1, seconds, BATCHES[:1])
            if "error" in values:
                raise BundleError(f"{bundle.folder} cannot be measured in {name}: {values['error']}.")
            times.append(values["p50_ms"])
    progress("measuring", rounds, rounds)
    return [float(np.median(times)) for times in laps]


def _measured_apart(folder: Path, name: str, threads: int, seconds: float, batches: Sequence[int]) -> dict[str, Any]:
    """Return what `measure` finds in a process of its own."""
    # In one process, memory that a runtime keeps would be counted for the next one, and their threads would compete.
    numbers = [str(number) for number in (threads, seconds, *batches)]
    command = [sys.executable, "-m", "tellapart.bundles.latency", str(folder), name, *numbers]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        return {"error": (completed.stderr.strip().splitlines() or ["no reason given"])[-1]}
    # Libraries may print to stdout as well; the result is the last line.
    values: dict[str, Any] = json.loads(completed.stdout.strip().splitlines()[-1])
    return values | {"images_per_second": tuple(values["images_per_second"])}


def measure(folder: Path, name: str, threads: int, seconds: float, batches: Sequence[int] = BATCHES) -> dict[str, Any]:
    """Measure one runtime in this process: the measured attributes of `Speed`."""
    bundle = open_bundle(folder)
    # Before the runtime is imported: its libraries are part of what it takes.
    before = _resident_mb()
    predict = open_runtime(bundle, name, threads=threads)
    pictures = _pictures(bundle.record.image_px, max(batches))
    laps = {count: _laps(lambda count=count: predict(pictures[:count]), seconds) for count in batches}  # type: ignore[misc]
    return {
        "p50_ms": 1000 * float(np.median(laps[1])),
        "p99_ms": 1000 * float(np.quantile(laps[1], 0.99)),
        "images_per_second": tuple(count / float(np.median(laps[count])) for count in batches),
        "memory_mb": _resident_mb() - before,
    }


def _laps(call: Callable[[], object], seconds: float) -> list[float]:
    laps: list[float] = []
    end = time.perf_counter() + seconds
    # The first calls allocate memory and are dropped; at least five others are measured, however slow they are.
    while time.perf_counter() < end or len(laps) < _WARM_UP + 5:
        start = time.perf_counter()
        call()
        laps.append(time.perf_counter() - start)
    return laps[_WARM_UP:]


def _pictures(image_px: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, image_px, image_px, 3), np.uint8)


def _resident_mb() -> float:
    """Return the memory that this process has in RAM, in MB (10^6 bytes)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError as error:
        raise BundleError(f"Memory cannot be measured here: {error}.") from error
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    found = measure(
        Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), [int(n) for n in sys.argv[5:]]
    )
    print(json.dumps(found))  # noqa: T201
