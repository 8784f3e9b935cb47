"""Checkpoint files: Arrow files that other tools can open, and a manifest that is written last.

    manifest.json                              specs, step, size and sha256 of every file, its own
    tables/NAME/rows-00000-of-00002.arrow      key, (frequency, version,) vector, slot_NAME...
    tables/NAME/counters-00000-of-00002.arrow  key, frequency, version of keys without a row
    tables/NAME/bloom-00000-of-00002.arrow     bucket, counters of its block of the Bloom filter
    dense/blocks-00000-of-00002.arrow          block, values, slot_NAME...
    parts-00000-of-00002.arrow                 which bytes of these files hold which buckets

Every file is written under another name and renamed when it is on the disk, so nothing of an older
checkpoint changes under who reads it. There is one file of each for every shard that wrote it; keys
are sorted by (bucket, key). Blocks of a Bloom filter that were never written are left out. A reader
takes the buckets that it wants from all of them, so any number of shards can restore: of files
whose parts are listed it reads only those parts, of others, as earlier versions wrote them, all. A
directory without a manifest is not a checkpoint.
"""

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding import (
    BloomBlocks,
    CounterEntries,
    EmbeddingVariable,
    OptimizerRule,
    TableEntries,
    TableSpec,
    rule_for,
)
from embedding.arrow import (
    COUNTER_SCHEMA,
    check_no_nulls,
    counters_from_arrow,
    from_arrow,
    list_column,
    matrix,
    row_schema,
    slot_columns,
    slot_fields,
)
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.admission import BloomAdmission
from embedding.table.bloom import BloomSize
from ps.checkpoint.digest import PART_BYTES, BucketDigests, bucket_slices
from ps.checkpoint.file_parts import (
    MAX_PARTS_BYTES,
    PARTS,
    PARTS_SCHEMA,
    CheckpointError,
    FileEntry,
    FilePart,
    HashedFile,
    check_order,
    check_part,
    check_schema,
    parts_by_file,
    parts_from,
    parts_table,
    read_parts,
)
from ps.checkpoint.file_rows import counters_of, rows_of
from ps.checkpoint.sealed_json import sealed_text, unsealed
from ps.shard.dense import DenseBlocks
from ps.spec import BLOCK_SIZE, StoreSpec
from runtime.durable import new_file, partial_path, publish, write_text
from runtime.typed import decoder_of, field_values

FORMAT = "synchromesh-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
_BLOOM_BYTES_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is.

    Args:
        kind: `full`; deltas come with their own reader.
        step: the global step after which it was taken.
        recovery_epoch: in which it was taken.
        store: tables and dense parameters, as StoreSpec.to_json.
        model: the dense model and the features, for those who predict.
        job: facts about the job that wrote it, for people.
        files: every data file.
        time: clock and counts with which a job goes on from here; empty where they were not kept.
    """

    kind: str
    step: int
    recovery_epoch: int
    store: dict[str, Any]
    model: dict[str, Any]
    job: dict[str, Any]
    files: tuple[FileEntry, ...]
    time: dict[str, Any] = field(default_factory=dict)


# Writing ------------------------------------------------------------------------------------------


def write_shard(
    directory: str | Path,
    *,
    tables: list[EmbeddingVariable],
    dense: DenseBlocks,
    shard: int,
    num_shards: int,
    buckets: tuple[int, int],
    digests: dict[str, BucketDigests] | None = None,
) -> list[FileEntry]:
    """Write one shard's files below `directory`; return what the manifest says of them.

    Args:
        digests: of each table, that are given what is read on the way.
    """
    root = Path(directory)
    suffix = f"{shard:05d}-of-{num_shards:05d}.arrow"
    entries = []
    parts: list[FilePart] = []
    for table in tables:
        folder = Path("tables") / table.spec.name
        slices = bucket_slices(table, buckets)
        taken = BucketDigests(buckets) if digests is None else digests[table.spec.name]
        rows = rows_of(table, buckets, taken)
        schema = row_schema(table.spec)
        entries.append(_write(root, folder / f"rows-{suffix}", schema, rows, parts))
        if table.num_unadmitted:
            counters = counters_of(table, slices, taken)
            path = folder / f"counters-{suffix}"
            entries.append(_write(root, path, COUNTER_SCHEMA, counters, parts))
        if isinstance(table.spec.admission, BloomAdmission):
            schema = _bloom_schema(table.spec.admission)
            blocks = _bloom_batches(table, buckets, schema, taken)
            entries.append(_write(root, folder / f"bloom-{suffix}", schema, blocks, parts))
    schema = _block_schema(dense.rule)
    path = Path("dense") / f"blocks-{suffix}"
    entries.append(_write(root, path, schema, _block_batches(dense, schema), parts))
    listed = iter([parts_table(parts)])
    entries.append(_write(root, Path(f"{PARTS}{suffix}"), PARTS_SCHEMA, listed))
    return entries


def begin_checkpoint(path: Path) -> Path:
    """Make the empty directory beside a checkpoint's place in which it is written."""
    partial = partial_path(path)
    partial.mkdir(parents=True)
    return partial


def publish_checkpoint(partial: Path, path: Path) -> Path:
    """Give a checkpoint that has its manifest its name, one that is free; return it.

    A name is taken where another history has come to the same step, or something broke there.
    """
    for number in itertools.count(1):
        wanted = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not wanted.exists():
            publish(partial, wanted)
            return wanted
    raise AssertionError("unreachable")


def write_manifest(directory: str | Path, manifest: Manifest) -> None:
    """Make the files a checkpoint: check that all are there, then write the manifest at once."""
    root = Path(directory)
    for entry in manifest.files:
        path = root / entry.path
        found = path.stat().st_size if path.exists() else None
        if found != entry.bytes:
            raise CheckpointError(
                f"{path} has {found} bytes, the shard that wrote it says {entry.bytes}."
                " run.dir must be one folder that every node sees"
            )
    data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    write_text(root / MANIFEST, sealed_text(data))


def _write(
    root: Path,
    path: Path,
    schema: pa.Schema,
    tables: Iterator[pa.Table | pa.RecordBatch],
    parts: list[FilePart] | None = None,
) -> FileEntry:
    """Write one file; list its parts where they are wanted: each batch is one."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    name, rows = path.as_posix(), 0
    with new_file(root / path) as file:
        sink = HashedFile(file)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema) as writer:
            for table in tables:
                batches = table.to_batches() if isinstance(table, pa.Table) else [table]
                for batch in batches:
                    if not batch.num_rows:
                        continue
                    writer.write_batch(batch)
                    rows += batch.num_rows
                    if parts is not None:
                        parts.append(sink.end_part(name, batch))
    return FileEntry(name, sink.length, sink.hexdigest(), rows)


def _bloom_schema(rule: BloomAdmission) -> pa.Schema:
    counter = pa.from_numpy_dtype(np.dtype(f"uint{rule.counter_bits}"))
    counters = pa.list_(counter, BloomSize.of(rule).counters)
    return pa.schema([("bucket", pa.int64()), ("counters", counters)])


def _bloom_batches(
    table: EmbeddingVariable, buckets: tuple[int, int], schema: pa.Schema, digests: BucketDigests
) -> Iterator[pa.RecordBatch]:
    first, end = buckets
    width = schema.field("counters").type.list_size
    at_once = max(1, _BLOOM_BYTES_AT_ONCE // table.bloom_block(0).nbytes)
    for low in range(first, end, at_once):
        blocks = table.export_bloom((low, min(low + at_once, end)))
        digests.add_blooms(blocks)
        flat = pa.array(np.ascontiguousarray(blocks.counters).reshape(-1))
        counters = pa.FixedSizeListArray.from_arrays(flat, width)
        yield pa.record_batch([pa.array(blocks.buckets), counters], schema=schema)


def _block_schema(rule: OptimizerRule) -> pa.Schema:
    block = pa.list_(pa.float32(), BLOCK_SIZE)
    return pa.schema([("block", pa.int64()), ("values", block), *slot_fields(rule, BLOCK_SIZE)])


def _block_batches(dense: DenseBlocks, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    at_once = max(1, PART_BYTES // (4 * dense.rows.shape[1]))
    for start in range(0, len(dense.rows), at_once):
        rows = dense.rows[start : start + at_once]
        numbers = pa.array(np.arange(len(rows)) + dense.first_block + start, pa.int64())
        slots = slot_columns(dense.rule, BLOCK_SIZE, rows[:, BLOCK_SIZE:])
        columns = [numbers, list_column(rows[:, :BLOCK_SIZE]), *slots]
        yield pa.record_batch(columns, schema=schema)


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
        self.manifest = _read_manifest(self.directory / MANIFEST)
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
        schema = _bloom_schema(table.admission)
        for batch in self._batches(f"tables/{table.name}/bloom-", schema, buckets):
            yield BloomBlocks(batch.column(0).to_numpy(), matrix(batch.column(1)))

    def dense_rows(self, blocks: tuple[int, int] | None = None) -> np.ndarray:
        """Read dense blocks [first, end) with their slots, float32[blocks, width]."""
        first, end = blocks or (0, self.store.num_blocks)
        rule = rule_for(self.store.dense_optimizer, sparse=False)
        found = np.zeros((end - first, rule.row_width(BLOCK_SIZE)), np.float32)
        seen = np.zeros(end - first, np.bool_)
        for batch in self._batches("dense/blocks-", _block_schema(rule), (first, end)):
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


def _read_manifest(path: Path) -> Manifest:
    try:
        size = path.stat().st_size
        text = path.read_bytes() if size <= MAX_MANIFEST_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"no checkpoint: {path}: {error.strerror or error}") from error
    if size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, a manifest {MAX_MANIFEST_BYTES} at most")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a checkpoint")
    try:
        data = unsealed(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    del data["format"]
    version = data.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this software reads {FORMAT_VERSION}"
        )
    try:
        data["files"] = [_in_order(FileEntry, entry) for entry in data["files"]]
        manifest: Manifest = _manifest_from(_in_order(Manifest, data))
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} lacks, or has wrong or unknown entries: {error}") from error
    for entry in manifest.files:
        parts = Path(entry.path).parts
        if Path(entry.path).is_absolute() or ".." in parts or "\0" in entry.path:
            raise CheckpointError(f"{path} names a file outside of its folder: {entry.path!r}")
    return manifest


_manifest_from = decoder_of(Manifest)


def _in_order(kind: type, data: dict[str, Any]) -> list[Any]:
    """Return the fields of a dataclass in order, of which JSON has the names."""
    return field_values(kind(**data))
