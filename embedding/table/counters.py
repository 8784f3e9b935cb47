"""Counters of keys that have no row yet, and the rule by which a key gets one."""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.table.index import (
    Geometry,
    find,
    geometry_of,
    home_of,
    insert_from,
    remove,
    search_from,
)
from embedding.table.row_arrays import (
    BEFORE,
    NUM_ROWS,
    SPLIT,
    WRITTEN,
    RowArrays,
    free_row,
    take_row,
)
from embedding.table.usage import FREQUENCY, VERSION, set_usage, usage_at

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
UInt32Array = npt.NDArray[np.uint32]


@njit(cache=True, nogil=True)
def add_counts(
    counters: RowArrays,
    keys: Int64Array,
    counts: Int64Array,
    step: int,
    positions: Int64Array,
    start: int,
    end: int,
) -> None:
    """Count the keys in [start, end) that have no row: whose position is -1.

    Room for their counters has been made.
    """
    entries, metadata, state = counters.entries, counters.metadata, counters.state
    flags = counters.flags
    geometry = geometry_of(entries, state[SPLIT], state[BEFORE])
    for i in range(start, end):
        if positions[i] >= 0:
            continue
        home, frequency = home_of(keys[i], geometry), np.int64(0)
        counter, _ = search_from(entries, home, geometry.lines, keys[i])
        if counter < 0:
            counter = take_row(counters.keys, flags, state, keys[i])
            insert_from(entries, home, geometry.lines, keys[i], counter)
        else:
            frequency = usage_at(metadata, state, counter, FREQUENCY)
        set_usage(metadata, state, counter, FREQUENCY, frequency + counts[i])
        set_usage(metadata, state, counter, VERSION, np.int64(step))
        flags[counter] = WRITTEN


@njit(cache=True, nogil=True, inline="always")
def counted(
    entries: Int64Array,
    metadata: UInt32Array,
    state: Int64Array,
    geometry: Geometry,
    key: np.int64,
) -> np.int64:
    """Return the frequency of the counter of a key, 0 where it has none."""
    counter = find(entries, geometry, key)
    return usage_at(metadata, state, counter, FREQUENCY) if counter >= 0 else np.int64(0)


@njit(cache=True, nogil=True)
def take_count(
    entries: Int64Array,
    metadata: UInt32Array,
    counter_keys: Int64Array,
    flags: UInt8Array,
    state: Int64Array,
    geometry: Geometry,
    key: np.int64,
) -> np.int64:
    """Remove the counter of a key that gets a row; return its frequency, 0 where it has none."""
    frequency = np.int64(0)
    if state[NUM_ROWS] > 0:
        counter = remove(entries, geometry, key)
        if counter >= 0:
            frequency = usage_at(metadata, state, counter, FREQUENCY)
            free_row(counter_keys, flags, state, counter)
    return frequency
