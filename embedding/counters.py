"""Counters of keys that have no row yet, and the rule by which a key gets one."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.index import find, insert, remove
from embedding.rows import FREQUENCY, NUM_ROWS, VERSION, free_row, take_row

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CounterEntries:
    """Counters as columns, each int64[n]: key, frequency, version."""

    keys: Int64Array
    frequency: Int64Array
    version: Int64Array


@njit(cache=True, nogil=True, inline="always")
def counted(entries: Int64Array, metadata: Int64Array, key: np.int64) -> np.int64:
    """Return the frequency of the counter of a key, 0 where it has none."""
    counter = find(entries, key)
    return metadata[counter, FREQUENCY] if counter >= 0 else np.int64(0)


@njit(cache=True, nogil=True, inline="always")
def add_count(
    entries: Int64Array,
    metadata: Int64Array,
    state: Int64Array,
    key: np.int64,
    count: np.int64,
    step: int,
) -> None:
    """Count occurrences of a key that has no row; room for its counter has been made."""
    counter = find(entries, key)
    if counter < 0:
        counter = take_row(metadata, state)
        insert(entries, key, counter)
        metadata[counter, FREQUENCY] = 0
    metadata[counter, FREQUENCY] += count
    metadata[counter, VERSION] = step


@njit(cache=True, nogil=True, inline="always")
def take_count(
    entries: Int64Array, metadata: Int64Array, state: Int64Array, key: np.int64
) -> np.int64:
    """Remove the counter of a key that gets a row; return its frequency, 0 where it has none."""
    frequency = np.int64(0)
    if state[NUM_ROWS] > 0:
        counter = remove(entries, key)
        if counter >= 0:
            frequency = metadata[counter, FREQUENCY]
            free_row(metadata, state, counter)
    return frequency
