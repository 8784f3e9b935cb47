"""The arrays of `Rows`, and the kernels that give and take single rows of them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.prefetch import AHEAD, prefetch
from embedding.table.freezing import CHANGED, FROZEN, LIVE
from embedding.table.index import (
    BLOCK,
    begin_search,
    find_batch,
    find_block,
    geometry_of,
    insert_from,
    line_of,
    remove,
    search_from,
)

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]
Float32Array = npt.NDArray[np.float32]

# Places in the state; the one after them is `usage.WIDE`.
NUM_ROWS, NUM_TOUCHED, FIRST_FREE, SPLIT, MARKS, LINES, BEFORE = range(7)
NUM_STATE = 8
WRITTEN = np.uint8(LIVE | CHANGED)  # the flags of a row that was just changed


class RowArrays(NamedTuple):
    """What kernels take of a `Rows`.

    Args:
        entries: int64[index capacity, 8], see `index`.
        metadata: uint32[2 x capacity, 2]: frequency and version, where usage is tracked; see
            `usage`.
        values: float32[capacity, width]: vector, then slots.
        keys: int64[capacity]: whose row it is. A free row holds the next free row plus one.
        flags: uint8[capacity], see `freezing`; 0: the row is free.
        state: int64[NUM_STATE]: rows in use, rows ever used, the first free row plus one, how far
            the index has grown (see `index.Geometry`), whether changes are marked: not until the
            first freeze, as a new row counts as changed; the lines of the index, those that it
            had before it began to grow, and whether some usage has more than 32 bits.
    """

    entries: Int64Array
    metadata: UInt32Array
    values: Float32Array
    keys: Int64Array
    flags: UInt8Array
    state: Int64Array


@njit(cache=True, nogil=True, inline="always")
def take_row(keys: Int64Array, flags: UInt8Array, state: Int64Array, key: np.int64) -> np.int64:
    """Return a row for a key, a freed one first; its metadata and values are the caller's."""
    if state[FIRST_FREE] != 0:
        row = state[FIRST_FREE] - 1
        state[FIRST_FREE] = keys[row]
    else:
        row = state[NUM_TOUCHED]
        state[NUM_TOUCHED] = row + 1
    state[NUM_ROWS] += 1
    keys[row], flags[row] = key, WRITTEN
    return row


@njit(cache=True, nogil=True, inline="always")
def free_row(keys: Int64Array, flags: UInt8Array, state: Int64Array, row: np.int64) -> None:
    """Give a row back."""
    flags[row] = 0
    keys[row] = state[FIRST_FREE]
    state[FIRST_FREE] = row + 1
    state[NUM_ROWS] -= 1


@njit(cache=True, nogil=True)
def find_or_add(
    rows: RowArrays,
    keys: Int64Array,
    may_add: UInt8Array,
    positions: Int64Array,
    start: int,
    end: int,
    new: Int64Array,
) -> int:
    """Find the rows of the keys in [start, end), at most `BLOCK`, and give rows to new keys.

    All of them will be changed, what is frozen of them was saved, and room has been made. A new
    row's metadata and values are the caller's to write.

    Args:
        may_add: uint8[n], 0 for a key that gets no row; empty: 1 each.
        positions: int64[n], written: the row of each key, or -1.
        new: int64[at least end - start], written: the indices of keys that got a row.

    Returns:
        how many these are.
    """
    entries, flags, state = rows.entries, rows.flags, rows.state
    marks = state[MARKS] != 0
    geometry = geometry_of(entries, state[SPLIT], state[BEFORE])
    homes, beyond = np.empty(BLOCK + AHEAD, np.uint64), np.empty(BLOCK + 1, np.int64)
    num_missing = find_block(
        entries, keys[start:end], geometry, homes, beyond, positions[start:end]
    )
    if marks:
        for i in range(start, end):
            if positions[i] >= 0:
                flags[positions[i]] = WRITTEN
    count = 0
    if num_missing == 0:
        return count
    for i in range(start, end):
        if positions[i] < 0 and (may_add.size == 0 or may_add[i] != 0):
            home = homes[i - start]
            # It may have come before in these keys.
            row, _ = search_from(entries, home, geometry.lines, keys[i])
            if row < 0:
                row = take_row(rows.keys, flags, state, keys[i])
                insert_from(entries, home, geometry.lines, keys[i], row)
                new[count] = i
                count += 1
            positions[i] = row
    return count


@njit(cache=True, nogil=True)
def add_batch(rows: RowArrays, keys: Int64Array, positions: Int64Array) -> None:
    """`find_or_add` of any number of keys, each of which may have a row."""
    each, new = np.empty(0, np.uint8), np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        find_or_add(rows, keys, each, positions, start, min(start + BLOCK, keys.size), new)


@njit(cache=True, nogil=True)
def put_batch(rows: RowArrays, keys: Int64Array, numbers: Int64Array) -> int:
    """Give keys the rows of some numbers; return how many got theirs before one could not.

    Room has been made. Rows between those of any calls are neither in use nor free until
    `free_holes`.
    """
    entries, flags, state = rows.entries, rows.flags, rows.state
    geometry = geometry_of(entries, state[SPLIT], state[BEFORE])
    homes = np.empty(BLOCK + AHEAD, np.uint64)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        begin_search(entries, keys[start:end], geometry, homes)
        for i in range(start, end):
            prefetch(entries, line_of(homes[i - start + AHEAD]), 0)
            row, _ = search_from(entries, homes[i - start], geometry.lines, keys[i])
            number = numbers[i]
            if row >= 0 or number < 0 or number >= flags.size or flags[number] != 0:
                return i
            insert_from(entries, homes[i - start], geometry.lines, keys[i], number)
            rows.keys[number], flags[number] = keys[i], WRITTEN
            state[NUM_ROWS] += 1
            state[NUM_TOUCHED] = max(state[NUM_TOUCHED], number + 1)
    return keys.size


@njit(cache=True, nogil=True)
def free_holes(rows: RowArrays) -> None:
    """Make the rows that `put_batch` left out free ones, of a table that had no rows before."""
    for row in range(rows.state[NUM_TOUCHED] - 1, -1, -1):
        if rows.flags[row] == 0:
            rows.keys[row] = rows.state[FIRST_FREE]
            rows.state[FIRST_FREE] = row + 1


@njit(cache=True, nogil=True)
def remove_batch(rows: RowArrays, keys: Int64Array, removed: Int64Array) -> int:
    """Remove keys; write those that had a row to removed, int64[n], and return how many."""
    entries, state = rows.entries, rows.state
    geometry = geometry_of(entries, state[SPLIT], state[BEFORE])
    count = 0
    for i in range(keys.size):
        row = remove(entries, geometry, keys[i])
        if row >= 0:
            free_row(rows.keys, rows.flags, state, row)
            removed[count] = keys[i]
            count += 1
    return count


@njit(cache=True, nogil=True)
def take_frozen(
    rows: RowArrays, keys: Int64Array, positions: Int64Array, their_keys: Int64Array
) -> int:
    """Find which rows of keys are frozen, and thaw them.

    Args:
        positions: int64[n], written: these rows, from the first place on.
        their_keys: int64[n], written: the keys of these.

    Returns:
        how many.
    """
    find_batch(rows.entries, rows.state[SPLIT], rows.state[BEFORE], keys, positions)
    flags, count = rows.flags, 0
    for i in range(keys.size):
        row = positions[i]
        if row >= 0 and flags[row] & FROZEN != 0:
            flags[row] ^= FROZEN
            positions[count], their_keys[count] = row, keys[i]
            count += 1
    return count
