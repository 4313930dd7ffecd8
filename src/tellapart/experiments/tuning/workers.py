"""Several workers of a search on one machine, each with its share of the processors. Knows nothing about trials.

A worker that is killed is replaced; its trial is put back by the study. Nothing that imports Keras is imported here: a
worker sets its threads before.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from tellapart.errors import RunError, TellapartError
from tellapart.files import write_text
from tellapart.memory import keep_freed_memory
from tellapart.supervisor import Child, Supervisor

if TYPE_CHECKING:
    from tellapart.experiments.tuning.work import SearchJob

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 120
"""For a step and a checkpoint to end."""
_MOST_REPLACED = 5
_TERMINATED = 128 + signal.SIGTERM
"""Exit code, as shells write it, of a worker that was asked to stop, by its parent or by somebody else."""


def work_together(order: SearchJob, *, look: Callable[[], object], announce: Callable[[str], None]) -> None:
    """Run ``order.search.workers`` processes until all have ended.

    Args:
        order: what is wanted of them.
        look: called twice a second; what it raises stops all workers, whose trials are put back.
        announce: called with a line for each worker that was killed.

    Raises:
        RunError: a worker cannot go on, or too many were killed.
    """
    log, sharing = order.search.folder / "workers", order.search.workers
    log.mkdir(parents=True, exist_ok=True)
    # What an earlier call died of must not end this one.
    for stale in log.glob("*.error"):
        stale.unlink()
    replaced = 0
    # Packed: to unpickle a job imports Keras, and a worker has to set its threads before.
    arguments = (pickle.dumps(order), sharing, log)
    workers = Supervisor(_worker, arguments, name="tellapart-tune", stop_seconds=_PATIENCE_SECONDS)
    try:
        workers.start(sharing)
        while workers.running:
            look()
            time.sleep(_POLL_SECONDS)
            # Code 0: no trial is left for it. Any other worker is replaced, unless it cannot go on.
            for ended in [child for child in workers.poll() if child.code]:
                _refuse_to_go_on(ended, log, replaced)
                replaced += 1
                announce(f"warning: Worker {ended.number} was killed. Another takes its place; its trial is put back.")
                workers.replace(ended)
        look()
    finally:
        workers.stop()


def _refuse_to_go_on(ended: Child, log: Path, replaced: int) -> None:
    error_file = log / f"{ended.number}.error"
    if error_file.exists():
        raise RunError(error_file.read_text("utf-8").strip())
    # A code above 0 is an error of its own, which the next worker would meet again; below 0 is a signal, such as the
    # kernel's when memory is short.
    if replaced >= _MOST_REPLACED or (ended.code > 0 and ended.code != _TERMINATED):
        raise RunError(
            f"Worker {ended.number} ended with code {ended.code}. What it said: {log}/{ended.number}.log. "
            "Finished trials are kept: run the same command again, with fewer --workers if memory was short."
        )


def _worker(number: int, ready: Event, packed: bytes, sharing: int, log: Path) -> None:
    """Be one worker of as many as share the processors."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping  # looked at between steps: an exception inside TensorFlow can crash it
        stopping = True

    # Before anything that takes time: a worker may be told to stop while it imports Keras.
    signal.signal(signal.SIGTERM, stop)
    log_file = os.open(log / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # The descriptors themselves: TensorFlow writes to them from C++, past Python's streams.
    for stream in (1, 2):
        os.dup2(log_file, stream)
    threads = str(max(1, (os.cpu_count() or 1) // sharing))
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, threads)  # before Keras is imported: they count when it is
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    keep_freed_memory()  # as the command itself does, before Keras takes any

    def progress(task: str, done: int, total: int) -> None:
        del task, done, total
        if stopping:
            raise KeyboardInterrupt

    from tellapart.experiments.tuning.work import work

    # After the imports: a worker that got so far is replaced at once when it dies, others after growing pauses.
    ready.set()
    try:
        work(pickle.loads(packed), worker=number, progress=progress, announce=logger.info)
    except KeyboardInterrupt:
        sys.exit(_TERMINATED)
    except TellapartError as error:
        write_text(log / f"{number}.error", str(error))
        sys.exit(error.exit_code)
