"""Rows by key: an index, and the vectors, slots, frequencies and versions that it points to."""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import NUM_BUCKETS, bucket_of, buckets_of
from embedding.kernels.prefetch import AHEAD, prefetch
from embedding.table.buckets import check_buckets
from embedding.table.index import (
    BLOCK,
    MAX_ROWS,
    WORDS,
    begin_doubling,
    begin_search,
    collect,
    continue_doubling,
    find_batch,
    geometry_of,
    put,
    remove,
    search_from,
)
from embedding.table.reservation import Budget, reserve

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

FREQUENCY, VERSION = 0, 1  # columns of the metadata
NUM_ROWS, NUM_TOUCHED, FIRST_FREE, SPLIT = 0, 1, 2, 3  # places in the state

METADATA_BYTES = 16
_LINE_BYTES = 8 * WORDS
_MIN_LINES = 16
# Keys for each line of the index, of five, at which its next doubling begins; with each key of a
# batch a line is moved. Were all keys new, the last lines to move would hold 3.4 keys; a batch of
# known keys moves as many, so a line holds 1.2 to 3.4 keys: 19 to 54 bytes a key.
_KEYS_A_LINE = 2.4
# Keys that are spread over buckets before they are sorted; fewer are faster sorted all at once.
_KEYS_TO_SPREAD = 64 * NUM_BUCKETS


class RowArrays(NamedTuple):
    """What kernels take of a `Rows`.

    Args:
        entries: int64[index capacity, 8], see `index`.
        metadata: int64[capacity, 2]: frequency and version, where usage is tracked. A free row
            holds in place of its version the next free row plus one.
        values: float32[capacity, width]: vector, then slots.
        state: int64[4]: rows in use, rows ever used, the first free row plus one, and how far
            the index is doubled (see `index.Geometry`).
    """

    entries: Int64Array
    metadata: Int64Array
    values: Float32Array
    state: Int64Array


@njit(cache=True, nogil=True, inline="always")
def take_row(metadata: Int64Array, state: Int64Array) -> np.int64:
    """Return a row that is free, a freed one first; its metadata and values are the caller's."""
    if state[FIRST_FREE] != 0:
        row = state[FIRST_FREE] - 1
        state[FIRST_FREE] = metadata[row, VERSION]
    else:
        row = state[NUM_TOUCHED]
        state[NUM_TOUCHED] = row + 1
    state[NUM_ROWS] += 1
    return row


@njit(cache=True, nogil=True, inline="always")
def free_row(metadata: Int64Array, state: Int64Array, row: np.int64) -> None:
    """Give a row back."""
    metadata[row, VERSION] = state[FIRST_FREE]
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

    Room has been made. A new row's metadata and values are the caller's to write.

    Args:
        may_add: uint8[n], 0 for a key that gets no row; empty: 1 each.
        positions: int64[n], written: the row of each key, or -1.
        new: int64[at least end - start], written: the indices of keys that got a row.

    Returns:
        how many these are.
    """
    entries, metadata, state = rows.entries, rows.metadata, rows.state
    geometry = geometry_of(entries, state[SPLIT])
    lines = np.empty(BLOCK + AHEAD, np.uint64)
    begin_search(entries, keys[start:end], geometry, lines)
    count = 0
    for i in range(start, end):
        prefetch(entries, lines[i - start + AHEAD], 0)
        row, line = search_from(entries, lines[i - start], geometry.mask, keys[i])
        if row < 0 and (may_add.size == 0 or may_add[i] != 0):
            row = take_row(metadata, state)
            put(entries, line, keys[i], row)
            new[count] = i
            count += 1
        positions[i] = row
    return count


@njit(cache=True, nogil=True)
def _add_batch(rows: RowArrays, keys: Int64Array, positions: Int64Array) -> None:
    each, new = np.empty(0, np.uint8), np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        find_or_add(rows, keys, each, positions, start, min(start + BLOCK, keys.size), new)


@njit(cache=True, nogil=True)
def _remove_batch(rows: RowArrays, keys: Int64Array) -> None:
    entries, metadata, state = rows.entries, rows.metadata, rows.state
    geometry = geometry_of(entries, state[SPLIT])
    for i in range(keys.size):
        row = remove(entries, geometry, keys[i])
        if row >= 0:
            free_row(metadata, state, row)


@njit(cache=True, nogil=True)
def _spread_over_buckets(
    keys: Int64Array, rows: Int64Array, by_bucket: Int64Array, their_rows: Int64Array
) -> Int64Array:
    """Write keys and rows bucket after bucket; return int64[buckets + 1], where each begins."""
    starts = np.zeros(NUM_BUCKETS + 1, np.int64)
    for key in keys:
        starts[bucket_of(key) + 1] += 1
    starts = np.cumsum(starts)
    places = starts.copy()
    for i in range(keys.size):
        place = places[bucket_of(keys[i])]
        places[bucket_of(keys[i])] += 1
        by_bucket[place], their_rows[place] = keys[i], rows[i]
    return starts


def _sorted_by_bucket(keys: Int64Array, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return keys sorted by (bucket, key), and their rows."""
    if keys.size < _KEYS_TO_SPREAD:
        order = np.lexsort((keys, buckets_of(keys)))
        return keys[order], rows[order]
    by_bucket, their_rows = np.empty_like(keys), np.empty_like(rows)
    starts = _spread_over_buckets(keys, rows, by_bucket, their_rows).tolist()
    for start, end in itertools.pairwise(starts):
        order = np.argsort(by_bucket[start:end])
        by_bucket[start:end] = by_bucket[start:end][order]
        their_rows[start:end] = their_rows[start:end][order]
    return by_bucket, their_rows


class Room(NamedTuple):
    """How many rows there can be, the lines of an index for them, what limits them, what to do."""

    rows: int
    lines: int
    cause: str
    remedy: str


def room_in(budget: Budget, width: int) -> Room:
    """Return how many rows of so many float32 values a budget allows."""
    row_bytes = 4 * width + METADATA_BYTES
    memory, address, share = budget.memory, budget.address, budget.share_bytes
    filled = memory.num_bytes // (row_bytes + round(_LINE_BYTES / _KEYS_A_LINE))
    # The lines of an index are a power of two: the one that leaves room for most rows.
    reserved, lines = 0, _MIN_LINES
    while lines * _LINE_BYTES < share and lines * _KEYS_A_LINE <= 2 * MAX_ROWS:
        fitting = (share - lines * _LINE_BYTES) // row_bytes
        reserved = max(reserved, min(fitting, int(lines * _KEYS_A_LINE)))
        lines *= 2
    part = f"a share of 1/{budget.shares} in {address}"
    rows, cause, remedy = min(
        (filled, str(memory), memory.remedy),
        (reserved, part, address.remedy),
        (MAX_ROWS, "the 32 bits of a row's number", "Use more servers, or evict"),
    )
    rows = max(rows, int(_MIN_LINES * _KEYS_A_LINE))
    return Room(rows, 1 << int(rows / _KEYS_A_LINE).bit_length(), cause, remedy)


class Rows:
    """Rows by key, growing without ever moving one.

    Args:
        width: float32 values of a row; 0 keeps frequency and version only.
        budget: what they may reserve.
        track_usage: whether rows have a frequency and a version; if not, only what was freed once
            takes their memory.
        name: what they are called in errors.

    Raises:
        MemoryError: address space for them can't be had.
    """

    def __init__(
        self,
        width: int,
        budget: Budget,
        *,
        track_usage: bool = True,
        name: str = "a table",
    ) -> None:
        self.track_usage = track_usage
        self._num_freed = 0
        self._name = name
        self._room = room_in(budget, width)
        metadata = reserve(self._room.rows, 2, np.int64)
        values = reserve(self._room.rows, width, np.float32)
        self._entries = reserve(self._room.lines, WORDS, np.int64)
        self.arrays = RowArrays(self._entries[:_MIN_LINES], metadata, values, np.zeros(4, np.int64))

    def __len__(self) -> int:
        return int(self.arrays.state[NUM_ROWS])

    def can_take(self, num_keys: int) -> bool:
        """Return whether the reserved memory can hold that many more keys."""
        return len(self) + num_keys <= self._room.rows

    def make_room(self, num_keys: int) -> None:
        """Grow the index so that this many keys can be added.

        Raises:
            MemoryError: the reserved memory can't hold them; nothing has changed.
        """
        if not self.can_take(num_keys):
            raise MemoryError(
                f"{self._name} has {len(self):,} rows of width {self.arrays.values.shape[1]} and"
                f" can't take {num_keys:,} more: there is room for {self._room.rows:,}. What limits"
                f" it is {self._room.cause}. {self._room.remedy}"
            )
        while not self._has_room(num_keys):
            self._continue_doubling(len(self.arrays.entries))
            entries = self._entries[: 2 * len(self.arrays.entries)]
            self.arrays.state[SPLIT] = begin_doubling(entries)
            self.arrays = self.arrays._replace(entries=entries)
        self._continue_doubling(num_keys)

    def _has_room(self, num_keys: int) -> bool:
        """Return whether the index can hold that many more keys as large as it is."""
        return len(self) + num_keys <= int(len(self.arrays.entries) * _KEYS_A_LINE)

    def _continue_doubling(self, num_lines: int) -> None:
        entries, state = self.arrays.entries, self.arrays.state
        if state[SPLIT] > 0:
            state[SPLIT] = continue_doubling(entries, state[SPLIT], num_lines)

    def find(self, keys: Int64Array) -> Int64Array:
        """Return the row of each key, or -1: int64[n]."""
        rows = np.empty(keys.size, np.int64)
        find_batch(self.arrays.entries, self.arrays.state[SPLIT], keys, rows)
        return rows

    def metadata_of(self, keys: Int64Array, column: int, absent: int | Int64Array) -> Int64Array:
        """Return the frequency or version of each key, `absent` where it has no row."""
        rows = self.find(keys)
        return np.where(rows >= 0, self.arrays.metadata[np.maximum(rows, 0), column], absent)

    def add(self, keys: Int64Array) -> Int64Array:
        """Return the row of each key, int64[n], giving one to those that have none.

        A new row's metadata and values are the caller's to write.

        Raises:
            MemoryError: see `make_room`.
        """
        num_new = keys.size
        if len(self) and not (self._has_room(num_new) and self.can_take(num_new)):
            num_new = int(np.count_nonzero(self.find(keys) < 0))
        self.make_room(num_new)
        rows = np.empty(keys.size, np.int64)
        _add_batch(self.arrays, keys, rows)
        return rows

    def remove(self, keys: Int64Array) -> None:
        """Remove keys and free their rows; absent keys are left out."""
        before = len(self)
        _remove_batch(self.arrays, keys)
        self._num_freed += before - len(self)

    def in_buckets(self, buckets: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
        """Return the keys of buckets [first, end), sorted by (bucket, key), and their rows."""
        check_buckets(buckets)
        first, end = buckets
        keys, rows = np.empty(len(self), np.int64), np.empty(len(self), np.int64)
        count = collect(self.arrays.entries, first, end, keys, rows)
        return _sorted_by_bucket(keys[:count], rows[:count])

    def memory(self) -> dict[str, int]:
        """Return the bytes that the index, the metadata and the values have taken."""
        touched = int(self.arrays.state[NUM_TOUCHED])
        with_metadata = touched if self.track_usage else min(self._num_freed, touched)
        return {
            "index": self.arrays.entries.nbytes,
            "metadata": with_metadata * METADATA_BYTES,
            "rows": touched * self.arrays.values.shape[1] * 4,
        }


def memory_of(num_keys: int, width: int, *, track_usage: bool = True) -> int:
    """Return the bytes that `Rows` of so many keys and this width take where none were removed."""
    lines = _MIN_LINES
    while num_keys > int(lines * _KEYS_A_LINE):
        lines *= 2
    return lines * _LINE_BYTES + num_keys * (METADATA_BYTES * track_usage + 4 * width)
