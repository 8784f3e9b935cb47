"""Tables of a checkpoint by ranges of buckets that fit into memory, sorted."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from embedding import BloomBlocks, CounterEntries, TableEntries, TableSpec
from embedding.kernels.mixing import buckets_of
from embedding.table.buckets import bucket_parts
from ps.checkpoint.read import CheckpointReader

_RANGE_BYTES = 128 << 20
_RANGE_BYTES_OF_EXTENTS = 1 << 30  # which are read as often as there are ranges


def ranges_of(table: str, *readers: CheckpointReader) -> list[tuple[int, int]]:
    """Return ranges of buckets of which the files of a table hold about so much, 64 at most."""
    num_bytes = sum(
        entry.bytes
        for reader in readers
        for files in reader.chain
        for entry in files.manifest.files
        if entry.path.startswith(f"tables/{table}/")
    )
    in_extents = any(files.has_extents(table) for reader in readers for files in reader.chain)
    return bucket_parts(num_bytes, _RANGE_BYTES_OF_EXTENTS if in_extents else _RANGE_BYTES)


def rows_of(reader: CheckpointReader, spec: TableSpec, buckets: tuple[int, int]) -> TableEntries:
    """Read all rows of some buckets, sorted by (bucket, key)."""
    parts = [TableEntries.empty(spec), *reader.rows(spec, buckets)]
    return TableEntries(*_sorted(parts, TableEntries.__slots__))


def counters_of(
    reader: CheckpointReader, spec: TableSpec, buckets: tuple[int, int]
) -> CounterEntries:
    """Read all counters of some buckets, sorted by (bucket, key)."""
    none = np.empty(0, np.int64)
    parts = [CounterEntries(none, none, none), *reader.counters(spec, buckets)]
    return CounterEntries(*_sorted(parts, CounterEntries.__slots__))


def _sorted(parts: Sequence[Any], names: Sequence[str]) -> list[np.ndarray]:
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
    order = np.lexsort((columns[0], buckets_of(columns[0])))
    return [column[order] for column in columns]


def blocks_of(
    reader: CheckpointReader, spec: TableSpec, buckets: tuple[int, int]
) -> Iterator[BloomBlocks]:
    """Read the blocks of a Bloom filter of some buckets, sorted, in one piece or none."""
    parts = list(reader.bloom_blocks(spec, buckets))
    if parts:
        numbers = np.concatenate([part.buckets for part in parts])
        order = np.argsort(numbers)
        yield BloomBlocks(numbers[order], np.concatenate([p.counters for p in parts])[order])
