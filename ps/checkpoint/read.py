"""Read a checkpoint: its files are held against the manifest before anything is made of them."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

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
    check_no_nulls,
    counters_from_arrow,
    from_arrow,
    matrix,
    row_schema,
)
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.admission import BloomAdmission
from ps.checkpoint.file_parts import (
    MAX_PARTS_BYTES,
    PARTS,
    PARTS_SCHEMA,
    CheckpointError,
    FileEntry,
    FilePart,
    check_order,
    check_part,
    check_schema,
    parts_by_file,
    parts_from,
    read_parts,
)
from ps.checkpoint.manifest import MANIFEST, read_manifest
from ps.checkpoint.write import block_schema, bloom_schema
from ps.routing import BLOCK_SIZE
from ps.spec import StoreSpec

# Reading ------------------------------------------------------------------------------------------


class CheckpointReader:
    """The one reader of checkpoint files.

    Args:
        directory: that holds the manifest.

    Attributes:
        bytes_read: of files so far, without the manifest.

    Raises:
        CheckpointError: there is no manifest, it is not ours, or a file is missing or damaged.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory / MANIFEST)
        try:
            self.store = StoreSpec.from_json(self.manifest.store)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{self.directory / MANIFEST} does not describe a store: {error!r}"
            ) from error
        self._check_lists_all_rows()
        self._verified: set[str] = set()
        self.bytes_read = 0

    def table_names(self) -> list[str]:
        return [table.name for table in self.store.tables]

    def rows(
        self, table: TableSpec, buckets: tuple[int, int] = (0, NUM_BUCKETS)
    ) -> Iterator[TableEntries]:
        """Read the rows of a table whose keys are in some buckets, part by part."""
        prefix = f"tables/{table.name}/rows-"
        for batch in self._batches(prefix, row_schema(table), buckets):
            yield from_arrow(batch, table, allow_nonfinite=True)

    def counters(
        self, table: TableSpec, buckets: tuple[int, int] = (0, NUM_BUCKETS)
    ) -> Iterator[CounterEntries]:
        """Read the counters of a table's unadmitted keys in some buckets, part by part."""
        prefix = f"tables/{table.name}/counters-"
        for batch in self._batches(prefix, COUNTER_SCHEMA, buckets):
            yield counters_from_arrow(batch)

    def bloom_blocks(
        self, table: TableSpec, buckets: tuple[int, int] = (0, NUM_BUCKETS)
    ) -> Iterator[BloomBlocks]:
        """Read the blocks of a table's Bloom filter of some buckets, part by part."""
        if not isinstance(table.admission, BloomAdmission):
            return
        schema = bloom_schema(table.admission)
        for batch in self._batches(f"tables/{table.name}/bloom-", schema, buckets):
            yield BloomBlocks(batch.column(0).to_numpy(), matrix(batch.column(1)))

    def dense_rows(self, blocks: tuple[int, int] | None = None) -> np.ndarray:
        """Read dense blocks [first, end) with their slots, float32[blocks, width]."""
        first, end = blocks or (0, self.store.num_blocks)
        rule = rule_for(self.store.dense_optimizer, sparse=False)
        found = np.zeros((end - first, rule.row_width(BLOCK_SIZE)), np.float32)
        seen = np.zeros(end - first, np.bool_)
        for batch in self._batches("dense/blocks-", block_schema(rule), (first, end)):
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

    def _check_lists_all_rows(self) -> None:
        """Every shard writes one file of rows, and of a Bloom filter, for every table."""
        files = Counter(entry.path.rsplit("-", 3)[0] for entry in self.manifest.files)
        for table in self.store.tables:
            has_bloom = isinstance(table.admission, BloomAdmission)
            for kind in ("rows", "bloom") if has_bloom else ("rows",):
                found = files[f"tables/{table.name}/{kind}"]
                if found != self.store.num_shards:
                    raise CheckpointError(
                        f"{self.directory / MANIFEST} lists {found} files of {kind} of table"
                        f" {table.name}, but {self.store.num_shards} shards wrote one each"
                    )

    @cached_property
    def _parts(self) -> dict[str, list[FilePart]] | None:
        """The parts of each file; None where an earlier version wrote them, which listed none."""
        lists = [entry for entry in self.manifest.files if entry.path.startswith(PARTS)]
        parts: list[FilePart] = []
        for entry in lists:
            path = self.directory / entry.path
            if entry.bytes > MAX_PARTS_BYTES:
                raise CheckpointError(
                    f"{path} has {entry.bytes} bytes, a list of parts {MAX_PARTS_BYTES} at most"
                )
            with _naming(path):
                for _, batch in self._whole(entry, PARTS_SCHEMA):
                    parts += parts_from(batch)
        if not lists:
            return None
        with _naming(self.directory / f"{PARTS}*"):
            return parts_by_file(self.manifest.files, parts, num_blocks=self.store.num_blocks)

    def _batches(
        self, prefix: str, schema: pa.Schema, wanted: tuple[int, int]
    ) -> Iterator[pa.RecordBatch]:
        """Read what some files have of buckets, of dense/ of blocks, [first, end)."""
        parts = self._parts
        for entry in self.manifest.files:
            if not entry.path.startswith(prefix):
                continue
            found: Iterable[tuple[FilePart | None, pa.RecordBatch]]
            if parts is None:
                found = self._whole(entry, schema)
            else:
                of_file = parts.get(entry.path, [])
                found = read_parts(self.directory, entry, of_file, schema, wanted)
            with _naming(self.directory / entry.path):
                for part, batch in found:
                    check_no_nulls(batch)
                    numbers = check_order(batch)
                    if part is not None:
                        check_part(part, numbers)
                        self.bytes_read += part.num_bytes
                    start, stop = np.searchsorted(numbers, wanted)
                    if stop > start:
                        yield batch.slice(start, stop - start)

    def _whole(self, entry: FileEntry, schema: pa.Schema) -> Iterator[tuple[None, pa.RecordBatch]]:
        self._verify(entry)
        path = self.directory / entry.path
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            check_schema(path, reader.schema, schema)
            for number in range(reader.num_record_batches):
                yield None, reader.get_batch(number)

    def verify(self) -> None:
        """Check size and digest of every file, and that the lists of parts fit the files.

        Raises:
            CheckpointError: a file is missing or is not what was written.
        """
        for entry in self.manifest.files:
            with _naming(self.directory / entry.path):
                self._verify(entry)
        _ = self._parts

    def _verify(self, entry: FileEntry) -> None:
        """Check size and digest once, before a file's first use."""
        if entry.path in self._verified:
            return
        path = self.directory / entry.path
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.bytes_read += size
        if size != entry.bytes or digest != entry.sha256:
            raise CheckpointError(f"{path} is damaged: its size or checksum is not the manifest's")
        self._verified.add(entry.path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say of which file an error is."""
    try:
        yield
    except CheckpointError:
        raise
    except pa.ArrowException as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
