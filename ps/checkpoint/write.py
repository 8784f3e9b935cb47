"""Checkpoint files: Arrow files that other tools can open, and a manifest that is written last.

    manifest.json                              specs, step, size and checksum of every file, its own
    tables/NAME/rows-00000-of-00002.arrow      key, (frequency, version,) vector, slot_NAME...
    tables/NAME/counters-00000-of-00002.arrow  key, frequency, version of keys without a row
    tables/NAME/bloom-00000-of-00002.arrow     bucket, counters of its block of the Bloom filter
    tables/NAME/removed-00000-of-00002.arrow   key, of a delta: what went since its parent
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
import itertools
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embedding import (
    BloomBlocks,
    EmbeddingVariable,
    OptimizerRule,
)
from embedding.arrow import (
    COUNTER_SCHEMA,
    list_column,
    row_schema,
    slot_columns,
    slot_fields,
)
from embedding.spec.admission import BloomAdmission
from embedding.table.bloom import BloomSize
from ps.checkpoint.digest import PART_BYTES, BucketDigests, bucket_slices
from ps.checkpoint.file_parts import (
    PARTS,
    PARTS_SCHEMA,
    FileEntry,
    FilePart,
    HashedFile,
    Sink,
    numbers_of,
    parts_table,
)
from ps.checkpoint.file_rows import counters_of, rows_of
from ps.checkpoint.manifest import MANIFEST
from ps.routing import BLOCK_SIZE
from ps.shard.shard import Shard
from runtime.durable import Flushes, make_folder, partial_path, publish
from runtime.places import (
    Place,
    StoredPath,
    make_folder_at,
    new_file_at,
    place_of,
    remove_below,
)
from runtime.streamed_file import StreamedFile

Compression = Literal["none", "lz4", "zstd"]
"""How the columns of a part may be compressed, each by itself, as Arrow files have it."""

_BLOOM_BYTES_AT_ONCE = 16 << 20
_LEAST_NUMBER = 100_000_000  # of nine digits

REMOVED_SCHEMA = pa.schema([("key", pa.int64())])
"""Columns of the keys that went since the parent of a delta."""


# Writing ------------------------------------------------------------------------------------------


def write_shard(
    directory: str | Place, shard: Shard, *, digests: dict[str, BucketDigests] | None = None
) -> list[FileEntry]:
    """Write one shard's files below `directory`; return what the manifest says of them.

    Args:
        digests: of each table, that are given what is read on the way.
    """
    root = place_of(directory)
    buckets = shard.routing.bucket_span(shard.index)
    suffix = file_suffix(shard.index, shard.routing.num_shards)
    entries = []
    parts: list[FilePart] = []
    for table in shard.tables:
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
            schema = bloom_schema(table.spec.admission)
            blocks = _bloom_batches(table, buckets, schema, taken)
            entries.append(_write(root, folder / f"bloom-{suffix}", schema, blocks, parts))
    dense = shard.dense
    entries.append(write_blocks(root, suffix, dense.rule, dense.rows, dense.first_block, parts))
    entries.append(write_parts_list(root, suffix, parts))
    return entries


def begin_checkpoint(path: Place) -> Place:
    """Return an empty folder beside a checkpoint's place in which it is written.

    In a store, where nothing can be renamed, it is the place that the checkpoint will have: its
    name is one that nobody has had before, whoever still writes to another one.
    """
    if isinstance(path, StoredPath):
        return path.with_name(f"{path.name}-{_LEAST_NUMBER + secrets.randbelow(_LEAST_NUMBER)}")
    partial = partial_path(path)
    make_folder(partial)
    return partial


def publish_checkpoint(partial: Place, path: Place) -> Place:
    """Give a checkpoint that has its manifest its name, one that is free; return it.

    A name is taken where another history has come to the same step, or something broke there.
    """
    if not (isinstance(partial, Path) and isinstance(path, Path)):
        return partial
    for number in itertools.count(1):
        wanted = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not wanted.exists():
            publish(partial, wanted)
            return wanted
    raise AssertionError("unreachable")


def give_up_checkpoint(partial: Place) -> None:
    """Remove what was begun; what can't be removed now is left to the next sweep."""
    with contextlib.suppress(OSError):
        remove_below(partial, first=MANIFEST)


class PartsWriter:
    """Writes one file, part by part, and lists its parts.

    Args:
        sink: what the file's bytes go through.
        arrow: writes batches to it.
        name: of the file, relative to the manifest.
        parts: are added to; None: they are not listed.

    Attributes:
        entry: for the manifest, once the file is written.
    """

    entry: FileEntry

    def __init__(
        self, sink: HashedFile, arrow: Any, name: str, parts: list[FilePart] | None
    ) -> None:
        self._sink, self._arrow, self._name, self._parts = sink, arrow, name, parts
        self._rows = 0

    def write(self, batch: pa.RecordBatch, within: tuple[int, int] | None = None) -> None:
        """Write a batch as one part, where it has rows.

        Args:
            within: the buckets or blocks of its rows, [first, end); None: of its first row to its
                last one.
        """
        if not batch.num_rows:
            return
        self._arrow.write_batch(batch)
        self._rows += batch.num_rows
        if self._parts is None:
            return
        if within is None:
            numbers = numbers_of(batch)
            within = int(numbers[0]), int(numbers[-1]) + 1
        self._parts.append(self._sink.end_part(self._name, batch.num_rows, within))

    def end(self) -> None:
        """Note what was written; all of it is."""
        digest = self._sink.hexdigest(in_parts=self._parts is not None)
        self.entry = FileEntry(self._name, self._sink.length, digest, self._rows)


def _streamed(place: Place, file: IO[bytes]) -> contextlib.AbstractContextManager[Sink]:
    """Return what writes a file: where it lies in a store, whose package has threads, itself."""
    return StreamedFile(file) if isinstance(place, Path) else contextlib.nullcontext(file)


@contextlib.contextmanager
def parts_writer(
    root: Place,
    path: Path,
    schema: pa.Schema,
    parts: list[FilePart] | None = None,
    *,
    compression: Compression = "none",
    flushes: Flushes | None = None,
) -> Iterator[PartsWriter]:
    """Yield what writes a file below `root`, which is whole and on the disk after the block.

    Args:
        flushes: by which it is on the disk, later.
    """
    folder = (root / path).parent
    if flushes is not None and isinstance(folder, Path):
        flushes.make_folder(folder)
    else:
        make_folder_at(folder)
    options = pa.ipc.IpcWriteOptions(compression=None if compression == "none" else compression)
    place = root / path
    with new_file_at(place, flushes) as file, _streamed(place, file) as streamed:
        sink = HashedFile(streamed)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema, options=options) as arrow:
            writer = PartsWriter(sink, arrow, path.as_posix(), parts)
            yield writer
        writer.end()


def _write(
    root: Place,
    path: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table | pa.RecordBatch],
    parts: list[FilePart] | None = None,
    flushes: Flushes | None = None,
) -> FileEntry:
    """Write one file; list its parts where they are wanted: each batch is one."""
    with parts_writer(root, path, schema, parts, flushes=flushes) as writer:
        for table in tables:
            for batch in table.to_batches() if isinstance(table, pa.Table) else [table]:
                writer.write(batch)
    return writer.entry


def write_parts_list(
    root: Place, suffix: str, parts: list[FilePart], flushes: Flushes | None = None
) -> FileEntry:
    """Write the list of the parts of a shard's files."""
    path, tables = Path(f"{PARTS}{suffix}"), [parts_table(parts)]
    return _write(root, path, PARTS_SCHEMA, tables, flushes=flushes)


def write_blocks(
    root: Place,
    suffix: str,
    rule: OptimizerRule,
    rows: npt.NDArray[np.float32],
    first_block: int,
    parts: list[FilePart],
    flushes: Flushes | None = None,
) -> FileEntry:
    """Write a shard's dense blocks, float32[blocks, width]."""
    schema = block_schema(rule)
    batches = _block_batches(rule, rows, first_block, schema)
    return _write(root, Path("dense") / f"blocks-{suffix}", schema, batches, parts, flushes)


def file_suffix(shard: int, num_shards: int) -> str:
    """Return how the names of a shard's files end."""
    return f"{shard:05d}-of-{num_shards:05d}.arrow"


def bloom_schema(rule: BloomAdmission) -> pa.Schema:
    counter = pa.from_numpy_dtype(np.dtype(f"uint{rule.counter_bits}"))
    counters = pa.list_(counter, BloomSize.of(rule).counters)
    return pa.schema([("bucket", pa.int64()), ("counters", counters)])


def _bloom_batches(
    table: EmbeddingVariable, buckets: tuple[int, int], schema: pa.Schema, digests: BucketDigests
) -> Iterator[pa.RecordBatch]:
    first, end = buckets
    at_once = max(1, _BLOOM_BYTES_AT_ONCE // table.bloom_block(0).nbytes)
    for low in range(first, end, at_once):
        blocks = table.export_bloom((low, min(low + at_once, end)))
        digests.add_blooms(blocks)
        yield bloom_batch(blocks, schema)


def bloom_batch(blocks: BloomBlocks, schema: pa.Schema) -> pa.RecordBatch:
    """Return blocks of a Bloom filter as a batch of `bloom_schema`."""
    flat = pa.array(np.ascontiguousarray(blocks.counters).reshape(-1))
    width = schema.field("counters").type.list_size
    counters = pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.record_batch([pa.array(blocks.buckets), counters], schema=schema)


def block_schema(rule: OptimizerRule) -> pa.Schema:
    block = pa.list_(pa.float32(), BLOCK_SIZE)
    return pa.schema([("block", pa.int64()), ("values", block), *slot_fields(rule, BLOCK_SIZE)])


def _block_batches(
    rule: OptimizerRule, blocks: npt.NDArray[np.float32], first_block: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    at_once = max(1, PART_BYTES // (4 * blocks.shape[1]))
    for start in range(0, len(blocks), at_once):
        rows = blocks[start : start + at_once]
        numbers = pa.array(np.arange(len(rows)) + first_block + start, pa.int64())
        slots = slot_columns(rule, BLOCK_SIZE, rows[:, BLOCK_SIZE:])
        columns = [numbers, list_column(rows[:, :BLOCK_SIZE]), *slots]
        yield pa.record_batch(columns, schema=schema)
