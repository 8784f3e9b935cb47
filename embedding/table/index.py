"""The index: which row a key has. Lines of five entries with linear probing, made for batches.

A line is one cache line of 64 bytes, int64[8]: five keys, then five rows plus one of 32 bits each,
two in a word; the last half word is not used. 0 in place of a row means that the entry is empty,
so every int64 is a legal key. The entries of a line are filled from the first on. A search starts
at the key's home line and goes on where a line is full; nearly every key is in its home line, where
it is compared with all five keys at once, without a branch. Home lines are given by the bits of the
mix that follow the bucket's, because a shard holds whole buckets. Removal moves later entries back,
so there are no tombstones and searches stay as short as the load makes them.

`entries` below is int64[capacity, 8] with a capacity in lines that is a power of two. At least one
entry must be empty: searches end there.

**Growth in small pieces.** The capacity doubles in place, and the entries move to their new homes
from the last to the first, some at a time. Home lines are the *leading* bits, so a doubling takes
line s to 2s or 2s + 1: what has moved lies above what has not. `split` says how far it went: a key
whose home in the smaller index is below it has not moved yet. Each key has one home at any time,
so a search is the same during a doubling as before and after it.

What works on one key is inlined and takes arrays: at a call that is not, Numba counts a reference
to each array up and down, which costs more than the search.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.line_search import row_in_line
from embedding.kernels.mixing import BUCKET_BITS, mix64
from embedding.kernels.prefetch import AHEAD, prefetch

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

PLACES = 5  # entries of a line
WORDS = 8  # of 8 bytes
MAX_ROWS = 2**32 - 1  # a row plus one has 32 bits
BLOCK = 1024  # keys a batch kernel works on at once

_ROWS, _LAST = np.uint64(5), np.uint64(7)  # the first and the last word with rows
_LOW = np.int64(0xFFFFFFFF)
_ONE = np.uint64(1)
_BUCKET_BITS = np.uint64(BUCKET_BITS)
_PIECE = 1024  # lines that are emptied before their entries are inserted anew


class Geometry(NamedTuple):
    """Where home lines are; the same for all keys of a batch.

    Args:
        shift: what turns a mix without its bucket's bits into a line.
        mask: the capacity minus one.
        split: home lines of half the capacity from here on have moved; 0: all have.
    """

    shift: np.uint64
    mask: np.uint64
    split: np.uint64


@njit(cache=True, nogil=True, inline="always")
def geometry_of(entries: Int64Array, split: np.int64) -> Geometry:
    """Return the geometry of an index that is doubled down to `split`."""
    shift = np.uint64(64)
    capacity = np.uint64(entries.shape[0])
    while capacity > _ONE:
        capacity >>= _ONE
        shift -= _ONE
    return Geometry(shift, np.uint64(entries.shape[0]) - _ONE, np.uint64(split))


@njit(cache=True, nogil=True, inline="always")
def home_line(key: np.int64, geometry: Geometry) -> np.uint64:
    """Return where the search for a key starts."""
    line = (mix64(np.uint64(key)) << _BUCKET_BITS) >> geometry.shift
    half = line >> _ONE
    return half if half < geometry.split else line


@njit(cache=True, nogil=True)
def home_lines(keys: Int64Array, geometry: Geometry, lines: UInt64Array) -> None:
    """Write the home line of each key to lines uint64[at least n + AHEAD], then the last again.

    So that a loop over the keys may ask for the line `AHEAD` keys on without looking for the end.
    """
    for i in range(keys.size):
        lines[i] = home_line(keys[i], geometry)
    lines[keys.size : keys.size + AHEAD] = lines[keys.size - 1]


@njit(cache=True, nogil=True, inline="always")
def row_at(entries: Int64Array, line: np.uint64, place: np.int64) -> np.int64:
    """Return the row of one entry, or -1 where it is empty."""
    word = entries[line, _ROWS + np.uint64(place >> 1)]
    return ((word >> ((place & 1) << 5)) & _LOW) - 1


@njit(cache=True, nogil=True, inline="always")
def _write(
    entries: Int64Array, line: np.uint64, place: np.int64, key: np.int64, row: np.int64
) -> None:
    """Write one entry; key 0 and row -1 make it empty."""
    word, shift = _ROWS + np.uint64(place >> 1), (place & 1) << 5
    entries[line, word] = (entries[line, word] & ~(_LOW << shift)) | ((row + 1) << shift)
    entries[line, place] = key


@njit(cache=True, nogil=True, inline="always")
def _is_full(entries: Int64Array, line: np.uint64) -> bool:
    return entries[line, _LAST] != 0


@njit(cache=True, nogil=True, inline="always")
def search_from(
    entries: Int64Array, line: np.uint64, mask: np.uint64, key: np.int64
) -> tuple[np.int64, np.uint64]:
    """Return the row of a key, or -1, and the line where the search from its home line ended."""
    row = row_in_line(entries, line, key)
    while row < 0 and _is_full(entries, line):
        line = (line + _ONE) & mask
        row = row_in_line(entries, line, key)
    return row, line


@njit(cache=True, nogil=True, inline="always")
def search(entries: Int64Array, geometry: Geometry, key: np.int64) -> tuple[np.int64, np.uint64]:
    """Return the row of one key and its line, or -1 and the line where `put` may add it."""
    return search_from(entries, home_line(key, geometry), geometry.mask, key)


@njit(cache=True, nogil=True, inline="always")
def find(entries: Int64Array, geometry: Geometry, key: np.int64) -> np.int64:
    """Return the row of one key, or -1."""
    row, _ = search(entries, geometry, key)
    return row


@njit(cache=True, nogil=True, inline="always")
def put(entries: Int64Array, line: np.uint64, key: np.int64, row: np.int64) -> None:
    """Add a key to a line that is not full, without a branch on how many there are."""
    place = np.int64(0)
    for other in range(PLACES - 1):
        place += np.int64(row_at(entries, line, np.int64(other)) >= 0)
    _write(entries, line, place, key, row)


@njit(cache=True, nogil=True, inline="always")
def insert_from(
    entries: Int64Array, line: np.uint64, mask: np.uint64, key: np.int64, row: np.int64
) -> None:
    """Add a key that is not in the index, from its home line on; the caller has made room."""
    while _is_full(entries, line):
        line = (line + _ONE) & mask
    put(entries, line, key, row)


@njit(cache=True, nogil=True, inline="always")
def remove(entries: Int64Array, geometry: Geometry, key: np.int64) -> np.int64:
    """Remove a key and return the row it had, or -1 where it is absent."""
    row, line = search(entries, geometry, key)
    if row >= 0:
        place = np.int64(0)
        while entries[line, place] != key:
            place += 1
        _take_out(entries, geometry, line, place)
    return row


@njit(cache=True, nogil=True)
def _take_out(entries: Int64Array, geometry: Geometry, line: np.uint64, place: np.int64) -> None:
    """Empty an entry. An entry that had to pass the line, as it was full, may move back into it."""
    while place >= 0:
        was_full = _is_full(entries, line)
        last = place
        while last + 1 < PLACES and row_at(entries, line, last + 1) >= 0:
            last += 1
        _write(entries, line, place, entries[line, last], row_at(entries, line, last))
        _write(entries, line, last, 0, -1)
        place = np.int64(-1)
        if was_full:
            after, place = _first_beyond(entries, geometry, line)
            if place >= 0:
                _write(entries, line, last, entries[after, place], row_at(entries, after, place))
                line = after


@njit(cache=True, nogil=True, inline="always")
def _first_beyond(
    entries: Int64Array, geometry: Geometry, line: np.uint64
) -> tuple[np.uint64, np.int64]:
    """Return line and place of the first entry whose search passes a line; place -1: none."""
    mask = geometry.mask
    after = line
    while True:
        after = (after + _ONE) & mask
        for place in range(PLACES):
            if row_at(entries, after, np.int64(place)) < 0:
                return after, np.int64(-1)
            home = home_line(entries[after, place], geometry)
            if (after - home) & mask >= (after - line) & mask:
                return after, np.int64(place)


@njit(cache=True, nogil=True)
def begin_doubling(entries: Int64Array) -> int:
    """Make an index of twice the capacity of the one in the first half; the second is empty.

    Returns:
        the split of the doubled index, in which nothing has moved yet but what stood at the start
        because the end was full.
    """
    split = entries.shape[0] // 2
    _insert_anew(entries, geometry_of(entries, split), 0, 0)
    return split


@njit(cache=True, nogil=True)
def continue_doubling(entries: Int64Array, split: int, num_lines: int) -> int:
    """Move the entries of at least so many lines to their new homes; return the new split."""
    end = max(split - num_lines, 0)
    while split > end:
        first = max(split - _PIECE, end)
        _insert_anew(entries, geometry_of(entries, first), first, split)
        split = first
    return split


@njit(cache=True, nogil=True)
def _insert_anew(entries: Int64Array, geometry: Geometry, first: int, end: int) -> None:
    """Take out the entries of lines [first, end) and of those up to an empty one; insert them.

    Nothing passes an empty line, so every other entry stays within reach, and nothing whose home
    is in these lines stands anywhere else.
    """
    capacity = entries.shape[0]
    stop = end
    while stop - first < capacity and row_at(entries, stop & (capacity - 1), 0) >= 0:
        stop += 1
    keys, rows = np.empty((2, PLACES * (stop - first)), np.int64)
    count = 0
    for position in range(first, stop):
        line = position & (capacity - 1)
        for place in range(PLACES):
            # Without a branch: an empty entry is overwritten by the next.
            keys[count], rows[count] = entries[line, place], row_at(entries, line, place)
            count += rows[count] >= 0
        entries[line] = 0
    if count == 0:
        return
    lines = np.empty(count + AHEAD, np.uint64)
    home_lines(keys[:count], geometry, lines)
    for i in range(count):
        insert_from(entries, lines[i], geometry.mask, keys[i], rows[i])


@njit(cache=True, nogil=True)
def begin_search(
    entries: Int64Array, keys: Int64Array, geometry: Geometry, lines: UInt64Array
) -> None:
    """Write home lines as `home_lines` does, and ask for the first `AHEAD` of them."""
    home_lines(keys, geometry, lines)
    for i in range(AHEAD):
        prefetch(entries, lines[i], 0)


@njit(cache=True, nogil=True)
def find_batch(entries: Int64Array, split: int, keys: Int64Array, rows: Int64Array) -> int:
    """Write the row of each key, or -1, to rows int64[n]; return how many keys have none."""
    geometry = geometry_of(entries, split)
    lines = np.empty(BLOCK + AHEAD, np.uint64)
    num_missing = 0
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        begin_search(entries, keys[start:end], geometry, lines)
        for i in range(start, end):
            prefetch(entries, lines[i - start + AHEAD], 0)
            row, _ = search_from(entries, lines[i - start], geometry.mask, keys[i])
            rows[i] = row
            num_missing += row < 0
    return num_missing
