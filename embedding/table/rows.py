"""Rows by key: an index, and the vectors, slots, frequencies and versions that it points to.

Each row knows its key and has flags, so that what looks at all rows, or at those that changed, goes
through them in their order and not through the index.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import NUM_BUCKETS, bucket_of, buckets_of
from embedding.kernels.row_copy import copy_rows
from embedding.spec.tiers import Tiers
from embedding.table.buckets import check_buckets
from embedding.table.freezing import Frozen, flags_of, freeze_flags
from embedding.table.index import (
    MAX_ROWS,
    WORDS,
    begin_growth,
    continue_growth,
    find_batch,
)
from embedding.table.others import thaw_others
from embedding.table.reservation import Budget, reserve
from embedding.table.row_arrays import (
    BEFORE,
    LINES,
    MARKS,
    NUM_ROWS,
    NUM_STATE,
    NUM_TOUCHED,
    SPLIT,
    RowArrays,
    add_batch,
    free_holes,
    put_batch,
    remove_batch,
    take_frozen,
)
from embedding.table.tiered_values import PLACE_BYTES, TieredValues
from embedding.table.usage import USAGE_BYTES, copy_usage, usage_of

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

KEY_BYTES = 9  # and flags
MAX_TIERED_ROWS = 2**31 - 2
_LINE_BYTES = 8 * WORDS
_MIN_LINES = 16
_SMALL = 4096  # lines: of a small index memory does not matter, so it doubles


class Density(NamedTuple):
    """How full an index is.

    Args:
        keys_a_line: for each line, of five, when it begins to grow.
        part: of its lines that an index gets more each time.
        lines_a_key: that are moved with each key of a batch while it grows, l. Lines that wait for
            it get 1/l keys more at most.
    """

    keys_a_line: float
    part: float
    lines_a_key: int


# 19 to 28 bytes a row. Searches of keys that have a row take as long as with half as many in a
# line, and with 4 keys in place of 3.4 a seventh longer (a million rows); growth by a quarter would
# save 2 bytes, and a new row take an eighth longer.
IN_MEMORY = Density(3.4, 1 / 2, 2)
# 15 to 17 bytes a row: what a search takes longer is nothing beside a read of the disk.
ON_DISK = Density(4.2, 1 / 8, 4)
# Keys that are spread over buckets before they are sorted; fewer are faster sorted all at once.
_KEYS_TO_SPREAD = 64 * NUM_BUCKETS


@njit(cache=True, nogil=True)
def _collect(
    rows: RowArrays, first_bucket: int, end_bucket: int, keys: Int64Array, places: Int64Array
) -> int:
    """Write the keys of buckets [first, end) and their rows, ascending; return how many."""
    count = 0
    for row in range(rows.state[NUM_TOUCHED]):
        key = rows.keys[row]
        if rows.flags[row] != 0 and first_bucket <= bucket_of(key) < end_bucket:
            keys[count], places[count] = key, row
            count += 1
    return count


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

    def at_most(self, rows: int, cause: str) -> "Room":
        """Return it with fewer rows, where there are more than something else allows."""
        return self if self.rows <= rows else self._replace(rows=rows, cause=cause)


def room_in(budget: Budget, width: int, density: Density = IN_MEMORY) -> Room:
    """Return how many rows of so many float32 values a budget allows."""
    memory, address, share = budget.memory, budget.address, budget.share_bytes
    index_bytes = round(_LINE_BYTES / density.keys_a_line)
    row_bytes = 4 * width + USAGE_BYTES + KEY_BYTES + index_bytes
    filled = memory.num_bytes // row_bytes
    # Of usage as much again is reserved, and of the index what the last growth may leave empty.
    row_bytes += USAGE_BYTES + round(index_bytes * density.part) + 1
    reserved = max(share - 2 * _SMALL * _LINE_BYTES, share // 2) // row_bytes
    part = f"a share of 1/{budget.shares} in {address}"
    rows, cause, remedy = min(
        (filled, str(memory), memory.remedy),
        (reserved, part, address.remedy),
        (MAX_ROWS, "the 32 bits of a row's number", "Use more servers, or evict"),
    )
    rows = max(rows, int(_MIN_LINES * density.keys_a_line))
    return Room(rows, lines_for(rows, density), cause, remedy)


class Rows:
    """Rows by key, growing without ever moving one.

    Args:
        width: float32 values of a row; 0 keeps frequency and version only.
        budget: what they may reserve.
        track_usage: whether rows have a frequency and a version; if not, they take no memory.
        name: what they are called in errors.
        tiers: where values are that memory is not to hold; None: all are in memory.

    Attributes:
        arrays: of all rows. With tiers its `values` are those in memory, by slot and not by row.
        tiered: these, and the others; None: all are in memory.

    Raises:
        MemoryError: address space for them can't be had.
        ValueError, TierError: see `TieredValues`.
    """

    def __init__(
        self,
        width: int,
        budget: Budget,
        *,
        track_usage: bool = True,
        name: str = "a table",
        tiers: Tiers | None = None,
    ) -> None:
        self.track_usage = track_usage
        self._name = name
        self._density = IN_MEMORY if tiers is None else ON_DISK
        self._room = room_in(
            budget, width if tiers is None else -(-PLACE_BYTES // 4), self._density
        )
        self.tiered: TieredValues | None = None
        if tiers is not None:
            self._room = self._room.at_most(MAX_TIERED_ROWS, "the 32 bits of a row's place")
            self.tiered = TieredValues(width, self._room.rows, tiers, name=name)
        capacity = self._room.rows
        self._entries = reserve(self._room.lines, WORDS, np.int64)
        self.arrays = RowArrays(
            entries=self._entries[:_MIN_LINES],
            metadata=reserve(2 * capacity, 2, np.uint32),
            values=reserve(capacity, width, np.float32)
            if self.tiered is None
            else self.tiered.memory,
            keys=reserve(capacity, 1, np.int64).reshape(-1),
            flags=flags_of(capacity),
            state=np.zeros(NUM_STATE, np.int64),
        )
        self.arrays.state[LINES] = _MIN_LINES
        self._frozen: Frozen[RowArrays] | None = None

    def __len__(self) -> int:
        return int(self.arrays.state[NUM_ROWS])

    @property
    def most_rows(self) -> int:
        """How many there can be."""
        return self._room.rows

    @property
    def is_being_read(self) -> bool:
        """Whether rows are frozen that nobody has read yet."""
        return self._frozen is not None and self._frozen.num_left > 0

    def can_take(self, num_keys: int) -> bool:
        """Return whether reserved memory, and the disk of tiers, can hold that many more keys."""
        most = len(self) + num_keys
        return most <= self._room.rows and (self.tiered is None or self.tiered.has_room(most))

    def make_room(self, num_keys: int) -> None:
        """Grow the index so that this many keys can be added.

        Raises:
            MemoryError: the reserved memory can't hold them; nothing has changed.
        """
        if len(self) + num_keys > self._room.rows:
            raise MemoryError(
                f"{self._name} has {len(self):,} rows of width {self.arrays.values.shape[1]} and"
                f" can't take {num_keys:,} more: there is room for {self._room.rows:,}. What limits"
                f" it is {self._room.cause}. {self._room.remedy}"
            )
        if self.tiered is not None:
            self.tiered.make_room(len(self) + num_keys)
        self._grow_index(num_keys)

    def _grow_index(self, num_keys: int) -> None:
        if not self._has_room(num_keys):
            before = len(self.arrays.entries)
            self._continue_growth(before)
            lines = lines_for(len(self) + num_keys, self._density)
            entries = self._entries[: max(lines, more_lines(before, self._density))]
            self.arrays.state[SPLIT] = begin_growth(entries, before)
            self.arrays.state[BEFORE] = before
            self._index_is(entries)
        self._continue_growth(self._density.lines_a_key * num_keys)

    def expect(self, num_keys: int) -> None:
        """Where there is none yet, make the index as large as so many rows make it.

        Fewer that come leave it larger than it had to be, and more of them let it grow.
        """
        if len(self) == 0:
            lines = min(lines_for(num_keys, self._density), self._room.lines)
            self.arrays.state[SPLIT] = 0
            if lines > len(self.arrays.entries):
                self._index_is(self._entries[:lines])

    def _index_is(self, entries: Int64Array) -> None:
        self.arrays = self.arrays._replace(entries=entries)
        self.arrays.state[LINES] = len(entries)

    def _has_room(self, num_keys: int) -> bool:
        """Return whether the index can hold that many more keys as large as it is."""
        return len(self) + num_keys <= int(len(self.arrays.entries) * self._density.keys_a_line)

    def _continue_growth(self, num_lines: int) -> None:
        entries, state = self.arrays.entries, self.arrays.state
        if state[SPLIT] > 0:
            state[SPLIT] = continue_growth(entries, state[SPLIT], state[BEFORE], num_lines)

    def find(self, keys: Int64Array) -> Int64Array:
        """Return the row of each key, or -1: int64[n]."""
        rows = np.empty(keys.size, np.int64)
        arrays = self.arrays
        find_batch(arrays.entries, arrays.state[SPLIT], arrays.state[BEFORE], keys, rows)
        return rows

    def metadata_of(self, keys: Int64Array, column: int, absent: int | Int64Array) -> Int64Array:
        """Return the frequency or version of each key, `absent` where it has no row."""
        rows = self.find(keys)
        found = usage_of(self.arrays.metadata, self.arrays.state, np.maximum(rows, 0), column)
        return np.where(rows >= 0, found, absent)

    def add(self, keys: Int64Array) -> Int64Array:
        """Return the row of each key, int64[n], giving one to those that have none.

        The metadata and values of all of them are the caller's to write.

        Raises:
            MemoryError: see `make_room`.
        """
        num_new = keys.size
        if len(self) and not (self._has_room(num_new) and self.can_take(num_new)):
            num_new = int(np.count_nonzero(self.find(keys) < 0))
        self.make_room(num_new)
        self.before_change(keys)
        rows = np.empty(keys.size, np.int64)
        add_batch(self.arrays, keys, rows)
        return rows

    def put(self, keys: Int64Array, numbers: Int64Array) -> None:
        """Give new keys the rows of some numbers, of a table that is being filled.

        Raises:
            ValueError: a key has a row, or a row another key; of that table nothing is of use then.
        """
        self._grow_index(keys.size)
        most = int(numbers.max(initial=0))
        if most >= self._room.rows or put_batch(self.arrays, keys, numbers) < keys.size:
            raise ValueError(f"rows of {self._name} with numbers to {most} are not each there once")

    def end_putting(self) -> None:
        """Let rows be added again."""
        free_holes(self.arrays)

    def remove(self, keys: Int64Array) -> Int64Array:
        """Remove keys and free their rows; return those that had one, in the order given."""
        self.before_change(keys)
        if self.tiered is not None:
            self.tiered.release(self.find(keys))
        removed = np.empty(keys.size, np.int64)
        return removed[: remove_batch(self.arrays, keys, removed)]

    def freeze(self, *, changed_only: bool, own: UInt8Array | None = None) -> Frozen[RowArrays]:
        """Freeze all rows, or those that changed since the last time.

        None of them counts as changed then, and what was frozen before is closed.

        Args:
            own: uint8[4096], 0 for buckets whose rows are left out; None: there are none.
        """
        if self._frozen is not None:
            self._frozen.close()
        self.arrays.state[MARKS] = 1
        touched = int(self.arrays.state[NUM_TOUCHED])
        num_frozen = freeze_flags(self.arrays.flags, touched, changed_only=changed_only)
        if own is not None:
            num_frozen -= thaw_others(self.arrays, own)
        self._frozen = Frozen(self.arrays, self.arrays.flags, touched, num_frozen)
        return self._frozen

    def before_change(self, keys: Int64Array) -> None:
        """Save what is frozen of the rows of keys, which are about to be changed or removed."""
        if self._frozen is not None and self.is_being_read:
            positions, frozen = np.empty((2, keys.size), np.int64)
            count = take_frozen(self.arrays, keys, positions, frozen)
            if count:
                copy = self.copy(positions[:count], frozen[:count].copy())
                num_bytes = copy.keys.nbytes + copy.metadata.nbytes + copy.values.nbytes
                self._frozen.save(copy, count, num_bytes)

    def copy(self, positions: Int64Array, keys: Int64Array) -> RowArrays:
        """Return arrays in which row i is a copy of the row at positions[i], which is keys[i]'s."""
        arrays = self.arrays
        if self.tiered is not None:
            values = self.tiered.read(positions)
        else:
            values = np.empty((positions.size, arrays.values.shape[1]), np.float32)
            copy_rows(arrays.values, positions, 0, values)
        usage = copy_usage(
            arrays.metadata, arrays.state, positions if self.track_usage else positions[:0]
        )
        return arrays._replace(keys=keys, metadata=usage, values=values)

    def in_buckets(self, buckets: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
        """Return the keys of buckets [first, end), sorted by (bucket, key), and their rows."""
        check_buckets(buckets)
        first, end = buckets
        keys, rows = np.empty(len(self), np.int64), np.empty(len(self), np.int64)
        count = _collect(self.arrays, first, end, keys, rows)
        return _sorted_by_bucket(keys[:count], rows[:count])

    def memory(self) -> dict[str, int]:
        """Return the bytes that index, keys, metadata, values and what was saved have taken."""
        touched = int(self.arrays.state[NUM_TOUCHED])
        values = touched * self.arrays.values.shape[1] * 4
        if self.tiered is not None:
            values = touched * PLACE_BYTES + self.tiered.nbytes
        return {
            "index": self.arrays.entries.nbytes,
            "keys": touched * KEY_BYTES,
            "metadata": touched * USAGE_BYTES * self.track_usage,
            "rows": values,
            "frozen": 0 if self._frozen is None else self._frozen.nbytes,
        }


def memory_of(
    num_keys: int, width: int, *, track_usage: bool = True, density: Density = IN_MEMORY
) -> int:
    """Return the bytes that `Rows` of so many keys and this width take where none were removed."""
    row_bytes = KEY_BYTES + USAGE_BYTES * track_usage + 4 * width
    return lines_for(num_keys, density) * _LINE_BYTES + num_keys * row_bytes


def lines_for(num_keys: int, density: Density) -> int:
    """Return how many lines the index of so many keys has."""
    lines = _MIN_LINES
    while num_keys > int(lines * density.keys_a_line):
        lines = more_lines(lines, density)
    return lines


def more_lines(lines: int, density: Density) -> int:
    """Return how many lines an index of so many has when it has grown."""
    return lines + (lines if lines < _SMALL else int(lines * density.part))
