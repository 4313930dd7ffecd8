"""Several workers of a search on one machine, each with its share of the processors. Knows nothing about trials.

A worker that is killed is replaced; its trial is put back by the study. Workers end when their parent does, however it
does, and leave Ctrl-C to it. Nothing that imports Keras is imported here: a worker sets its threads before.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

from tellapart.errors import RunError, TellapartError
from tellapart.files import write_text

if TYPE_CHECKING:
    from tellapart.experiments.tuning.work import SearchJob

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 120
"""For a step and a checkpoint to end."""
_MOST_REPLACED = 5


@dataclass
class _Child:
    number: int
    process: SpawnProcess


def work_together(order: SearchJob, *, look: Callable[[], object], announce: Callable[[str], None]) -> None:
    """Run ``order.search.workers`` processes until all have ended.

    Args:
        order: what is wanted of them.
        look: called twice a second; what it raises stops all workers, whose trials are put back.
        announce: called with a line for each worker that was killed.

    Raises:
        RunError: a worker cannot go on, or too many were killed.
    """
    spawn = multiprocessing.get_context("spawn")
    stop, log = spawn.Event(), order.search.folder / "workers"
    log.mkdir(parents=True, exist_ok=True)
    packed = pickle.dumps(order)

    def start(number: int) -> _Child:
        process = spawn.Process(target=_worker, args=(packed, order.search.workers, number, stop, log))
        process.start()
        return _Child(number, process)

    children = [start(number) for number in range(order.search.workers)]
    replaced = 0
    try:
        while any(child.process.is_alive() for child in children):
            look()
            time.sleep(_LOOK_SECONDS)
            for child in [child for child in children if child.process.exitcode]:
                children.remove(child)
                _refuse_to_go_on(child, log, replaced)
                replaced += 1
                announce(f"warning: Worker {child.number} was killed. Another takes its place; its trial is put back.")
                children.append(start(order.search.workers + replaced))
        look()
    finally:
        stop.set()
        deadline = time.time() + _PATIENCE_SECONDS
        for child in children:
            child.process.join(max(0.0, deadline - time.time()))
            if child.process.is_alive():
                child.process.terminate()
                child.process.join()


def _refuse_to_go_on(child: _Child, log: Path, replaced: int) -> None:
    said = log / f"{child.number}.error"
    if said.exists():
        raise RunError(said.read_text("utf-8").strip())
    if replaced >= _MOST_REPLACED or (child.process.exitcode or 0) > 0:
        raise RunError(
            f"Worker {child.number} ended with code {child.process.exitcode}. What it said: {log}/{child.number}.log. "
            "Finished trials are kept: run the same command again, with fewer --workers if memory was short."
        )


def _worker(packed: bytes, sharing: int, number: int, stop: Event, log: Path) -> None:
    """Be one worker of as many as share the processors, in a process of its own; its order comes packed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    said = os.open(log / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(said, stream)
    threads = str(max(1, (os.cpu_count() or 1) // sharing))
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, threads)  # before Keras is imported: they count when it is
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    parent = multiprocessing.parent_process()

    def progress(what: str, done: int, total: int) -> None:
        del what, done, total
        if stop.is_set() or parent is None or not parent.is_alive():
            raise KeyboardInterrupt

    from tellapart.experiments.tuning.work import work

    with contextlib.suppress(KeyboardInterrupt):
        try:
            work(pickle.loads(packed), worker=number, progress=progress, announce=logger.info)
        except TellapartError as error:
            write_text(log / f"{number}.error", str(error))
            sys.exit(error.exit_code)
