"""Threads that give way to those that somebody waits for."""

import os
import sys
import threading

_NICENESS = 19


def give_way() -> None:
    """Let this thread run where others leave a gap, for good: nobody waits for what it does."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
