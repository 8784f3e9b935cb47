"""Rows to columns and back: what exports and imports do with all rows at once."""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.prefetch import AHEAD, prefetch
from embedding.kernels.row_copy import copy_rows, put_rows
from embedding.table.index import BLOCK
from embedding.table.precision import FLOAT32, read_vectors, write_vector
from embedding.table.row_arrays import RowArrays
from embedding.table.usage import FREQUENCY, VERSION, usage_at, write_usage

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def read_rows(
    rows: RowArrays,
    positions: Int64Array,
    precision: int,
    track_usage: bool,
    frequency: Int64Array,
    version: Int64Array,
    vectors: Float32Array,
    slots: Float32Array,
) -> None:
    """Copy rows to columns.

    Args:
        positions: int64[n], the rows.
        precision: of the vectors, see `precision`.
        track_usage: whether rows have a frequency and a version.
        frequency, version: int64[n], written where rows have them.
        vectors: float32[n, dim], written.
        slots: float32[n, sum of the slots' widths], written.
    """
    metadata, values = rows.metadata, rows.values
    first_slot = values.shape[1] - slots.shape[1]
    n = positions.size
    for start in range(0, n, BLOCK):
        part = slice(start, min(start + BLOCK, n))
        read_vectors(values, positions[part], precision, vectors[part])
        copy_rows(values, positions[part], first_slot, slots[part])
    if not track_usage:
        return
    for i in range(n):
        prefetch(metadata, positions[min(i + AHEAD, n - 1)], 0)
        frequency[i] = usage_at(metadata, rows.state, positions[i], FREQUENCY)
        version[i] = usage_at(metadata, rows.state, positions[i], VERSION)


@njit(cache=True, nogil=True)
def write_rows(
    rows: RowArrays,
    positions: Int64Array,
    precision: int,
    track_usage: bool,
    frequency: Int64Array,
    version: Int64Array,
    vectors: Float32Array,
    slots: Float32Array,
) -> None:
    """Copy columns to rows, vectors rounded to the nearest; arguments as of `read_rows`."""
    values = rows.values
    first_slot = values.shape[1] - slots.shape[1]
    if track_usage:
        write_usage(rows.metadata, rows.state, positions, frequency, version)
    if precision == FLOAT32:
        put_rows(vectors, positions, 0, values)
    else:
        for i in range(positions.size):
            write_vector(values, positions[i], precision, vectors, i, vectors.shape[1])
    put_rows(slots, positions, first_slot, values)


@njit(cache=True, nogil=True)
def write_vectors(
    rows: RowArrays, positions: Int64Array, precision: int, vectors: Float32Array
) -> None:
    """Overwrite the vectors of rows alone; arguments as of `write_rows`."""
    for i in range(positions.size):
        write_vector(rows.values, positions[i], precision, vectors, i, vectors.shape[1])
