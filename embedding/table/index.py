"""The index: which row a key has. Lines of five entries with linear probing, made for batches.

A line is one cache line of 64 bytes, int64[8]: five keys, then five rows plus one of 32 bits each,
two in a word; the last half word says what has passed the line, see below. 0 in place of a row
means that the entry is empty, so every int64 is a legal key. The entries of a line are filled from
the first on. A search starts at the key's home line, where the key is compared with all five at
once, without a branch, and goes on where a line is full. Home lines are given by the bits of the
mix that follow the bucket's, because a shard holds whole buckets. Removal moves later entries back,
so there are no tombstones and searches stay as short as the load makes them.

**What has passed.** A line that becomes full sets the highest bit of its last half word, and each
key that finds its home line full the bit of its *tag*, five bits of its mix. So nearly every key
that has no row is known not to have one by its home line alone, however full lines are. A full line
without the highest bit, as other software may have made it, has had anything pass.

`entries` below is int64[lines, 8] with any number of lines up to 2^30. At least one entry must be
empty: searches end there.

**Growth in small pieces.** The lines become more in place, and the entries move to their new homes
from the last to the first, some at a time. Home lines rise with the *leading* bits, so growth takes
no home to a lower line: what has moved lies above what has not. `split` says how far it went: a key
whose home in the smaller index, of `before` lines, is below it has not moved yet. Each key has one
home at any time, so a search is the same during growth as before and after it.

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
_WAS_FULL = np.int64(-(2**63))
_ONE = np.uint64(1)
_BUCKET_BITS = np.uint64(BUCKET_BITS)
_HOME_BITS = np.uint64(34)  # of the mix that choose a line: 2^30 of these still get equal shares
_HOME_SHIFT = np.uint64(64 - 34)
_TAG = np.uint64(31)
_TAG_SHIFT = np.uint64(32)
_LINE = np.uint64(0xFFFFFFFF)
_PIECE = 256  # lines that are emptied before their entries are inserted anew


class Geometry(NamedTuple):
    """Where home lines are; the same for all keys of a batch.

    Args:
        lines: of the index.
        before: lines that it had before it began to grow.
        split: home lines of these from here on have moved; 0: all have.
    """

    lines: np.uint64
    before: np.uint64
    split: np.uint64


@njit(cache=True, nogil=True, inline="always")
def geometry_of(entries: Int64Array, split: np.int64, before: np.int64) -> Geometry:
    """Return the geometry of an index that has grown from `before` lines down to `split`."""
    return Geometry(np.uint64(entries.shape[0]), np.uint64(before), np.uint64(split))


@njit(cache=True, nogil=True, inline="always")
def home_of(key: np.int64, geometry: Geometry) -> np.uint64:
    """Return the line where the search for a key starts, and above its 32 bits the key's tag."""
    mix = mix64(np.uint64(key))
    bits = (mix << _BUCKET_BITS) >> _HOME_SHIFT
    line = (bits * geometry.lines) >> _HOME_BITS
    old = (bits * geometry.before) >> _HOME_BITS
    line = old if old < geometry.split else line
    return line | ((mix & _TAG) << _TAG_SHIFT)


@njit(cache=True, nogil=True, inline="always")
def line_of(home: np.uint64) -> np.uint64:
    """Return the line of what `home_of` returned."""
    return home & _LINE


@njit(cache=True, nogil=True)
def homes_of(keys: Int64Array, geometry: Geometry, homes: UInt64Array) -> None:
    """Write the home of each key to homes uint64[at least n + AHEAD], then the last again.

    So that a loop over the keys may ask for the line `AHEAD` keys on without looking for the end.
    """
    for i in range(keys.size):
        homes[i] = home_of(keys[i], geometry)
    homes[keys.size : keys.size + AHEAD] = homes[keys.size - 1]


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
    return entries[line, _LAST] & _LOW != 0


@njit(cache=True, nogil=True, inline="always")
def may_be_beyond(entries: Int64Array, home: np.uint64) -> bool:
    """Return whether a key that is not in its home line may be in a later one."""
    word = entries[home & _LINE, _LAST]
    has_passed = (word >> np.int64(home >> _TAG_SHIFT) >> np.int64(32)) & 1
    return (word & _LOW != 0) & ((word >= 0) | (has_passed != 0))


@njit(cache=True, nogil=True, inline="always")
def next_line(line: np.uint64, lines: np.uint64) -> np.uint64:
    """Return the line after one, the first after the last."""
    line += _ONE
    return np.uint64(0) if line == lines else line


@njit(cache=True, nogil=True, inline="always")
def _search_beyond(
    entries: Int64Array, line: np.uint64, lines: np.uint64, key: np.int64
) -> tuple[np.int64, np.uint64]:
    """Go on behind a line that is full."""
    line = next_line(line, lines)
    row = row_in_line(entries, line, key)
    while row < 0 and _is_full(entries, line):
        line = next_line(line, lines)
        row = row_in_line(entries, line, key)
    return row, line


@njit(cache=True, nogil=True, inline="always")
def search_from(
    entries: Int64Array, home: np.uint64, lines: np.uint64, key: np.int64
) -> tuple[np.int64, np.uint64]:
    """Return the row of a key and its line, or -1 and any."""
    line = line_of(home)
    row = row_in_line(entries, line, key)
    if row < 0 and may_be_beyond(entries, home):
        row, line = _search_beyond(entries, line, lines, key)
    return row, line


@njit(cache=True, nogil=True, inline="always")
def find(entries: Int64Array, geometry: Geometry, key: np.int64) -> np.int64:
    """Return the row of one key, or -1."""
    row, _ = search_from(entries, home_of(key, geometry), geometry.lines, key)
    return row


@njit(cache=True, nogil=True, inline="always")
def _put(entries: Int64Array, line: np.uint64, key: np.int64, row: np.int64) -> None:
    """Add a key to a line that is not full, without a branch on how many there are."""
    place = np.int64(0)
    for other in range(PLACES - 1):
        place += np.int64(row_at(entries, line, np.int64(other)) >= 0)
    _write(entries, line, place, key, row)
    entries[line, _LAST] |= _WAS_FULL if place == PLACES - 1 else np.int64(0)


@njit(cache=True, nogil=True, inline="always")
def insert_from(
    entries: Int64Array, home: np.uint64, lines: np.uint64, key: np.int64, row: np.int64
) -> None:
    """Add a key that is not in the index, from its home on; the caller has made room."""
    line = line_of(home)
    if _is_full(entries, line):
        entries[line, _LAST] |= np.int64(1) << np.int64(home >> _TAG_SHIFT) << np.int64(32)
        line = next_line(line, lines)
        while _is_full(entries, line):
            line = next_line(line, lines)
    _put(entries, line, key, row)


@njit(cache=True, nogil=True, inline="always")
def remove(entries: Int64Array, geometry: Geometry, key: np.int64) -> np.int64:
    """Remove a key and return the row it had, or -1 where it is absent."""
    row, line = search_from(entries, home_of(key, geometry), geometry.lines, key)
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
            else:
                entries[line, _LAST] = 0  # nothing passes it any more


@njit(cache=True, nogil=True, inline="always")
def _distance(first: np.uint64, last: np.uint64, lines: np.uint64) -> np.uint64:
    """Return how many lines it is from one to another, on behind the last from the first."""
    return last - first if last >= first else last + lines - first


@njit(cache=True, nogil=True, inline="always")
def _first_beyond(
    entries: Int64Array, geometry: Geometry, line: np.uint64
) -> tuple[np.uint64, np.int64]:
    """Return line and place of the first entry whose search passes a line; place -1: none."""
    lines = geometry.lines
    after = line
    while True:
        after = next_line(after, lines)
        for place in range(PLACES):
            if row_at(entries, after, np.int64(place)) < 0:
                return after, np.int64(-1)
            home = line_of(home_of(entries[after, place], geometry))
            if _distance(home, after, lines) >= _distance(line, after, lines):
                return after, np.int64(place)


@njit(cache=True, nogil=True)
def begin_growth(entries: Int64Array, before: int) -> int:
    """Make an index of all lines of the one in the first `before`; the others are empty.

    Returns:
        the split of the larger index, in which nothing has moved yet but what stood at the start
        because the end was full.
    """
    _insert_anew(entries, geometry_of(entries, before, before), 0, 0)
    return before


@njit(cache=True, nogil=True)
def continue_growth(entries: Int64Array, split: int, before: int, num_lines: int) -> int:
    """Move the entries of at least so many lines to their new homes; return the new split."""
    end = max(split - num_lines, 0)
    while split > end:
        first = max(split - _PIECE, end)
        _insert_anew(entries, geometry_of(entries, first, before), first, split)
        split = first
    return split


@njit(cache=True, nogil=True)
def _insert_anew(entries: Int64Array, geometry: Geometry, first: int, end: int) -> None:
    """Take out the entries of lines [first, end) and of those up to an empty one; insert them.

    Nothing passes an empty line, so every other entry stays within reach, and nothing whose home
    is in these lines stands anywhere else.
    """
    lines = entries.shape[0]
    stop = end
    while stop - first < lines and row_at(entries, stop % lines, 0) >= 0:
        stop += 1
    keys, rows = np.empty((2, PLACES * (stop - first)), np.int64)
    count = 0
    for position in range(first, stop):
        line = position % lines
        for place in range(PLACES):
            # Without a branch: an empty entry is overwritten by the next.
            row = row_at(entries, line, np.int64(place))
            keys[count], rows[count] = entries[line, place], row
            count += row >= 0
        entries[line] = 0
    if count == 0:
        return
    homes = np.empty(count + AHEAD, np.uint64)
    homes_of(keys[:count], geometry, homes)
    _insert_in_order(entries, geometry, keys[:count], rows[:count], homes)


@njit(cache=True, nogil=True)
def _insert_in_order(
    entries: Int64Array,
    geometry: Geometry,
    keys: Int64Array,
    rows: Int64Array,
    homes: UInt64Array,
) -> None:
    """Insert keys whose homes rise, as they do where they come line by line.

    How full a line is is counted once for all keys that come to it, and nothing is read back that
    was just written, which would take most of the time.
    """
    halves = entries.view(np.uint32)
    line, count = geometry.lines, 0
    for i in range(keys.size):
        home = line_of(homes[i])
        if home != line:
            line, count = home, 0
            for place in range(PLACES):
                count += halves[line, 2 * PLACES + place] != 0
        if count < PLACES:
            entries[line, count] = keys[i]
            halves[line, 2 * PLACES + count] = np.uint32(rows[i] + 1)
            count += 1
            if count == PLACES:
                entries[line, _LAST] |= _WAS_FULL
        else:
            insert_from(entries, homes[i], geometry.lines, keys[i], rows[i])


@njit(cache=True, nogil=True)
def begin_search(
    entries: Int64Array, keys: Int64Array, geometry: Geometry, homes: UInt64Array
) -> None:
    """Write homes as `homes_of` does, and ask for the lines of the first `AHEAD` of them."""
    homes_of(keys, geometry, homes)
    for i in range(AHEAD):
        prefetch(entries, line_of(homes[i]), 0)


@njit(cache=True, nogil=True)
def find_block(
    entries: Int64Array,
    keys: Int64Array,
    geometry: Geometry,
    homes: UInt64Array,
    beyond: Int64Array,
    rows: Int64Array,
) -> int:
    """Write the row of each of at most `BLOCK` keys, or -1; return how many have none.

    Those that are not in their home line are looked for when all home lines were, so that no
    branch depends on a key.

    Args:
        homes: uint64[BLOCK + AHEAD], written.
        beyond: int64[BLOCK + 1], written: the numbers of these keys.
    """
    begin_search(entries, keys, geometry, homes)
    num_missing, count = 0, 0
    for i in range(keys.size):
        prefetch(entries, line_of(homes[i + AHEAD]), 0)
        row = row_in_line(entries, line_of(homes[i]), keys[i])
        rows[i] = row
        num_missing += row < 0
        beyond[count] = i
        count += (row < 0) & may_be_beyond(entries, homes[i])
    for j in range(count):
        prefetch(entries, next_line(line_of(homes[beyond[j]]), geometry.lines), 0)
    for j in range(count):
        i = beyond[j]
        row, _ = _search_beyond(entries, line_of(homes[i]), geometry.lines, keys[i])
        rows[i] = row
        num_missing -= row >= 0
    return num_missing


@njit(cache=True, nogil=True)
def find_batch(
    entries: Int64Array, split: int, before: int, keys: Int64Array, rows: Int64Array
) -> int:
    """Write the row of each key, or -1, to rows int64[n]; return how many keys have none."""
    geometry = geometry_of(entries, split, before)
    homes, beyond = np.empty(BLOCK + AHEAD, np.uint64), np.empty(BLOCK + 1, np.int64)
    num_missing = 0
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        num_missing += find_block(
            entries, keys[start:end], geometry, homes, beyond, rows[start:end]
        )
    return num_missing
