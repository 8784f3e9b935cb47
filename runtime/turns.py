"""How long this process' threads run before others have their turn, where Linux lets them say so.

A thread that wakes up waits until the one that runs on its core has had its turn, some
milliseconds, however much more of the core is due to it: so Linux does from 6.6 on. From 6.12 on
who asks for shorter turns need not wait. Its share of the core is the same, and it takes no right.
"""

import ctypes
import os
import platform
import struct

_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr, sched_getattr
# size, policy, flags, nice, priority, runtime, deadline, period
_ATTRIBUTES = struct.Struct("IIQiIQQQ")


def ask_for_turns(seconds: float) -> None:
    """Have all threads of this process, and those that they start, run so long at a time.

    Where the system knows nothing of it, nothing changes.

    Args:
        seconds: from .0001 to .1; 0: as is usual.
    """
    for thread in _threads():
        attributes = _attributes(thread)
        if attributes is None or attributes[1] != os.SCHED_OTHER:
            continue
        size, policy, flags, nice, priority, _, *others = attributes
        _call(0, thread, (size, policy, flags, nice, priority, round(seconds * 1e9), *others))


def turns() -> set[float]:
    """Return what the threads of this process have, in seconds; 0 where nothing is known."""
    found = (_attributes(thread) for thread in _threads())
    return {each[5] / 1e9 for each in found if each is not None}


def _threads() -> list[int]:
    if platform.system() != "Linux" or platform.machine() not in _CALLS:
        return []
    return [int(name) for name in os.listdir("/proc/self/task")]


def _attributes(thread: int) -> tuple[int, ...] | None:
    """Return what is set for a thread; None: it has ended."""
    return _call(1, thread, (_ATTRIBUTES.size, *[0] * 7))


def _call(number: int, thread: int, attributes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Make a system call; return the attributes that it leaves, None where it fails."""
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.pack(*attributes), _ATTRIBUTES.size)
    size = (_ATTRIBUTES.size,) if number == 1 else ()
    library = ctypes.CDLL(None, use_errno=True)
    calls = _CALLS[platform.machine()]
    if library.syscall(calls[number], thread, buffer, *size, 0) != 0:
        return None
    found: tuple[int, ...] = _ATTRIBUTES.unpack(buffer)
    return found
