"""Read a checkpoint, of a delta with all that it lies on, as if it were one full checkpoint."""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from embedding import (
    BloomBlocks,
    CounterEntries,
    TableEntries,
    TableSpec,
    rule_for,
)
from embedding.arrow import (
    COUNTER_SCHEMA,
    counters_from_arrow,
    entries_of,
    matrix,
    row_schema,
)
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.admission import BloomAdmission
from ps.checkpoint.chain import open_chain, same_tables
from ps.checkpoint.file_parts import CheckpointError
from ps.checkpoint.files import CheckpointFiles
from ps.checkpoint.key_set import KeySet
from ps.checkpoint.manifest import FORMAT_VERSION, Manifest
from ps.checkpoint.write import REMOVED_SCHEMA, block_schema, bloom_schema
from ps.routing import BLOCK_SIZE
from ps.spec import StoreSpec
from runtime.places import Place, place_of

ALL_BUCKETS = (0, NUM_BUCKETS)


class CheckpointReader:
    """The one reader of checkpoint files.

    Of a chain it reads the newest first: what that says of a key, be it that it was removed, is
    what holds, whatever older ones say. So every key is given once. It takes nine bytes or two
    times that of memory for each key that a delta names.

    Args:
        directory: path or URL that holds the manifest; those that a delta lies on stand beside it.
        known: folders that were opened before, see `open_chain`.

    Attributes:
        manifest, store: of the checkpoint itself.
        seal: the checksum of its manifest.

    Raises:
        CheckpointError: there is no manifest, it is not ours, or a file is missing or damaged.
    """

    manifest: Manifest
    store: StoreSpec

    def __init__(
        self, directory: str | Place, known: dict[Place, CheckpointFiles] | None = None
    ) -> None:
        self.directory = place_of(directory)
        self.chain: list[CheckpointFiles] = open_chain(self.directory, known)
        self.manifest, self.store = self.chain[0].manifest, self.chain[0].store
        self.seal = self.chain[0].seal

    @property
    def bytes_read(self) -> int:
        """Bytes of files read so far, without manifests."""
        return sum(files.bytes_read for files in self.chain)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files of the chain, without manifests."""
        return sum(entry.bytes for files in self.chain for entry in files.manifest.files)

    def table_names(self) -> list[str]:
        return [table.name for table in self.store.tables]

    def rows(
        self, table: TableSpec, buckets: tuple[int, int] = ALL_BUCKETS
    ) -> Iterator[TableEntries]:
        """Read the rows of a table whose keys are in some buckets, part by part."""
        for entries in self.entries(table, buckets, counters=False):
            if isinstance(entries, TableEntries):
                yield entries

    def counters(
        self, table: TableSpec, buckets: tuple[int, int] = ALL_BUCKETS
    ) -> Iterator[CounterEntries]:
        """Read the counters of a table's unadmitted keys in some buckets, part by part."""
        for entries in self.entries(table, buckets, rows=False):
            if isinstance(entries, CounterEntries):
                yield entries

    def entries(
        self,
        table: TableSpec,
        buckets: tuple[int, int] = ALL_BUCKETS,
        *,
        rows: bool = True,
        counters: bool = True,
        without: str | None = None,
    ) -> Iterator[TableEntries | CounterEntries]:
        """Read the rows and the counters of a table in some buckets, each key once.

        Args:
            without: a file that says what is in extents, and is not to be read.
        """
        folder = f"tables/{table.name}"
        schema = row_schema(table)
        seen = KeySet()
        for files in self.chain:
            names = files is not self.chain[-1]  # what lies below needs to know all that it names
            for kind, wanted, columns in (
                ("rows", rows, schema),
                ("counters", counters, COUNTER_SCHEMA),
                ("removed", False, REMOVED_SCHEMA),
            ):
                if not (wanted or names):
                    continue
                for batch in files.batches(f"{folder}/{kind}-", columns, buckets, without=without):
                    new = _unseen(batch, seen)
                    if names:
                        seen.add(batch.column(0).to_numpy())
                    if not (wanted and new.num_rows):
                        continue
                    if kind == "rows":
                        yield entries_of(new, table)
                    else:
                        yield counters_from_arrow(new)

    def named_above(self, table: TableSpec) -> KeySet:
        """Return the keys of a table that deltas name, which hides what the full one says."""
        seen, folder = KeySet(), f"tables/{table.name}"
        kinds = (
            ("rows", row_schema(table)),
            ("counters", COUNTER_SCHEMA),
            ("removed", REMOVED_SCHEMA),
        )
        for files, (kind, columns) in itertools.product(self.chain[:-1], kinds):
            for batch in files.batches(f"{folder}/{kind}-", columns, ALL_BUCKETS):
                seen.add(batch.column(0).to_numpy())
        return seen

    @property
    def num_deltas(self) -> int:
        """How many deltas lie on one another here: 0 of a full checkpoint."""
        return len(self.chain) - 1

    def can_bear(self, store: StoreSpec) -> bool:
        """Whether a delta of a store may lie on it: shards may be others, tables are the same."""
        return self.manifest.format_version >= FORMAT_VERSION and same_tables(self.store, store)

    def deltas_on(self, seal: str) -> list[CheckpointFiles] | None:
        """Return the deltas of the chain that came after a checkpoint, the oldest first.

        Args:
            seal: of the manifest of that one.

        Returns:
            none where it is this one; None where it is not in the chain.
        """
        for at, files in enumerate(self.chain):
            if files.seal == seal:
                return self.chain[:at][::-1]
        return None

    def num_rows(self, table: TableSpec, buckets: tuple[int, int] = ALL_BUCKETS) -> int:
        """Return about how many rows of a table have keys in some buckets; nothing of them is read.

        Of a chain those of the full one that it lies on.
        """
        return self.chain[-1].num_rows(f"tables/{table.name}/rows-", buckets)

    def has_extents(self, table: TableSpec) -> bool:
        """Return whether values of rows of a table are in extents, see `placed`."""
        return any(files.has_extents(table.name) for files in self.chain)

    def bloom_blocks(
        self, table: TableSpec, buckets: tuple[int, int] = ALL_BUCKETS
    ) -> Iterator[BloomBlocks]:
        """Read the blocks of a table's Bloom filter of some buckets, part by part."""
        if not isinstance(table.admission, BloomAdmission):
            return
        schema = bloom_schema(table.admission)
        seen = np.zeros(NUM_BUCKETS, np.bool_)
        for files in self.chain:
            for batch in files.batches(f"tables/{table.name}/bloom-", schema, buckets):
                numbers = batch.column(0).to_numpy()
                new = ~seen[numbers]
                seen[numbers] = True
                blocks = matrix(batch.column(1))
                if not new.all():
                    numbers, blocks = numbers[new], blocks[new]
                if numbers.size:
                    yield BloomBlocks(numbers, blocks)

    def dense_rows(self, blocks: tuple[int, int] | None = None) -> np.ndarray:
        """Read dense blocks [first, end) with their slots, float32[blocks, width]."""
        first, end = blocks or (0, self.store.num_blocks)
        rule = rule_for(self.store.dense_optimizer, sparse=False)
        try:
            found = np.zeros((end - first, rule.row_width(BLOCK_SIZE)), np.float32)
        except (MemoryError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory} has {end - first} dense blocks, for which there is no memory"
            ) from error
        seen = np.zeros(end - first, np.bool_)
        for batch in self.chain[0].batches("dense/blocks-", block_schema(rule), (first, end)):
            numbers = batch.column(0).to_numpy()
            columns = [matrix(batch.column(i)) for i in range(1, batch.num_columns)]
            found[numbers - first] = np.hstack(columns)
            seen[numbers - first] = True
        if not seen.all():
            raise CheckpointError(f"{self.directory} lacks {int((~seen).sum())} dense blocks")
        return found

    def dense_vector(self) -> np.ndarray:
        """Read all dense parameters, float32[dense size]."""
        values = self.dense_rows()[:, :BLOCK_SIZE]
        return np.ascontiguousarray(values).reshape(-1)[: self.store.dense_size]

    def check_sizes(self) -> None:
        """Check that every file of the chain is there and as long as it was; none is read.

        Raises:
            CheckpointError: one is not.
        """
        for files in self.chain:
            files.check_sizes()

    def verify(self) -> None:
        """Check size and digest of every file of the chain, and that the lists of parts fit.

        Raises:
            CheckpointError: a file is missing or is not what was written.
        """
        for files in self.chain:
            files.verify()


def _unseen(batch: pa.RecordBatch, seen: KeySet) -> pa.RecordBatch:
    """Return the rows whose keys nothing newer has named; the batch itself where all are new."""
    if not len(seen):
        return batch
    there = seen.has(batch.column(0).to_numpy())
    return batch.filter(pa.array(~there)) if there.any() else batch
