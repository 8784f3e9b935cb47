"""Flags of rows and blocks: what there is, what changed since the last freeze, what is to be read.

A freeze takes one look at all flags and no copy: what it covers is FROZEN from then on. Whoever
reads it piece by piece clears that flag; whoever is about to change something that still has it
saves what it holds before. So the moment of the freeze can be read while its table goes on, and
what changes nothing that is frozen pays nothing. To mark a change is to store `LIVE | CHANGED`.
"""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.table.reservation import reserve

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

LIVE, CHANGED, FROZEN = 1, 2, 4

_WORD = 8  # flags that are looked at together, as uint64
_EACH = np.uint64(0x0101010101010101)
_1, _2, _56 = np.uint64(1), np.uint64(2), np.uint64(56)
_NONE = np.uint64(0)

Source = TypeVar("Source")


def flags_of(number: int) -> UInt8Array:
    """Reserve flags of so many rows, and of some more so that words of them fit: uint8[n], 0."""
    return reserve(-(-number // _WORD) * _WORD, 1, np.uint8).reshape(-1)


def freeze_flags(flags: UInt8Array, end: int, *, changed_only: bool) -> int:
    """Freeze what lives, or what lives and changed, below `end`; nothing counts as changed then.

    Args:
        flags: uint8[n], n a multiple of 8; 0 from `end` on.

    Returns:
        how many are frozen.
    """
    return int(_freeze(flags[: -(-end // _WORD) * _WORD].view(np.uint64), changed_only))


@njit(cache=True, nogil=True)
def _freeze(words: npt.NDArray[np.uint64], changed_only: bool) -> int:
    count = _NONE
    shift = _1 if changed_only else _NONE
    for i in range(words.size):
        word = words[i]
        frozen = (word >> shift) & _EACH  # CHANGED or LIVE; what changed lives
        words[i] = (word & _EACH) | (frozen << _2)
        count += (frozen * _EACH) >> _56
    return int(count)


@njit(cache=True, nogil=True)
def _next_frozen(
    flags: UInt8Array,
    words: npt.NDArray[np.uint64],
    start: int,
    end: int,
    places: Int64Array,
) -> tuple[int, int]:
    """Write the next places in [start, end) that are frozen, thawed then; return count and end."""
    count, place = 0, start
    while place < end and count < places.size:
        if place % _WORD == 0 and (words[place // _WORD] >> _2) & _EACH == _NONE:
            place += _WORD
            continue
        if flags[place] & FROZEN != 0:
            flags[place] ^= FROZEN
            places[count] = place
            count += 1
        place += 1
    return count, place


class Frozen(Generic[Source]):
    """What a freeze has covered and nobody has read: it still lies in place, or was saved.

    Args:
        source: where what is in place can be read.
        flags: of it.
        end: the first place that is not frozen, as all after it.
        count: how many are frozen.

    Attributes:
        count: how many were frozen.
        num_left: how many lie in place as they were.
        nbytes: what the copies take that were saved and not yet read.
    """

    def __init__(self, source: Source, flags: UInt8Array, end: int, count: int) -> None:
        self.count = self.num_left = count
        self.nbytes = 0
        self.source, self._flags = source, flags
        self._next, self._end = 0, end
        self._saved: deque[tuple[Source, int, int]] = deque()
        self._is_open = True

    def save(self, source: Source, count: int, num_bytes: int) -> None:
        """Take a copy, in places [0, count), of what has just been thawed to be changed."""
        self._saved.append((source, count, num_bytes))
        self.nbytes += num_bytes
        self.num_left -= count

    def parts(self, most: int) -> Iterator[tuple[Source, Int64Array]]:
        """Yield where to read and the places there, int64[at most `most`], each only once.

        They are read before anything changes. Copies go first, so that they don't pile up.

        Raises:
            ValueError: `most` is below 1.
            RuntimeError: it was closed before all of it was read.
        """
        if most < 1:
            raise ValueError(f"a part of what is frozen must hold 1 at least, got {most}")
        while self._check_open() and (self._saved or self.num_left > 0):
            if self._saved:
                source, count, num_bytes = self._saved.popleft()
                self.nbytes -= num_bytes
                for start in range(0, count, most):
                    self._check_open()
                    yield source, np.arange(start, min(start + most, count))
            else:
                places = np.empty(min(most, self.num_left), np.int64)
                count, self._next = _next_frozen(
                    self._flags, self._flags.view(np.uint64), self._next, self._end, places
                )
                assert count, "something frozen was changed and not saved"
                self.num_left -= count
                yield self.source, places[:count]

    def _check_open(self) -> bool:
        if not self._is_open:
            raise RuntimeError(
                "what was frozen of a table can't be read any more: it was closed, or the table"
                " was frozen again"
            )
        return True

    def close(self) -> None:
        """Give up what was not read; reading on is refused."""
        self._is_open = False
        self._saved.clear()
        self.num_left = self.nbytes = 0
