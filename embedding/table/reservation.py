"""Arrays that grow without moving: address space is reserved at once, memory committed by use.

The tables of a process share its address space: each reserves a part of it and no more, so that the
last one has as much as the first, and something is left for all else. Memory is not divided: only
what is used is taken, so any table may grow until the machine is full.
"""

import contextlib
import mmap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding.table.machine_limits import NO_RESERVE, Limit, memory_limit

# Huge pages from here on: random reads of 4 million rows became 30 % faster by them, but a small
# table should not take one page of 2 MiB for each of its arrays.
_HUGE_PAGES_FROM = 4 << 20
_MAPPED_FROM = 1 << 16  # bytes; below, a mapping of its own is not worth it


@dataclass(frozen=True, slots=True)
class Budget:
    """What a table may reserve.

    Args:
        address: what all tables may reserve together.
        shares: how many equal parts that is divided in; a table takes one for its rows and, where
            it counts keys that have none, another for their counters.
        memory: that it may fill, as if it were alone.
    """

    address: Limit
    shares: int
    memory: Limit = field(default_factory=memory_limit)

    @property
    def share_bytes(self) -> int:
        """Address space of one share."""
        return self.address.num_bytes // self.shares


_NOTHING = Limit(0, "", "")
NO_BUDGET = Budget(_NOTHING, 1, _NOTHING)  # the least there is


def reserve(rows: int, width: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Reserve a zeroed array; a page takes memory only once it is written.

    Args:
        rows: length, > 0.
        width: length of the second axis; 0 takes no memory.

    Returns:
        dtype[rows, width], writable, C-contiguous; mapped, it begins at an address that whole rows
        divide, so that rows of several arrays can be numbered as those of one.

    Raises:
        MemoryError: there is no address space for it.
    """
    row_bytes = width * np.dtype(dtype).itemsize
    num_bytes = rows * row_bytes
    if num_bytes < _MAPPED_FROM:
        return np.zeros((rows, width), dtype)
    try:
        memory = mmap.mmap(-1, num_bytes + row_bytes, flags=NO_RESERVE)
    except (OSError, OverflowError) as error:
        raise MemoryError(
            f"no address space left to reserve {num_bytes:,} bytes ({error}). See what limits it:"
            " ulimit -v and -d, and the sysctls vm.overcommit_memory and vm.max_map_count"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE") and len(memory) > _HUGE_PAGES_FROM:
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE, _HUGE_PAGES_FROM)
    offset = -np.frombuffer(memory, np.uint8).ctypes.data % row_bytes
    return np.frombuffer(memory, dtype, rows * width, offset).reshape(rows, width)
