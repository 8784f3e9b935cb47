"""Buckets that come to a shard from others, read from cuts while all of them go on.

The first cut is read whole, of those buckets; then what each later one has that changed since. All
of it goes where the rows will be, in the shard's own tables, and counts for nothing there until the
shard goes by the new routing. So what is left for that moment is what the last cut has.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import numpy.typing as npt

from embedding import BloomBlocks, CounterEntries, EmbeddingVariable, TableEntries, TableSpec
from embedding.arrow import COUNTER_SCHEMA, counters_from_arrow, entries_of, matrix, row_schema
from embedding.kernels.mixing import buckets_of
from embedding.spec.admission import BloomAdmission
from ps.checkpoint.chosen import Chosen
from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.manifest import CheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.write import REMOVED_SCHEMA, bloom_schema
from ps.spec import StoreSpec

# Rows that are put into a table while others wait for it.
AT_ONCE = 4096

Int64Array = npt.NDArray[np.int64]
Locked = Callable[[], AbstractContextManager[None]]


class Incoming:
    """What comes to one shard.

    Args:
        tables: of the shard; they own nothing of what comes.
        coming: bool[4096], the buckets that come.
        blocks: [first, end) of dense blocks that come, as many ranges as it takes.
        store: by which the shard will go.
        locked: holds the tables against everything else while some rows are put into them.

    Attributes:
        step: of the last cut that was read, -1: of none.
        rows, nbytes: that were put into tables so far.
        given_up: nothing is put into the tables any more once this is set, with them locked.
        dense: these blocks at that step, float32[blocks, width], with the number of the first one.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingVariable],
        coming: npt.NDArray[np.bool_],
        blocks: Sequence[tuple[int, int]],
        store: StoreSpec,
        *,
        locked: Locked,
    ) -> None:
        self.store = store
        self.tables = list(tables)
        self.step = -1
        self.rows = self.nbytes = 0
        self.given_up = False
        self.dense: list[tuple[int, npt.NDArray[np.float32]]] = []
        self._coming = Chosen.of(coming)
        self._blocks = blocks
        self._locked = locked
        self._seal = ""

    def read(self, reader: CheckpointReader) -> int:
        """Bring what comes to the step of a cut; return the bytes of the rows that it took.

        Raises:
            CheckpointError: the cut is damaged, or lies on other ones than the cut before.
        """
        before = self.nbytes
        if self.step < 0:
            for table in self.tables:
                self._all_of(table, reader)
        else:
            deltas = reader.deltas_on(self._seal)
            if deltas is None:
                raise CheckpointError(
                    f"{reader.directory} does not lie on the checkpoint of step {self.step}, from"
                    " which buckets were taken"
                )
            for files in deltas:
                for table in self.tables:
                    self._changes_of(table, files)
        self.dense = [(blocks[0], reader.dense_rows(blocks)) for blocks in self._blocks]
        self.step, self._seal = reader.manifest.step, reader.seal
        return self.nbytes - before

    def _all_of(self, table: EmbeddingVariable, reader: CheckpointReader) -> None:
        spec, coming = table.spec, self._coming
        for blocks in coming.bloom_blocks(reader, spec):
            self._put(table, blocks)
        if len(table) == 0:
            table.expect_rows(coming.num_rows(reader, spec))
        for found in coming.entries(reader, spec):
            self._put(table, found)

    def _changes_of(self, table: EmbeddingVariable, files: CheckpointFiles) -> None:
        spec = table.spec
        for part in self._coming.ranges:
            for keys in self._removed(spec, files, part):
                for start in range(0, keys.size, AT_ONCE):
                    with self._open():
                        table.remove(keys[start : start + AT_ONCE])
            for found in _changed(spec, files, part):
                if isinstance(found, BloomBlocks):
                    self._put(table, self._coming.own_blocks(found))
                else:
                    self._put(table, self._coming.own_entries(found))

    def _removed(
        self, spec: TableSpec, files: CheckpointFiles, part: tuple[int, int]
    ) -> Iterator[Int64Array]:
        for batch in files.batches(f"tables/{spec.name}/removed-", REMOVED_SCHEMA, part):
            keys = batch.column(0).to_numpy()
            yield keys[self._coming.own[buckets_of(keys)]]

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Hold the tables, which still take in what comes."""
        with self._locked():
            if self.given_up:
                raise CheckpointError("buckets are not taken in any more: their routing stays")
            yield

    def _put(
        self, table: EmbeddingVariable, found: TableEntries | CounterEntries | BloomBlocks
    ) -> None:
        """Put what comes into a table, a little at a time."""
        if isinstance(found, BloomBlocks):
            with self._open():
                table.import_bloom(found)
            return
        for start in range(0, found.keys.size, AT_ONCE):
            some = found.take(np.arange(start, min(start + AT_ONCE, found.keys.size)))
            with self._open():
                if isinstance(some, TableEntries):
                    table.import_rows(some)
                else:
                    table.import_counters(some)
            self.rows += some.keys.size
            self.nbytes += sum(getattr(some, name).nbytes for name in some.__slots__)


def _changed(
    spec: TableSpec, files: CheckpointFiles, part: tuple[int, int]
) -> Iterator[TableEntries | CounterEntries | BloomBlocks]:
    """Yield what a delta has of some buckets of a table."""
    folder = f"tables/{spec.name}"
    for batch in files.batches(f"{folder}/rows-", row_schema(spec), part):
        yield entries_of(batch, spec)
    for batch in files.batches(f"{folder}/counters-", COUNTER_SCHEMA, part):
        yield counters_from_arrow(batch)
    if isinstance(spec.admission, BloomAdmission):
        for batch in files.batches(f"{folder}/bloom-", bloom_schema(spec.admission), part):
            yield BloomBlocks(batch.column(0).to_numpy(), matrix(batch.column(1)))
