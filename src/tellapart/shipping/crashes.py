"""Which runtimes end the process in which they run an artefact: each is tried in another process first.

A crash cannot be caught: it would cost the export that proves the artefact, and a search with it, again and again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tellapart.bundles.runtimes import RUNTIMES

_TRIED = "tried:"
_BATCHES = (1, 32)


def crashes(path: Path, names: Sequence[str], image_px: int) -> dict[str, str]:
    """Run an artefact in each runtime in another process, and return runtime → the signal that ended it.

    Args:
        path: its file or folder.
        names: of `RUNTIMES`, which are installed.
        image_px: side of the pictures that it takes.
    """
    ended: dict[str, str] = {}
    left = list(names)
    while left:
        command = [sys.executable, "-m", __name__, str(path), str(image_px), *left]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        if done.returncode >= 0:  # what a runtime merely refuses is an error that the proof reports
            break
        tried = [line.removeprefix(_TRIED) for line in done.stdout.splitlines() if line.startswith(_TRIED)]
        if not tried:  # it was killed before it tried any: by whoever wants memory back
            break
        ended[tried[-1]] = signal.Signals(-done.returncode).name
        left = left[left.index(tried[-1]) + 1 :]
    return ended


def _try(path: Path, image_px: int, names: Sequence[str]) -> None:
    """Run an artefact in each runtime, and say before each which it is."""
    random = np.random.default_rng(0)
    for name in names:
        print(f"{_TRIED}{name}", flush=True)  # noqa: T201
        try:
            predict = RUNTIMES[name].opens(path, os.cpu_count() or 1)
            for count in _BATCHES:
                predict(random.integers(0, 256, (count, image_px, image_px, 3), np.uint8))
        except Exception:  # noqa: BLE001  # each runtime has errors of its own
            continue
    # Without taking the runtimes down: a crash there costs nobody an answer.
    os._exit(0)


if __name__ == "__main__":
    _try(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
