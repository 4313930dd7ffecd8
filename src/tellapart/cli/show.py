"""How results look in a terminal: progress bars, tables, file names made safe to print."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tellapart.records import SPLITS, Progress

if TYPE_CHECKING:
    from rich.console import Console


def import_keras() -> None:
    """Import Keras, which is most of what a command waits for: quickly, and without what its C++ code says.

    What it says is shown only if the import fails. From then on the process keeps the memory that it frees.
    """
    from tellapart.memory import keep_freed_memory

    keep_freed_memory()
    # Keras imports them for its wrappers and galleries of images, and does without where they are not installed: a
    # second for each command. Our own modules import them when they need them.
    # None: an import of it fails.
    unwanted: dict[str, Any] = {name: None for name in ("matplotlib", "sklearn") if name not in sys.modules}
    # Redirect the file descriptor, because C++ code does not go through sys.stderr. A file rather than a pipe, which
    # would fill up and block.
    # Call this before the first import that brings Keras along: it greets once, whoever imports it.
    with tempfile.TemporaryFile() as captured, _no_collection():
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(captured.fileno(), 2)
        sys.modules.update(unwanted)
        try:
            importlib.import_module("keras")
        except BaseException:
            captured.seek(0)
            os.write(terminal, captured.read())
            raise
        finally:
            for name in unwanted:
                del sys.modules[name]
            os.dup2(terminal, 2)
            os.close(terminal)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of compiling for each model that is opened


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage among what is imported here, now and later: it stays until the end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def console(*, stderr: bool = False) -> Console:
    """Return a rich console."""
    from rich.console import Console

    # Without rich's highlighting, which colours numbers and quotes inside messages and file names.
    return Console(stderr=stderr, highlight=False, soft_wrap=False)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show a bar on stderr for whatever is reported; a bar is replaced when something else begins.

    Ctrl-C ends the work at its next report: raised anywhere, it can be lost or crash in the C++ code beneath.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # On stderr, and gone at the end: what a command prints to stdout may go into a pipe or a file.
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console(stderr=True), transient=True,
    ) as bar, _interrupts() as is_interrupted:  # fmt: skip
        shown: dict[str, Any] = {}
        lock = threading.Lock()  # photos are decoded in a thread, which reports too

        def report(stage: str, done: int, total: int) -> None:
            # Not in the signal handler: raised wherever the main thread happened to be, it ended 4 of 56 trainings in a
            # crash or was lost.
            if is_interrupted():
                raise KeyboardInterrupt
            with lock:
                if stage not in shown:
                    for task in shown.values():
                        bar.remove_task(task)
                    shown.clear()
                    shown[stage] = bar.add_task(stage, total=total)
                bar.update(shown[stage], completed=done, total=total)

        yield report


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Take note of Ctrl-C, and yield whether it came; the second one is raised at once."""
    came = threading.Event()

    def note(number: int, frame: Any) -> None:
        if came.is_set():
            # At once, wherever the main thread is: whoever presses twice prefers a crash to waiting.
            signal.default_int_handler(number, frame)
        came.set()
        # Not print: if the signal interrupts another print, a nested one raises RuntimeError.
        os.write(sys.stderr.fileno(), b"\nStopping after the step that is under way; once more stops at once.\n")

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as in a background shell, or another's
        yield came.is_set
        return
    # Python lets only the main thread set a handler, and commands run there; library code sets none.
    signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def announce(line: str) -> None:
    """Print a line on stderr, with the colour of its severity."""
    head, colon, rest = line.partition(": ")
    style = {"falsifies": "bold red", "warning": "yellow"}.get(head)
    out = console(stderr=True)
    out.print(f"[{style}]{head}[/]: {escaped(rest)}" if style and colon else escaped(line))


def escaped(text: str) -> str:
    """Return `text` with control characters and rich's markup made harmless."""
    from rich.markup import escape

    return escape(printable(text))


def printable(text: str) -> str:
    """Return `text` with characters that a terminal would obey, or cannot show, written out."""
    # File names may hold escape sequences and invalid bytes, and neither must reach the terminal.
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def metrics_table(metrics: dict[str, Any]) -> Any:
    """Return a rich table of the main metrics on each split, with 95 % intervals where photos were held out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    splits = [split for split in SPLITS if split in metrics]
    table = Table(title="Metrics with 95 % intervals", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for split in splits:
        table.add_column(f"{split} ({metrics[split]['num_images']:,})", justify="right", no_wrap=True)
    for name in ("accuracy", "precision_macro", "recall_macro", "f1_macro", "loss"):
        cells = []
        for split in splits:
            cell = f"{metrics[split][name]:.3f}"
            if ends := metrics[split].get("intervals"):  # none on training photos, which the network knows
                cell += f"  {ends[name][0]:.3f}–{ends[name][1]:.3f}"
            cells.append(cell)
        table.add_row(name.replace("_", " "), *cells)
    return table


def race_table(entries: Sequence[dict[str, Any]]) -> Any:
    """Return a rich table of what the candidates of a race did, in their order."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="What was tried", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    table.add_column("network")
    for name in ("px", "seconds", "validation"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for entry in entries:
        accuracy = "" if entry["accuracy"] is None else f"{entry['accuracy']:.3f}"
        outcome = f"{entry['outcome']}: {entry['why']}" if entry["why"] else entry["outcome"]
        seconds = f"{entry['seconds']:.0f}"
        table.add_row(entry["name"], entry["network"], str(entry["image_px"]), seconds, accuracy, escaped(outcome))
    return table
