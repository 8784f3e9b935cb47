"""Frequency and version of rows: int64 each, of which memory holds 32 bits as long as that is all.

An array of them is uint32[2 x rows, 2]: the low words of each row, and behind those of all rows the
high ones. Memory of these is taken only where one is not 0, and nobody reads them before
`state[WIDE]` says that some may not be: frequencies reach 2^32 in few tables, versions in none that
counts steps.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Int64Array = npt.NDArray[np.int64]
UInt32Array = npt.NDArray[np.uint32]

FREQUENCY, VERSION = 0, 1  # columns
WIDE = 7  # place in the state of rows
USAGE_BYTES = 8  # of a row

_LOW = np.int64(0xFFFFFFFF)
_WORD = np.int64(32)


@njit(cache=True, nogil=True, inline="always")
def usage_at(metadata: UInt32Array, state: Int64Array, row: np.int64, column: int) -> np.int64:
    """Return the frequency or version of one row."""
    value = np.int64(metadata[row, column])
    if state[WIDE] != 0:
        value |= np.int64(metadata[metadata.shape[0] // 2 + row, column]) << _WORD
    return value


@njit(cache=True, nogil=True, inline="always")
def set_usage(
    metadata: UInt32Array, state: Int64Array, row: np.int64, column: int, value: np.int64
) -> None:
    """Set the frequency or version of one row."""
    metadata[row, column] = np.uint32(value & _LOW)
    high = value >> _WORD
    if state[WIDE] != 0 or high != 0:
        state[WIDE] = 1
        metadata[metadata.shape[0] // 2 + row, column] = np.uint32(high & _LOW)


@njit(cache=True, nogil=True)
def usage_of(metadata: UInt32Array, state: Int64Array, rows: Int64Array, column: int) -> Int64Array:
    """Return the frequency or version of each row: int64[n]."""
    values = np.empty(rows.size, np.int64)
    for i in range(rows.size):
        values[i] = usage_at(metadata, state, rows[i], column)
    return values


@njit(cache=True, nogil=True)
def write_usage(
    metadata: UInt32Array,
    state: Int64Array,
    rows: Int64Array,
    frequency: Int64Array,
    version: Int64Array,
) -> None:
    """Set frequency and version of rows, int64[n] each."""
    for i in range(rows.size):
        set_usage(metadata, state, rows[i], FREQUENCY, frequency[i])
        set_usage(metadata, state, rows[i], VERSION, version[i])


@njit(cache=True, nogil=True)
def copy_usage(metadata: UInt32Array, state: Int64Array, rows: Int64Array) -> UInt32Array:
    """Return an array in which row i has what row rows[i] has."""
    n, high = rows.size, metadata.shape[0] // 2
    copy = np.zeros((2 * n, 2), np.uint32)
    for i in range(n):
        copy[i] = metadata[rows[i]]
        if state[WIDE] != 0:
            copy[n + i] = metadata[high + rows[i]]
    return copy
