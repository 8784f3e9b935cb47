"""Rows whose values lie in extents: what is said of them beside these, and how they are read."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.entries import TableEntries
from embedding.kernels.disk_reads import Layout
from embedding.kernels.row_copy import copy_rows
from embedding.spec.table import TableSpec
from embedding.table.precision import kind_of, read_vectors, stored_width
from embedding.table.tier_file import layout_of

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlacedRows:
    """Rows that are in extents.

    Args:
        records: int64[n], where, as the records of all these extents follow one another.
        keys, frequency, version: int64[n]; the last two are 0 where usage is not tracked.
    """

    records: Int64Array
    keys: Int64Array
    frequency: Int64Array
    version: Int64Array

    @classmethod
    def none(cls) -> "PlacedRows":
        """Return no rows."""
        return cls(*np.empty((4, 0), np.int64))

    def take(self, which: Int64Array | slice) -> "PlacedRows":
        """Return some of them."""
        return PlacedRows(
            self.records[which], self.keys[which], self.frequency[which], self.version[which]
        )


def segment_records(spec: TableSpec, num_bytes: int) -> int:
    """Return how many records a segment of so many bytes has; 0: it can't be one of this table."""
    layout = layout_of(stored_width(spec))
    blocks, rest = divmod(num_bytes, 4 * layout.block_words)
    return 0 if rest else blocks * layout.per_block


def rows_of_records(spec: TableSpec, segment: memoryview, records: Int64Array) -> Int64Array:
    """Return the row that stands before each record of a segment: int64[n]."""
    words = np.frombuffer(segment, np.int32)
    layout = layout_of(stored_width(spec))
    at = records // layout.per_block * layout.block_words
    return words[at + records % layout.per_block * layout.record_words].astype(np.int64)


def entries_of_records(
    spec: TableSpec, segment: memoryview, placed: PlacedRows, first: int
) -> TableEntries:
    """Return rows with the values that a segment has of them.

    Args:
        first: the number of the segment's first record.
    """
    width = stored_width(spec)
    values = np.empty((placed.keys.size, width), np.float32)
    words = np.frombuffer(segment, np.float32)
    _gather(words, layout_of(width), placed.records - first, values)
    entries = TableEntries(
        placed.keys,
        placed.frequency,
        placed.version,
        np.empty((placed.keys.size, spec.dim), np.float32),
        np.empty((placed.keys.size, TableEntries.empty(spec).slots.shape[1]), np.float32),
    )
    order = np.arange(placed.keys.size)
    read_vectors(values, order, kind_of(spec.value_dtype), entries.vectors)
    copy_rows(values, order, width - entries.slots.shape[1], entries.slots)
    return entries


@njit(cache=True, nogil=True)
def _gather(words: Float32Array, layout: Layout, records: Int64Array, values: Float32Array) -> None:
    for i in range(records.size):
        block, at = records[i] // layout.per_block, records[i] % layout.per_block
        first = block * layout.block_words + at * layout.record_words + 1
        for c in range(values.shape[1]):
            values[i, c] = words[first + c]
