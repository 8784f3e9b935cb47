"""The memory of this process: how much was resident at most, and when freed memory goes back."""

import ctypes
import resource

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 1 << 20


def peak_rss_bytes() -> int:
    """Return the peak resident set size since the process started, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next that asks, but for the largest pieces.

    Memory that goes back to the system is handed out again page by page, each of which is found
    missing and cleared when it is first touched. Nothing changes where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 * _MIB)  # the largest that threads' own heaps take
        mallopt(_TRIM_THRESHOLD, 64 * _MIB)
