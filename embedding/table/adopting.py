"""Filling a table with rows that lie in extents, which it takes as they are: no value is read."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedding.table.placed_rows import PlacedRows
from embedding.table.rows import Rows
from embedding.table.usage import write_usage

Int64Array = npt.NDArray[np.int64]


class Adoption:
    """Takes rows into a table that has none; made by `TableState.adoption`.

    Args:
        rows: of the table, which has tiers.
    """

    def __init__(self, rows: Rows) -> None:
        assert rows.tiered is not None, "only a table with tiers has extents"
        self._rows, self._tiered = rows, rows.tiered

    def can_take(self, path: Path, segment_bytes: int) -> bool:
        """Return whether the table can have an extent as it lies."""
        return self._tiered.can_adopt(path, segment_bytes)

    def extent(self, path: Path, digests: list[bytes]) -> list[int]:
        """Take an extent; return the number that each of its segments has here.

        Raises:
            TierError, MemoryError: see `TierFile.adopt`.
        """
        return self._tiered.adopt_extent(path, digests)

    def take(self, placed: PlacedRows, numbers: Int64Array, segment: int) -> None:
        """Take rows of one segment.

        Args:
            placed: their records are numbers in the segment.
            numbers: int64[n], of rows, as they stand before their records.
            segment: as `extent` gave it.

        Raises:
            ValueError: a key or a number comes twice, or is too large; the table is of no use then.
        """
        self._rows.put(placed.keys, numbers)
        if self._rows.track_usage:
            arrays = self._rows.arrays
            write_usage(arrays.metadata, arrays.state, numbers, placed.frequency, placed.version)
        self._tiered.adopt(numbers, segment, placed.records)

    def end(self) -> None:
        """Let the table be used.

        Raises:
            MemoryError: the disk has no room to write beside what was taken.
        """
        self._rows.end_putting()
        self._tiered.end_adoption()
