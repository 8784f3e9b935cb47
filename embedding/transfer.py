"""Rows to columns and back: what exports and imports do with all rows at once."""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.precision import read_vector, write_vector
from embedding.prefetch import prefetch, prefetch_row
from embedding.rows import FREQUENCY, VERSION, RowArrays

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_AHEAD = 16  # rows asked for before their turn


@njit(cache=True, nogil=True)
def read_rows(
    rows: RowArrays,
    positions: Int64Array,
    precision: int,
    frequency: Int64Array,
    version: Int64Array,
    vectors: Float32Array,
    slots: Float32Array,
) -> None:
    """Copy rows to columns.

    Args:
        positions: int64[n], the rows.
        precision: of the vectors, see `precision`.
        frequency, version: int64[n], written.
        vectors: float32[n, dim], written.
        slots: float32[n, sum of the slots' widths], written.
    """
    metadata, values = rows.metadata, rows.values
    first_slot = values.shape[1] - slots.shape[1]
    for i in range(positions.size):
        if i + _AHEAD < positions.size:
            ahead = positions[i + _AHEAD]
            prefetch(metadata, ahead, 0)
            prefetch_row(values, ahead, values.shape[1])
        row = positions[i]
        frequency[i] = metadata[row, FREQUENCY]
        version[i] = metadata[row, VERSION]
        read_vector(values, row, precision, vectors, i, vectors.shape[1])
        for c in range(slots.shape[1]):
            slots[i, c] = values[row, first_slot + c]


@njit(cache=True, nogil=True)
def write_rows(
    rows: RowArrays,
    positions: Int64Array,
    precision: int,
    frequency: Int64Array,
    version: Int64Array,
    vectors: Float32Array,
    slots: Float32Array,
) -> None:
    """Copy columns to rows, vectors rounded to the nearest; arguments as of `read_rows`."""
    metadata, values = rows.metadata, rows.values
    first_slot = values.shape[1] - slots.shape[1]
    for i in range(positions.size):
        row = positions[i]
        metadata[row, FREQUENCY] = frequency[i]
        metadata[row, VERSION] = version[i]
        write_vector(values, row, precision, vectors, i, vectors.shape[1])
        for c in range(slots.shape[1]):
            values[row, first_slot + c] = slots[i, c]


@njit(cache=True, nogil=True)
def write_vectors(
    rows: RowArrays, positions: Int64Array, precision: int, vectors: Float32Array
) -> None:
    """Overwrite the vectors of rows alone; arguments as of `write_rows`."""
    for i in range(positions.size):
        write_vector(rows.values, positions[i], precision, vectors, i, vectors.shape[1])
