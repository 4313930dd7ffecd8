"""Which threads give way. Knows nothing about what they do."""

from __future__ import annotations

import os
import sys
import threading

_NICENESS = 10


def step_back() -> None:
    """Let the calling thread run only when others need no processor; elsewhere than on Linux do nothing.

    There a priority belongs to a thread and not to a process (setpriority(2), "C library/kernel differences").
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
