"""Tables of a store pulled and updated together: one call of compiled code for all that are alike.

A pull of 26 tables took 7 microseconds for each of its calls, an apply 25, most of them to check
arrays and to hand them over. Tables that are plain (a key's row is all that there is of it: in
memory, of float32, without a rule of admission and without another table behind it) and have one
width and one optimizer are known to kernels by their addresses instead. All others go one by one.

Rows of such tables are numbered from the lowest address of any of them on, as rows of one array,
so that the optimizer's kernel updates those of all in one call, in the same order as one by one.
"""

import ctypes
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, njit

from embedding.kernels.addresses import address_of, pointer_at
from embedding.kernels.arguments import read_only
from embedding.kernels.finite import all_finite
from embedding.table.index import WORDS, continue_growth
from embedding.table.initial_values import InitialValues
from embedding.table.passes import pull_rows, settle_keys
from embedding.table.precision import FLOAT32
from embedding.table.row_arrays import BEFORE, LINES, NUM_ROWS, NUM_STATE, SPLIT, RowArrays
from embedding.table.rows import IN_MEMORY
from embedding.table.variable import KEYS_AT_ONCE, EmbeddingVariable

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

# What kernels know of a table: addresses, rows that it can have, its first row as one of all,
# whether it tracks usage, and how its rows start. How large its index is, is in its state.
(_INDEX, _METADATA, _VALUES, _KEYS, _FLAGS, _STATE, _ROWS, _MOST, _FIRST, _TRACKS,
 _INITIAL, _SEED, _FIELDS) = range(13)  # fmt: skip
_FLOAT32 = np.int64(FLOAT32)  # as a Python int its kernels would be compiled for it alone
_NO_COUNTS = read_only(np.empty(0, np.uint32))
_NO_FLAGS = read_only(np.empty(0, np.uint8))
_KEYS_A_LINE, _LINES_A_KEY = IN_MEMORY.keys_a_line, IN_MEMORY.lines_a_key


class Together:
    """The tables of a store.

    Args:
        tables: as long as they are the store's; pulls and updates of theirs go on as before.
    """

    def __init__(self, tables: Sequence[EmbeddingVariable]) -> None:
        self.tables = tables
        self._dims = np.array([table.spec.dim for table in tables], np.int64)
        self._runs: list[tuple[slice, _Alike | None]] = []
        start = 0
        for kind, alike in groupby(tables, key=_kind_of):
            run = list(alike)
            part = slice(start, start + len(run))
            self._runs.append((part, None if kind is None else _Alike(run)))
            start = part.stop

    def pull(
        self,
        keys: Int64Array,
        counts: npt.NDArray[np.uint32],
        sizes: Sequence[int],
        values: Float32Array,
        admitted: UInt8Array,
        *,
        step: int,
    ) -> None:
        """Read the vector of each key; a pure read, see `EmbeddingVariable.pull`.

        Args:
            keys: int64[n], table after table.
            counts: uint32[n], or empty: 0 each.
            sizes: keys of each table.
            values: float32[sum of sizes x dim], written.
            admitted: uint8[n], written.
        """
        starts = _starts(np.array(sizes, np.int64))
        value_starts = _starts(np.array(sizes, np.int64) * self._dims)
        for part, alike in self._runs:
            if alike is not None:
                alike.pull(
                    keys, starts[part.start : part.stop + 1],
                    values, value_starts[part.start : part.stop + 1], admitted, step,
                )  # fmt: skip
                continue
            for t in range(part.start, part.stop):
                table, own = self.tables[t], slice(starts[t], starts[t + 1])
                table.pull(
                    keys[own],
                    counts[own] if counts.size else None,
                    values[value_starts[t] : value_starts[t + 1]].reshape(-1, table.spec.dim),
                    admitted[own],
                    step=step,
                )

    def apply(
        self,
        keys: Int64Array,
        counts: Int64Array,
        gradients: Float32Array,
        has_gradient: UInt8Array | None,
        *,
        starts: Int64Array,
        sizes: Int64Array,
        gradient_starts: Int64Array,
        step: int,
        scale: float,
        scalars: Sequence[npt.NDArray[np.float64]],
    ) -> None:
        """Apply what one step brings, table after table; see `EmbeddingVariable.apply`.

        Args:
            keys, counts, has_gradient: of all tables.
            gradients: float32[any], rows of all tables.
            starts: int64[tables + 1], where each one's keys begin.
            sizes: int64[tables], how many of its part each one has; the rest means nothing.
            gradient_starts: int64[tables + 1], where each one's gradients begin.
            scalars: of each table's optimizer.
        """
        for part, alike in self._runs:
            own = slice(starts[part.start], starts[part.stop])
            rows = slice(gradient_starts[part.start], gradient_starts[part.stop])
            if alike is not None and alike.apply(
                keys[own],
                counts[own],
                gradients[rows],
                None if has_gradient is None else has_gradient[own],
                starts[part.start : part.stop + 1] - starts[part.start],
                sizes[part],
                step=step,
                scale=scale,
                scalars=scalars[part.start],
            ):
                continue
            for t in range(part.start, part.stop):
                table, end = self.tables[t], starts[t] + sizes[t]
                if sizes[t] == 0:
                    continue
                end_row = gradient_starts[t] + sizes[t] * table.spec.dim
                table.apply(
                    keys[starts[t] : end],
                    counts[starts[t] : end],
                    gradients[gradient_starts[t] : end_row].reshape(-1, table.spec.dim),
                    None if has_gradient is None else has_gradient[starts[t] : end],
                    step=step,
                    scale=scale,
                    scalars=scalars[t],
                )


def _starts(sizes: Int64Array) -> Int64Array:
    starts = np.zeros(sizes.size + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def _kind_of(table: EmbeddingVariable) -> tuple[Any, ...] | None:
    """Return what tables that are updated by one call have in common; None: it goes alone."""
    if not table.is_plain:
        return None
    values = table.rows.arrays.values
    row_bytes = values.strides[0]
    # Rows of one array lie whole rows apart.
    return table.spec.dim, table.spec.optimizer, row_bytes, address_of(values) % row_bytes


class _Alike:
    """Plain tables of one width and optimizer."""

    def __init__(self, tables: list[EmbeddingVariable]) -> None:
        self._tables = tables
        self._dim = tables[0].spec.dim
        self._rule = tables[0].rule
        self._initial_slots = self._rule.initial_slots(self._dim)
        arrays = [table.rows.arrays for table in tables]
        self._width = arrays[0].values.shape[1]
        bases = [address_of(each.values) for each in arrays]
        first = min(bases)
        ends = [base + each.values.nbytes for base, each in zip(bases, arrays, strict=True)]
        memory = (ctypes.c_char * (max(ends) - first)).from_address(first)
        # Between the tables is what is not theirs: nobody looks there.
        self._memory = np.frombuffer(memory, np.float32).reshape(-1, self._width)
        self._rows = [table.rows for table in tables]
        self._places = np.zeros((len(tables), _FIELDS), np.int64)
        self._spreads = np.zeros((len(tables), 2), np.float64)
        for t, (table, each) in enumerate(zip(tables, arrays, strict=True)):
            place, initial = self._places[t], table.initial_values
            place[_INDEX] = address_of(each.entries)
            place[_METADATA] = address_of(each.metadata)
            place[_VALUES] = bases[t]
            place[_KEYS] = address_of(each.keys)
            place[_FLAGS] = address_of(each.flags)
            place[_STATE] = address_of(each.state)
            place[_ROWS] = each.values.shape[0]
            place[_MOST] = table.rows.most_rows
            place[_FIRST] = (bases[t] - first) // (4 * self._width)
            place[_TRACKS] = table.spec.track_usage
            place[_INITIAL] = initial.kind
            place[_SEED] = np.uint64(initial.seed).view(np.int64)
            self._spreads[t] = initial.center, initial.spread

    def pull(
        self,
        keys: Int64Array,
        starts: Int64Array,
        values: Float32Array,
        value_starts: Int64Array,
        admitted: UInt8Array,
        step: int,
    ) -> None:
        _pull(
            self._places, self._spreads, self._width, read_only(keys), starts, step,
            values[value_starts[0] : value_starts[-1]].reshape(-1, self._dim), admitted,
        )  # fmt: skip

    def apply(
        self,
        keys: Int64Array,
        counts: Int64Array,
        gradients: Float32Array,
        has_gradient: UInt8Array | None,
        starts: Int64Array,
        sizes: Int64Array,
        *,
        step: int,
        scale: float,
        scalars: npt.NDArray[np.float64],
    ) -> bool:
        """Return False where the tables have to be updated one by one; nothing has changed then."""
        if any(table.has_counters for table in self._tables) or not all_finite(gradients):
            return False
        numbers = self._rule.check_scalars(scalars)
        keys, counts = read_only(keys), read_only(counts)
        gradients = read_only(gradients.reshape(-1, self._dim))
        flags = _NO_FLAGS if has_gradient is None else read_only(has_gradient)
        self._make_room(keys, flags, starts, sizes)
        positions = np.empty(keys.size, np.int64)
        for begin in range(0, keys.size, KEYS_AT_ONCE):
            end = min(begin + KEYS_AT_ONCE, keys.size)
            self._save_frozen(keys, starts, sizes, begin, end)
            _settle(
                self._places, self._spreads, self._width, self._dim, self._initial_slots,
                keys, counts, flags, starts, sizes, begin, end, step, positions,
            )  # fmt: skip
            self._rule.run(
                self._memory, positions[begin:end], gradients[begin:end], np.float32(scale), numbers
            )
        return True

    def _make_room(
        self, keys: Int64Array, flags: UInt8Array, starts: Int64Array, sizes: Int64Array
    ) -> None:
        """Make room for what an apply may add, as each table does."""
        t = _without_room(self._places, sizes, 0)
        while t >= 0:
            own = slice(starts[t], starts[t] + sizes[t])
            self._tables[t].make_room(keys[own], flags[own] if flags.size else flags)
            t = _without_room(self._places, sizes, t + 1)

    def _save_frozen(
        self, keys: Int64Array, starts: Int64Array, sizes: Int64Array, begin: int, end: int
    ) -> None:
        """Save what is frozen of the rows of keys [begin, end)."""
        for t, rows in enumerate(self._rows):
            if rows.is_being_read:
                own = slice(max(starts[t], begin), min(starts[t] + sizes[t], end))
                if own.start < own.stop:
                    rows.before_change(keys[own])


@njit(cache=True, nogil=True)
def _rows_at(place: Int64Array, width: int) -> RowArrays:
    rows = place[_ROWS]
    state = carray(pointer_at(place[_STATE]), (NUM_STATE,), np.int64)
    return RowArrays(
        carray(pointer_at(place[_INDEX]), (state[LINES], WORDS), np.int64),
        carray(pointer_at(place[_METADATA]), (2 * rows, 2), np.uint32),
        carray(pointer_at(place[_VALUES]), (rows, width), np.float32),
        carray(pointer_at(place[_KEYS]), (rows,), np.int64),
        carray(pointer_at(place[_FLAGS]), (rows,), np.uint8),
        state,
    )


@njit(cache=True, nogil=True)
def _initial_at(place: Int64Array, spread: npt.NDArray[np.float64]) -> InitialValues:
    return InitialValues(place[_INITIAL], spread[0], spread[1], np.uint64(place[_SEED]))


@njit(cache=True, nogil=True)
def _pull(  # type: ignore[no-untyped-def]
    places, spreads, width, keys, starts, step, values, admitted
):
    """`pull_rows` of each table; starts: int64[tables + 1], where each one's keys begin."""
    counts = np.empty(0, np.uint32)
    for t in range(places.shape[0]):
        first, last = starts[t], starts[t + 1]
        if first < last:
            pull_rows(
                _rows_at(places[t], width), _FLOAT32, None, _initial_at(places[t], spreads[t]),
                np.float32(0.0), keys[first:last], counts, step,
                values[first - starts[0] : last - starts[0]], admitted[first:last],
            )  # fmt: skip


@njit(cache=True, nogil=True)
def _without_room(places: Int64Array, sizes: Int64Array, first: int) -> int:
    """Go on with growth; return the first table from `first` on that has to grow, or -1."""
    for t in range(first, sizes.size):
        place, count = places[t], sizes[t]
        if count == 0:
            continue
        state = carray(pointer_at(place[_STATE]), (NUM_STATE,), np.int64)
        most = state[NUM_ROWS] + count
        if most > place[_MOST] or most > np.int64(state[LINES] * _KEYS_A_LINE):
            return t
        if state[SPLIT] > 0:
            entries = carray(pointer_at(place[_INDEX]), (state[LINES], WORDS), np.int64)
            state[SPLIT] = continue_growth(
                entries, state[SPLIT], state[BEFORE], _LINES_A_KEY * count
            )
    return -1


@njit(cache=True, nogil=True)
def _settle(  # type: ignore[no-untyped-def]
    places, spreads, width, dim, initial_slots, keys, counts, has_gradient, starts, sizes,
    begin, end, step, positions,
):  # fmt: skip
    """`settle_keys` of each table's part of the keys [begin, end); rows are those of all tables."""
    for t in range(places.shape[0]):
        place = places[t]
        stop = starts[t] + sizes[t]
        first, last = max(starts[t], begin), min(stop, end)
        if first < last:
            flags = has_gradient[first:last] if has_gradient.size > 0 else has_gradient
            settle_keys(
                _rows_at(place, width), _FLOAT32, dim, None, _initial_at(place, spreads[t]),
                initial_slots, keys[first:last], counts[first:last], flags,
                place[_TRACKS] != 0, step, positions[first:last], None,
            )  # fmt: skip
            for i in range(first, last):
                if positions[i] >= 0:
                    positions[i] += place[_FIRST]
        for i in range(max(stop, begin), min(starts[t + 1], end)):
            positions[i] = -1
