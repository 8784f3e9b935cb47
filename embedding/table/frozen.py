"""A table as it was at one moment, read piece by piece while it goes on."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from embedding.entries import CounterEntries, TableEntries
from embedding.table.bloom import BloomBlocks
from embedding.table.freezing import Frozen
from embedding.table.frozen_blocks import FrozenBlocks
from embedding.table.placed_rows import PlacedRows
from embedding.table.row_arrays import RowArrays
from embedding.table.tier_extents import HeldExtents
from embedding.table.usage import FREQUENCY, VERSION, usage_of

Int64Array = npt.NDArray[np.int64]


class FrozenTable:
    """What a table held when it was frozen, or what of it had changed since the time before.

    Made by `EmbeddingVariable.freeze`. Each of the three iterators gives a piece for each `next`,
    in no order but each row, counter and block once, and once only whoever asks again. During a
    `next`, and during `close`, the table must not change; pulls, and readers of the other two, may
    run beside. An iterator may be left in the middle.

    Args:
        rows, counters, bloom: what was frozen; bloom None: the table has no filter.
        removed: see below.
        read: copies rows at some positions.
        changed_only: whether only what had changed was frozen.
        held: extents with values of rows, which are there until this is closed; None: there are
            none.
        num_placed: how many rows are in these, about.
        place: finds which rows at some positions are in these, and where.

    Attributes:
        held, num_placed: see above.
        changed_only: whether this is what had changed, else all.
        removed: int64[n], ascending: the keys of rows and counters that were removed since the
            freeze before; one that came again is among the rows or counters too. Empty where all
            was frozen.
        num_rows, num_counters, num_blocks: how many the iterators give in all.
    """

    def __init__(
        self,
        rows: Frozen[RowArrays],
        counters: Frozen[RowArrays],
        bloom: FrozenBlocks | None,
        removed: Int64Array,
        read: Callable[[RowArrays, Int64Array], TableEntries],
        *,
        changed_only: bool,
        held: HeldExtents | None,
        num_placed: int,
        place: Callable[[RowArrays, Int64Array, HeldExtents], tuple[Int64Array, PlacedRows]],
    ) -> None:
        self.changed_only = changed_only
        self.removed = removed
        self.num_rows, self.num_counters = rows.count, counters.count
        self.num_blocks = 0 if bloom is None else bloom.count
        self._rows, self._counters, self._bloom = rows, counters, bloom
        self._read, self._place = read, place
        self.held, self.num_placed = held, num_placed

    def rows(self, max_rows: int) -> Iterator[TableEntries]:
        """Yield copies of the rows, at most `max_rows` at once.

        Raises:
            ValueError: `max_rows` is below 1.
            RuntimeError: the table was frozen again, or this closed, before all was read.
        """
        for arrays, positions in self._rows.parts(max_rows):
            yield self._read(arrays, positions)

    def rows_and_places(self, max_rows: int) -> Iterator[tuple[TableEntries, PlacedRows]]:
        """Yield what `rows` does, of rows that are in `held` where they are, and no values.

        Raises:
            ValueError, RuntimeError: as of `rows`.
        """
        for arrays, positions in self._rows.parts(max_rows):
            placed = PlacedRows.none()
            if self.held is not None:
                positions, placed = self._place(arrays, positions, self.held)
            yield self._read(arrays, positions), placed

    def counters(self, max_rows: int) -> Iterator[CounterEntries]:
        """Yield copies of the counters of keys without a row; the rest as of `rows`."""
        for arrays, positions in self._counters.parts(max_rows):
            yield CounterEntries(
                keys=arrays.keys[positions],
                frequency=usage_of(arrays.metadata, arrays.state, positions, FREQUENCY),
                version=usage_of(arrays.metadata, arrays.state, positions, VERSION),
            )

    def bloom(self, max_bytes: int) -> Iterator[BloomBlocks]:
        """Yield copies of blocks of the Bloom filter that hold anything, one at least.

        Blocks of one piece are in ascending order of their buckets; the rest as of `rows`.

        Args:
            max_bytes: of the counters of a piece.
        """
        if self._bloom is None:
            return
        most = max(1, max_bytes // self._bloom.block_bytes)
        for buckets, counters in self._bloom.parts(most):
            yield BloomBlocks(buckets, counters)

    @property
    def saved_bytes(self) -> int:
        """Bytes of copies of what was changed before it was read; another thread may ask."""
        frozen = (self._rows, self._counters, self._bloom)
        return sum(each.nbytes for each in frozen if each is not None)

    def close(self) -> None:
        """Give up what was not read: its iterators raise RuntimeError, and nothing is kept."""
        for frozen in (self._rows, self._counters, self._bloom):
            if frozen is not None:
                frozen.close()
        if self.held is not None:
            self.held.release()
