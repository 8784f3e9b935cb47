"""What a freeze has covered of a Bloom filter: blocks in place, and lines that were saved of them.

A block may have a million counters, of which a key changes a few. So what is saved of a block
before it changes are the lines of these counters, and who reads the block puts them back into its
copy.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.table.freezing import FROZEN
from embedding.table.reservation import reserve

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

_LINE_BYTES = 64


class FrozenBlocks:
    """Frozen blocks that nobody has read.

    Args:
        counters: unsigned[blocks, counters of a block], of the filter.
        flags: uint8[blocks], see `freezing`.
        count: how many are frozen.

    Attributes:
        count: how many were frozen.
        num_left: how many are to be read.
        block_bytes: of the counters of a block.
        line: counters that are saved together.
        places: int32[blocks, lines of a block]: where each line was saved, plus 1; 0: it was not.
        saved: unsigned[lines, line]: these.
        num_saved: int64[1]: how many there are.
    """

    def __init__(self, counters: npt.NDArray[Any], flags: UInt8Array, count: int) -> None:
        self.count = self.num_left = count
        self.line = _LINE_BYTES // counters.itemsize
        self._counters, self._flags = counters, flags
        blocks, size = counters.shape
        lines = -(-size // self.line)
        self.places = reserve(blocks, lines, np.int32)
        self.saved = reserve(blocks * lines, self.line, counters.dtype)
        self.num_saved = np.zeros(1, np.int64)
        self._is_open = True
        self.block_bytes = size * counters.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the lines that are kept; another thread may ask."""
        return int(self.num_saved[0]) * _LINE_BYTES

    def parts(self, most: int) -> Iterator[tuple[Int64Array, npt.NDArray[Any]]]:
        """Yield places and counters of at most `most` blocks as they were, each only once.

        Raises:
            RuntimeError: it was closed before all of it was read.
        """
        start = 0
        while self.check_open() and self.num_left > 0:
            there = np.flatnonzero(self._flags[start:] & FROZEN)[:most] + start
            assert there.size, "something frozen was thawed and not read"
            start = int(there[-1]) + 1
            self.num_left -= there.size
            self._flags[there] ^= np.uint8(FROZEN)
            copies = self._counters[there]
            _put_back(copies, there, self.places, self.saved)
            if self.num_left == 0:
                self._forget()
            yield there, copies

    def check_open(self) -> bool:
        if not self._is_open:
            raise RuntimeError(
                "what was frozen of a table can't be read any more: it was closed, or the table"
                " was frozen again"
            )
        return True

    def close(self) -> None:
        """Give up what was not read; reading on is refused."""
        self._is_open = False
        self.num_left = 0
        self._forget()

    def _forget(self) -> None:
        self.places = self.places[:0]
        self.saved = self.saved[:0]
        self.num_saved[0] = 0


@njit(cache=True, nogil=True, inline="always")
def save_line(
    counters: npt.NDArray[Any],
    bucket: int,
    place: int,
    places: npt.NDArray[np.int32],
    saved: npt.NDArray[Any],
    num_saved: Int64Array,
) -> None:
    """Save the line of a counter that is about to change, of a block that is frozen."""
    line = saved.shape[1]
    at = place // line
    if places[bucket, at] == 0:
        new = num_saved[0]
        num_saved[0] = new + 1
        places[bucket, at] = new + 1
        start = at * line
        for c in range(min(line, counters.shape[1] - start)):
            saved[new, c] = counters[bucket, start + c]


@njit(cache=True, nogil=True)
def save_blocks(
    counters: npt.NDArray[Any],
    flags: UInt8Array,
    buckets: Int64Array,
    places: npt.NDArray[np.int32],
    saved: npt.NDArray[Any],
    num_saved: Int64Array,
) -> None:
    """Save all lines of blocks that are about to change, where they are frozen."""
    for bucket in buckets:
        if flags[bucket] & FROZEN != 0:
            for place in range(0, counters.shape[1], saved.shape[1]):
                save_line(counters, bucket, place, places, saved, num_saved)


@njit(cache=True, nogil=True)
def _put_back(
    copies: npt.NDArray[Any],
    buckets: Int64Array,
    places: npt.NDArray[np.int32],
    saved: npt.NDArray[Any],
) -> None:
    """Overwrite what has changed in copies of blocks by the lines that were saved."""
    line, size = saved.shape[1], copies.shape[1]
    for i in range(buckets.size):
        for at in range(places.shape[1]):
            place = places[buckets[i], at]
            if place != 0:
                start = at * line
                for c in range(min(line, size - start)):
                    copies[i, start + c] = saved[place - 1, c]
