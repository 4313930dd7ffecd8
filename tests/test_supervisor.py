"""Processes that are killed, cannot start, do not want to end, or lose their supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tellapart import supervisor
from tellapart.supervisor import Supervisor

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="whether a process lives is read from /proc"),
]

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from tellapart.supervisor import Supervisor

def work(number, ready, folder, stubborn):
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"{number}.pid").write_text(f"{os.getpid()} ")
    if (folder / "broken").exists():
        sys.exit(3)
    ready.set()
    time.sleep(60)
"""
PARENT = """
if __name__ == "__main__":
    pair = Supervisor(work, (Path(sys.argv[1]), False), name="work", stop_seconds=5)
    pair.start(2)
    time.sleep(60)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that spawned processes can import."""
    (tmp_path / "supervised_work.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    import supervised_work

    yield supervised_work.work
    del sys.modules["supervised_work"]


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def pid_of(folder: Path, number: int) -> int:
    """Return the process that was started as this number, once it has begun."""
    file = folder / f"{number}.pid"
    until(lambda: file.exists() and file.read_text().endswith(" "))
    return int(file.read_text())


def lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_what_is_killed_is_replaced_and_pauses_grow_while_nothing_gets_ready(
    program: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "_PAUSE_SECONDS", 0.1)
    pair = Supervisor(program, (tmp_path, False), name="work", stop_seconds=10)
    try:
        pair.start(2)
        until(lambda: pair.num_ready == 2)
        assert pair.poll() == []
        first, second = pid_of(tmp_path, 0), pid_of(tmp_path, 1)
        os.kill(second, signal.SIGINT)  # Ctrl-C is the supervisor's
        (tmp_path / "broken").touch()
        os.kill(first, signal.SIGKILL)
        pauses = []
        for number, code in ((0, -signal.SIGKILL), (2, 3), (3, 3)):
            ended = []
            until(lambda ended=ended: ended.extend(pair.poll()) or ended)
            assert [(child.number, child.code) for child in ended] == [(number, code)]
            pauses.append(pair.replace(ended[0]))
            assert pair.running
        assert pauses == [0.1, 0.2, 0.4], "of one that was ready the shortest"
        (tmp_path / "broken").unlink()
        until(lambda: pair.poll() == [] and pair.num_ready == 2)
        assert lives(second)
    finally:
        pair.stop()
    assert not any(lives(int(file.read_text())) for file in tmp_path.glob("*.pid"))


def test_a_process_that_does_not_end_in_time_is_killed(
    program: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    one = Supervisor(program, (tmp_path, True), name="work", stop_seconds=0.3)
    one.start(1)
    until(lambda: one.num_ready == 1)
    began = time.monotonic()
    one.stop()
    assert 0.3 <= time.monotonic() - began < 5
    assert "did not end in time and is killed" in caplog.text
    assert not lives(pid_of(tmp_path, 0))


def test_processes_end_with_a_supervisor_that_is_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(PROGRAM + PARENT)
    with subprocess.Popen([sys.executable, script, tmp_path]) as parent:
        children = [pid_of(tmp_path, number) for number in (0, 1)]
        parent.kill()
    until(lambda: not any(map(lives, children)))
