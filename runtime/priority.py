"""Threads that give way to those that somebody waits for."""

import os
import sys
import threading


def give_way(niceness: int = 19) -> None:
    """Let this thread run, for good, where others leave a gap: nobody waits for what it does.

    Args:
        niceness: 0 to 19; each is about a tenth less of a core that others want.
    """
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
