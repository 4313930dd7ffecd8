"""One line of JSON for each request, written by a thread. Knows nothing about HTTP.

A terminal or pipe that takes no more must not hold up answers: lines wait in memory, and beyond a number of them they
are dropped and counted.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import IO, Any

_LIBRARY = logging.getLogger("tellapart")
_MOST = 20_000
_EVERY_SECONDS = 0.2  # one write for all lines of this time, not a system call for each


class RequestLog(logging.Handler):
    """Where lines go, and what the library logs, in the same form. Nothing is written before `start`."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._lines: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, **values: Any) -> None:
        """Take a line."""
        # No lock is needed: a deque's append and popleft are atomic. At worst, two threads pass this test together and
        # store one line too many, or miscount a dropped one.
        if len(self._lines) >= _MOST:
            self._dropped += 1
            return
        values["at"] = time.time()  # the writing thread formats it: this thread serves requests
        self._lines.append(values)

    def emit(self, record: logging.LogRecord) -> None:
        """Take what the library logs; a traceback is one string."""
        values = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            values["traceback"] = logging.Formatter().formatException(record.exc_info)
        self.write(**values)

    def start(self) -> None:
        """Begin to write."""
        _LIBRARY.addHandler(self)
        # A daemon: a pipe that nobody reads blocks the write for ever, and must not keep the process alive.
        self._thread = threading.Thread(target=self._write_on, name="log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left; give up on a stream that takes nothing for two seconds."""
        # Remove the handler first: lines that arrive after the last flush would never be written.
        _LIBRARY.removeHandler(self)
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)
        super().close()

    def _write_on(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = []
        while self._lines:
            values = self._lines.popleft()
            at = datetime.fromtimestamp(values.pop("at"), UTC).isoformat(timespec="milliseconds")
            lines.append(json.dumps({"time": at, "level": "info"} | values) + "\n")
        if self._dropped:
            lines.append(json.dumps({"level": "warning", "message": f"{self._dropped} log lines were dropped"}) + "\n")
            self._dropped = 0
        if lines:
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
            except (OSError, ValueError):  # a closed terminal: there is nowhere to say so
                return
