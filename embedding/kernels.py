"""The kernels of an embedding variable: a pull, and what an apply does before it updates.

Both go over the keys in blocks, in passes that each leave the memory time to answer: hash and
prefetch the index, probe and prefetch the row, then copy or write.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.admission import ALWAYS, BLOOM, COUNTER, PROBABILISTIC, Admission, is_drawn
from embedding.bloom import bloom_count
from embedding.counters import add_counts, counted, take_count
from embedding.index import BLOCK, find, find_from, geometry_of, insert, prefetch_homes
from embedding.initial_values import InitialValues, fill_initial
from embedding.precision import FLOAT32, read_vector, write_vector
from embedding.prefetch import prefetch, prefetch_row
from embedding.rows import FREQUENCY, SPLIT, VERSION, RowArrays, take_row

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


@njit(cache=True, nogil=True)
def pull_rows(
    rows: RowArrays,
    precision: int,
    admission: Admission,
    initial: InitialValues,
    default_value: np.float32,
    keys: Int64Array,
    counts: npt.NDArray[np.uint32],
    step: int,
    values: Float32Array,
    admitted: UInt8Array,
) -> None:
    """Write vectors and admitted bits, changing nothing else; no counts: 0 for each key."""
    dim = values.shape[1]
    entries, stored = rows.entries, rows.values.view(np.uint32)
    vector_width = dim if precision == FLOAT32 else (dim + 1) // 2
    narrow = np.empty((1, dim), np.uint32)
    kind, min_count = admission.kind, admission.min_count
    counters, counter_metadata = admission.counters.entries, admission.counters.metadata
    bloom, hashes = admission.bloom.counters, admission.bloom.hashes
    geometry = geometry_of(entries, rows.state[SPLIT])
    counter_geometry = geometry_of(counters, admission.counters.state[SPLIT])
    slots, found = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        length = min(BLOCK, keys.size - start)
        prefetch_homes(entries, geometry, keys, start, length, slots)
        for i in range(length):
            found[i] = find_from(entries, keys[start + i], slots[i], geometry.mask)
            if found[i] >= 0:
                prefetch_row(rows.values, found[i], vector_width)
        for i in range(length):
            out = start + i
            admitted[out] = 1
            if found[i] >= 0:
                read_vector(stored, found[i], precision, values, out, dim)
                continue
            if kind != ALWAYS:
                count = np.int64(counts[out]) if counts.size > 0 else np.int64(0)
                if kind == PROBABILISTIC:
                    passes = is_drawn(admission.seed, admission.probability, keys[out], step, count)
                elif kind == BLOOM:
                    passes = bloom_count(bloom, hashes, keys[out]) + count >= min_count
                else:
                    known = counted(counters, counter_metadata, counter_geometry, keys[out])
                    passes = known + count >= min_count
                if not passes:
                    admitted[out] = 0
                    for c in range(dim):
                        values[out, c] = default_value
                    continue
            fill_initial(values, out, dim, initial, keys[out])
            if precision != FLOAT32:
                write_vector(narrow, 0, precision, values, out, dim)
                read_vector(narrow, 0, precision, values, out, dim)


@njit(cache=True, nogil=True)
def settle_keys(
    rows: RowArrays,
    precision: int,
    dim: int,
    admission: Admission,
    initial: InitialValues,
    initial_slots: Float32Array,
    keys: Int64Array,
    counts: Int64Array,
    has_gradient: UInt8Array,
    step: int,
    positions: Int64Array,
) -> None:
    """Count each key and give rows to those that get one; room for all has been made.

    Args:
        initial_slots: float32[sum of the slots' widths], what follows the vector of a new row.
        has_gradient: empty: 1 for each key.
        positions: int64[n], written: the row to update, or -1.
    """
    entries, metadata = rows.entries, rows.metadata
    geometry = geometry_of(entries, rows.state[SPLIT])
    slots = np.empty(BLOCK, np.uint64)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        prefetch_homes(entries, geometry, keys, start, end - start, slots)
        num_missing = 0
        for i in range(start, end):
            row = find_from(entries, keys[i], slots[i - start], geometry.mask)
            positions[i] = row
            if row >= 0:
                prefetch(metadata, row, 0)
            else:
                num_missing += 1
        if num_missing > 0:
            _create(
                rows, precision, dim, admission, initial, initial_slots,
                keys, has_gradient, positions, start, end,
            )  # fmt: skip
            if admission.kind == COUNTER:
                add_counts(admission.counters, keys, counts, step, positions, start, end)
        for i in range(start, end):
            if positions[i] >= 0:
                metadata[positions[i], FREQUENCY] += counts[i]
                metadata[positions[i], VERSION] = step
                if has_gradient.size > 0 and has_gradient[i] == 0:
                    positions[i] = -1


@njit(cache=True, nogil=True)
def _create(
    rows: RowArrays,
    precision: int,
    dim: int,
    admission: Admission,
    initial: InitialValues,
    initial_slots: Float32Array,
    keys: Int64Array,
    has_gradient: UInt8Array,
    positions: Int64Array,
    start: int,
    end: int,
) -> None:
    """Give rows to the keys of a block that have a gradient and no row."""
    entries, metadata, values, state = rows.entries, rows.metadata, rows.values, rows.state
    geometry = geometry_of(entries, state[SPLIT])
    stored = values.view(np.uint32)
    vector_width = values.shape[1] - initial_slots.size
    vector = np.empty((1, dim), np.float32)
    counters, bloom, hashes = admission.counters, admission.bloom.counters, admission.bloom.hashes
    counter_geometry = geometry_of(counters.entries, counters.state[SPLIT])
    for i in range(start, end):
        if positions[i] >= 0 or (has_gradient.size > 0 and has_gradient[i] == 0):
            continue
        # Looked for once more, so that even a repeated key can't get two rows.
        row = find(entries, geometry, keys[i])
        if row < 0:
            row = take_row(metadata, state)
            insert(entries, geometry, keys[i], row)
            if admission.kind == BLOOM:
                metadata[row, FREQUENCY] = bloom_count(bloom, hashes, keys[i])
            else:
                metadata[row, FREQUENCY] = take_count(
                    counters.entries, counters.metadata, counters.state, counter_geometry, keys[i]
                )
            if precision == FLOAT32:
                fill_initial(values, row, dim, initial, keys[i])
            else:
                fill_initial(vector, 0, dim, initial, keys[i])
                write_vector(stored, row, precision, vector, 0, dim)
            for c in range(initial_slots.size):
                values[row, vector_width + c] = initial_slots[c]
        positions[i] = row
