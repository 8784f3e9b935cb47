"""The kernels of an embedding variable: a pull, and what an apply does before it updates.

Both go over the keys in blocks, in passes that each ask the memory ahead of what they read: rows
are found, then what lies in them is copied or written. Where a table has no rule of
admission, they are compiled without one, `admission` is None: handing it over takes 3 microseconds.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.prefetch import AHEAD, prefetch
from embedding.table.admission import BLOOM, COUNTER, PROBABILISTIC, Admission, is_drawn
from embedding.table.bloom import bloom_count
from embedding.table.counters import add_counts, counted, take_count
from embedding.table.index import BLOCK, find_batch, geometry_of
from embedding.table.initial_values import InitialValues, fill_initial
from embedding.table.precision import FIRST, FLOAT32, read_vectors, round_vector, write_vector
from embedding.table.row_arrays import BEFORE, SPLIT, RowArrays, find_or_add
from embedding.table.tier_slots import Slots, take_slot
from embedding.table.usage import FREQUENCY, VERSION, WIDE, set_usage, usage_at

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


@njit(cache=True, nogil=True)
def pull_rows(
    rows: RowArrays,
    precision: int,
    admission: Admission | None,
    initial: InitialValues,
    default_value: np.float32,
    keys: Int64Array,
    counts: npt.NDArray[np.uint32],
    step: int,
    values: Float32Array,
    admitted: UInt8Array,
) -> None:
    """Write vectors and admitted bits, changing nothing else; no counts: 0 for each key."""
    entries, split, before = rows.entries, rows.state[SPLIT], rows.state[BEFORE]
    stored = rows.values
    found = np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        num_missing = find_batch(entries, split, before, keys[start:end], found)
        admitted[start:end] = 1
        read_vectors(stored, found[: end - start], precision, values[start:end])
        if num_missing > 0:
            _pull_missing(
                precision, admission, initial, default_value,
                keys, counts, step, values, admitted, found, start, end,
            )  # fmt: skip


@njit(cache=True, nogil=True)
def pull_without_rows(
    precision: int,
    admission: Admission | None,
    initial: InitialValues,
    default_value: np.float32,
    keys: Int64Array,
    counts: npt.NDArray[np.uint32],
    step: int,
    values: Float32Array,
    admitted: UInt8Array,
    found: Int64Array,
) -> None:
    """`pull_rows` where vectors of keys with a row, `found`, were written, as of tiers."""
    admitted[:] = 1
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        _pull_missing(
            precision, admission, initial, default_value,
            keys, counts, step, values, admitted, found[start:end], start, end,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _pull_missing(
    precision: int,
    admission: Admission | None,
    initial: InitialValues,
    default_value: np.float32,
    keys: Int64Array,
    counts: npt.NDArray[np.uint32],
    step: int,
    values: Float32Array,
    admitted: UInt8Array,
    found: Int64Array,
    start: int,
    end: int,
) -> None:
    """Write what the keys of a block get that have no row: `found` is -1, `admitted` 1 so far."""
    dim = values.shape[1]
    if admission is not None:
        kind, min_count = admission.kind, admission.min_count
        counters, metadata = admission.counters.entries, admission.counters.metadata
        state = admission.counters.state
        geometry = geometry_of(counters, state[SPLIT], state[BEFORE])
        bloom, hashes = admission.bloom.counters, admission.bloom.hashes
    narrow = np.empty((1, dim), np.float32)
    for out in range(start, end):
        if found[out - start] >= 0:
            continue
        if admission is not None:
            count = np.int64(counts[out]) if counts.size > 0 else np.int64(0)
            if kind == PROBABILISTIC:
                passes = is_drawn(admission.seed, admission.probability, keys[out], step, count)
            elif kind == BLOOM:
                passes = bloom_count(bloom, hashes, keys[out]) + count >= min_count
            else:
                before = counted(counters, metadata, state, geometry, keys[out])
                passes = before + count >= min_count
            if not passes:
                admitted[out] = 0
                for c in range(dim):
                    values[out, c] = default_value
                continue
        fill_initial(values, out, dim, initial, keys[out])
        if precision != FLOAT32:
            round_vector(values, out, precision, dim, narrow)


@njit(cache=True, nogil=True)
def settle_keys(
    rows: RowArrays,
    precision: int,
    dim: int,
    admission: Admission | None,
    initial: InitialValues,
    initial_slots: Float32Array,
    keys: Int64Array,
    counts: Int64Array,
    has_gradient: UInt8Array,
    track_usage: bool,
    step: int,
    positions: Int64Array,
    slots: Slots | None,
) -> None:
    """Count each key and give rows to those that get one.

    Room for all has been made, and what is frozen of their rows and counters was saved.

    Args:
        initial_slots: float32[sum of the slots' widths], what follows the vector of a new row.
        has_gradient: empty: 1 for each key.
        track_usage: whether rows have a frequency and a version.
        positions: int64[n], written: the row to update, or -1; with slots the slot of that row.
        slots: of tiers, in which the rows to update are, with one free for each new row; else None.
    """
    metadata = rows.metadata
    new = np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        num_new = find_or_add(rows, keys, has_gradient, positions, start, end, new)
        if num_new > 0:
            _start_rows(
                rows, precision, dim, initial, initial_slots, keys, positions, new[:num_new], slots
            )
            if track_usage:
                for i in new[:num_new]:
                    set_usage(metadata, rows.state, positions[i], FREQUENCY, np.int64(0))
            if admission is not None:
                _hand_over_counts(rows, admission, keys, track_usage, positions, new[:num_new])
        if admission is not None and admission.kind == COUNTER:
            add_counts(admission.counters, keys, counts, step, positions, start, end)
        if track_usage:
            _count_rows(metadata, rows.state, positions[start:end], counts[start:end], step)
        if has_gradient.size > 0:
            for i in range(start, end):
                if has_gradient[i] == 0:
                    positions[i] = -1
        if slots is not None:
            for i in range(start, end):
                if positions[i] >= 0:
                    positions[i] = slots.places[positions[i]] - 1


@njit(cache=True, nogil=True)
def _count_rows(
    metadata: npt.NDArray[np.uint32],
    state: Int64Array,
    positions: Int64Array,
    counts: Int64Array,
    step: int,
) -> None:
    """Add to the frequencies of rows, -1: none, and make a step their version."""
    low, version = np.int64(0xFFFFFFFF), np.int64(step)
    is_narrow = state[WIDE] == 0 and 0 <= version <= low
    for i in range(positions.size):
        prefetch(metadata, max(positions[min(i + AHEAD, positions.size - 1)], 0), 0)
        row = positions[i]
        if row < 0:
            continue
        total = np.int64(metadata[row, FREQUENCY]) + counts[i]
        if is_narrow and total <= low:
            metadata[row, FREQUENCY], metadata[row, VERSION] = np.uint32(total), np.uint32(version)
        else:
            total = usage_at(metadata, state, row, FREQUENCY) + counts[i]
            set_usage(metadata, state, row, FREQUENCY, total)
            set_usage(metadata, state, row, VERSION, version)
            is_narrow = state[WIDE] == 0


@njit(cache=True, nogil=True)
def _start_rows(
    rows: RowArrays,
    precision: int,
    dim: int,
    initial: InitialValues,
    initial_slots: Float32Array,
    keys: Int64Array,
    positions: Int64Array,
    new: Int64Array,
    slots: Slots | None,
) -> None:
    """Write the initial vector and slots of new rows."""
    values = rows.values
    vector_width = values.shape[1] - initial_slots.size
    vector = np.empty((1, dim), np.float32)
    for i in new:
        row = positions[i]
        if slots is not None:
            row = take_slot(slots, row)
        if precision == FLOAT32:
            fill_initial(values, row, dim, initial, keys[i])
        else:
            fill_initial(vector, FIRST, dim, initial, keys[i])
            write_vector(values, row, precision, vector, FIRST, dim)
        for c in range(initial_slots.size):
            values[row, vector_width + c] = initial_slots[c]


@njit(cache=True, nogil=True)
def _hand_over_counts(
    rows: RowArrays,
    admission: Admission,
    keys: Int64Array,
    track_usage: bool,
    positions: Int64Array,
    new: Int64Array,
) -> None:
    """Remove the counters of new rows' keys; the rows get the frequency, if they have one."""
    metadata = rows.metadata
    bloom, hashes = admission.bloom.counters, admission.bloom.hashes
    counters, counter_metadata = admission.counters.entries, admission.counters.metadata
    counter_keys, flags = admission.counters.keys, admission.counters.flags
    counter_state = admission.counters.state
    geometry = geometry_of(counters, counter_state[SPLIT], counter_state[BEFORE])
    for i in new:
        if admission.kind == BLOOM:
            count = bloom_count(bloom, hashes, keys[i])
        else:
            count = take_count(
                counters, counter_metadata, counter_keys, flags, counter_state, geometry, keys[i]
            )
        if track_usage:
            set_usage(metadata, rows.state, positions[i], FREQUENCY, count)
