"""A process that opened and closed networks survives a signal: no stack of theirs is left for its handler."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tellapart.signal_stack import _Stack, signal_stack_kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no sigaltstack of this form")

PROGRAM = """
import gc, os, signal, sys
from tellapart.bundles.bundle import open_bundle
from tellapart.bundles.runtimes import RUNTIMES, artefact_for
bundle, handled = open_bundle(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
runtimes = [RUNTIMES[name] for name in ("openvino-f32", "openvino-bf16")]
# Whatever their proofs say: bfloat16 may have been refused for this bundle.
first, second = (runtime.opens(bundle.path(artefact_for(bundle, runtime)), 1) for runtime in runtimes)
del first  # in the order of their opening
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
print(handled)
"""


def current() -> tuple[int | None, int]:
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.start, stack.flags


def test_what_a_library_sets_is_put_back_whatever_happens():
    memory, before, seen = ctypes.create_string_buffer(2**16), current(), []

    def library() -> None:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, 2**16)), None)
        seen.append(current()[0])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), signal_stack_kept():
        library()
    assert seen == [ctypes.addressof(memory)]
    assert current() == before


@pytest.mark.integration
def test_a_signal_after_networks_were_closed_is_handled(place: Path):
    """With AMX, which OpenVINO has a stack for; elsewhere it sets none."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", PROGRAM, place / "bundle"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[15]"), ended.stderr
