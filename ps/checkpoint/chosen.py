"""What a checkpoint has of some buckets that need not lie side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding import BloomBlocks, CounterEntries, TableEntries, TableSpec
from embedding.kernels.mixing import buckets_of
from ps.checkpoint.read import CheckpointReader
from ps.routing import runs_of

# Each is looked for by itself, so that what lies between them is not read.
MOST_RANGES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Some buckets.

    Args:
        own: bool[4096].
        ranges: [first, end) that hold all of them, ascending.
        is_exact: whether these hold nothing else.
    """

    own: npt.NDArray[np.bool_]
    ranges: tuple[tuple[int, int], ...]
    is_exact: bool

    @classmethod
    def of(cls, own: npt.NDArray[np.bool_]) -> "Chosen":
        """Return the buckets that are marked, bool[4096]."""
        runs = runs_of(own)
        if len(runs) <= MOST_RANGES:
            return cls(own, tuple(runs), True)
        return cls(own, tuple(runs), True)._spanned()

    def num_rows(self, reader: CheckpointReader, table: TableSpec) -> int:
        """Return about how many rows of a table there are, as `CheckpointReader.num_rows`."""
        found = sum(reader.num_rows(table, part) for part in self.ranges)
        size = sum(end - first for first, end in self.ranges)
        return found if self.is_exact else round(found * int(self.own.sum()) / max(size, 1))

    def entries(
        self,
        reader: CheckpointReader,
        table: TableSpec,
        *,
        counters: bool = True,
        without: str | None = None,
    ) -> Iterator[TableEntries | CounterEntries]:
        """Read the rows and counters of a table, each key once; see `CheckpointReader.entries`."""
        # A segment of an extent has rows of all buckets, and is to be read once.
        of_all = len(self.ranges) > 1 and reader.has_extents(table)
        chosen = self._spanned() if of_all else self
        for part in chosen.ranges:
            for found in reader.entries(table, part, counters=counters, without=without):
                yield chosen.own_entries(found)

    def _spanned(self) -> "Chosen":
        """Return the same buckets as parts of one range."""
        return Chosen(self.own, ((self.ranges[0][0], self.ranges[-1][1]),), False)

    def bloom_blocks(self, reader: CheckpointReader, table: TableSpec) -> Iterator[BloomBlocks]:
        """Read the blocks of a table's Bloom filter."""
        for part in self.ranges:
            for blocks in reader.bloom_blocks(table, part):
                yield self.own_blocks(blocks)

    def own_blocks(self, blocks: BloomBlocks) -> BloomBlocks:
        """Return those of these buckets, of blocks that were read in one of the ranges."""
        if self.is_exact:
            return blocks
        mine = self.own[blocks.buckets]
        return BloomBlocks(blocks.buckets[mine], blocks.counters[mine])

    def own_entries(self, found: TableEntries | CounterEntries) -> TableEntries | CounterEntries:
        """Return those of these buckets, of entries that were read in one of the ranges."""
        if self.is_exact:
            return found
        return found.take(np.flatnonzero(self.own[buckets_of(found.keys)]))
