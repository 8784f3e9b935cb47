"""Checkpoint files: Arrow files that other tools can open, and a manifest that is written last.

    manifest.json                              specs, step, size and sha256 of every file, its own
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

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from embedding import (
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
    numbers_of,
    parts_table,
)
from ps.checkpoint.file_rows import counters_of, rows_of
from ps.routing import BLOCK_SIZE
from ps.shard.dense import DenseBlocks
from ps.shard.shard import Shard
from runtime.durable import new_file, partial_path, publish

_BLOOM_BYTES_AT_ONCE = 16 << 20

REMOVED_SCHEMA = pa.schema([("key", pa.int64())])
"""Columns of the keys that went since the parent of a delta."""


# Writing ------------------------------------------------------------------------------------------


def write_shard(
    directory: str | Path, shard: Shard, *, digests: dict[str, BucketDigests] | None = None
) -> list[FileEntry]:
    """Write one shard's files below `directory`; return what the manifest says of them.

    Args:
        digests: of each table, that are given what is read on the way.
    """
    root = Path(directory)
    buckets = shard.routing.bucket_range(shard.index)
    suffix = f"{shard.index:05d}-of-{shard.routing.num_shards:05d}.arrow"
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
    schema = block_schema(shard.dense.rule)
    path = Path("dense") / f"blocks-{suffix}"
    entries.append(_write(root, path, schema, _block_batches(shard.dense, schema), parts))
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
                        numbers = numbers_of(batch)
                        within = int(numbers[0]), int(numbers[-1]) + 1
                        parts.append(sink.end_part(name, batch.num_rows, within))
    return FileEntry(name, sink.length, sink.hexdigest(), rows)


def bloom_schema(rule: BloomAdmission) -> pa.Schema:
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


def block_schema(rule: OptimizerRule) -> pa.Schema:
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
