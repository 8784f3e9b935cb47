"""The kernels of an embedding variable: a pull, and what an apply does before it updates.

Both go over the keys in blocks, in passes that each leave the memory time to answer: hash and
prefetch the index, probe and prefetch the row, then copy or write.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.admission import ALWAYS, BLOOM, COUNTER, PROBABILISTIC, Admission, is_drawn
from embedding.bloom import bloom_count
from embedding.counters import add_count, counted, take_count
from embedding.index import BLOCK, find, find_from, insert, mask_of, prefetch_homes
from embedding.initial_values import InitialValues, fill_initial
from embedding.prefetch import prefetch, prefetch_row
from embedding.rows import FREQUENCY, VERSION, RowArrays, take_row

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


@njit(cache=True, nogil=True)
def pull_rows(
    rows: RowArrays,
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
    entries, stored = rows.entries, rows.values
    kind, min_count = admission.kind, admission.min_count
    counters, counter_metadata = admission.counters.entries, admission.counters.metadata
    bloom, hashes = admission.bloom.counters, admission.bloom.hashes
    mask = mask_of(entries)
    slots, found = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.int64)
    for start in range(0, keys.size, BLOCK):
        length = min(BLOCK, keys.size - start)
        prefetch_homes(entries, keys, start, length, slots)
        for i in range(length):
            found[i] = find_from(entries, keys[start + i], slots[i], mask)
            if found[i] >= 0:
                prefetch_row(stored, found[i], dim)
        for i in range(length):
            out = start + i
            admitted[out] = 1
            if found[i] >= 0:
                for c in range(dim):
                    values[out, c] = stored[found[i], c]
                continue
            if kind != ALWAYS:
                count = np.int64(counts[out]) if counts.size > 0 else np.int64(0)
                if kind == PROBABILISTIC:
                    passes = is_drawn(admission.seed, admission.probability, keys[out], step, count)
                elif kind == BLOOM:
                    passes = bloom_count(bloom, hashes, keys[out]) + count >= min_count
                else:
                    passes = counted(counters, counter_metadata, keys[out]) + count >= min_count
                if not passes:
                    admitted[out] = 0
                    for c in range(dim):
                        values[out, c] = default_value
                    continue
            fill_initial(values, out, dim, initial, keys[out])


@njit(cache=True, nogil=True)
def settle_keys(
    rows: RowArrays,
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
        initial_slots: float32[width of a row - dim], what follows the vector of a new row.
        has_gradient: empty: 1 for each key.
        positions: int64[n], written: the row to update, or -1.
    """
    entries, metadata = rows.entries, rows.metadata
    mask = mask_of(entries)
    slots = np.empty(BLOCK, np.uint64)
    for start in range(0, keys.size, BLOCK):
        end = min(start + BLOCK, keys.size)
        prefetch_homes(entries, keys, start, end - start, slots)
        num_missing = 0
        for i in range(start, end):
            row = find_from(entries, keys[i], slots[i - start], mask)
            positions[i] = row
            if row >= 0:
                prefetch(metadata, row, 0)
            else:
                num_missing += 1
        if num_missing > 0:
            _create(
                rows, admission, initial, initial_slots, keys, has_gradient, positions, start, end
            )
            if admission.kind == COUNTER:
                _count(admission.counters, keys, counts, step, positions, start, end)
        for i in range(start, end):
            if positions[i] >= 0:
                metadata[positions[i], FREQUENCY] += counts[i]
                metadata[positions[i], VERSION] = step
                if has_gradient.size > 0 and has_gradient[i] == 0:
                    positions[i] = -1


@njit(cache=True, nogil=True)
def _create(
    rows: RowArrays,
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
    dim = values.shape[1] - initial_slots.size
    counters, bloom, hashes = admission.counters, admission.bloom.counters, admission.bloom.hashes
    for i in range(start, end):
        if positions[i] >= 0 or (has_gradient.size > 0 and has_gradient[i] == 0):
            continue
        # Looked for once more, so that even a repeated key can't get two rows.
        row = find(entries, keys[i])
        if row < 0:
            row = take_row(metadata, state)
            insert(entries, keys[i], row)
            if admission.kind == BLOOM:
                metadata[row, FREQUENCY] = bloom_count(bloom, hashes, keys[i])
            else:
                metadata[row, FREQUENCY] = take_count(
                    counters.entries, counters.metadata, counters.state, keys[i]
                )
            fill_initial(values, row, dim, initial, keys[i])
            for c in range(initial_slots.size):
                values[row, dim + c] = initial_slots[c]
        positions[i] = row


@njit(cache=True, nogil=True)
def _count(
    counters: RowArrays,
    keys: Int64Array,
    counts: Int64Array,
    step: int,
    positions: Int64Array,
    start: int,
    end: int,
) -> None:
    """Count the keys of a block that still have no row."""
    entries, metadata, state = counters.entries, counters.metadata, counters.state
    for i in range(start, end):
        if positions[i] < 0:
            add_count(entries, metadata, state, keys[i], counts[i], step)
