"""The digest of a model: equal for equal rows, slots, counters and dense parameters.

    bucket = sha256 of three: what its rows give, its counters, and its block of the Bloom filter.
             Each is a sha256, or 32 zeros where there are no rows, or no counts but 0
    rows   = keys, frequencies, versions (int64), vectors, slots (float32), by ascending key, one
             column after another; counters alike: keys, frequencies, versions
    table  = sha256 of its 4096 bucket digests
    block  = sha256 of parameters and slots (float32)
    model  = sha256 over tables by name of (name, table), then of the block digests in order

Everything is little-endian. How many shards there are does not matter. Equality is promised
within a version of the software.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding import BloomBlocks, CounterEntries, EmbeddingVariable, TableEntries
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from embedding.table.buckets import bucket_parts
from ps.routing import Routing
from ps.shard.dense import DenseBlocks

DIGEST_BYTES = hashlib.sha256().digest_size

# Of rows that are read at once: they are still in the cache when they are hashed and written.
PART_BYTES = 8 << 20
_COUNTER_BYTES = 64 << 20
# The digest of a bucket without rows, counters or a block of the filter.
_NOTHING = np.frombuffer(hashlib.sha256(bytes(3 * DIGEST_BYTES)).digest(), np.uint8)


class BucketDigests:
    """Digests of the buckets of one table, from its parts as they are read for files too.

    Args:
        buckets: (first, end) of all that will be added.
    """

    def __init__(self, buckets: tuple[int, int]) -> None:
        self._first = buckets[0]
        self._parts = np.zeros((buckets[1] - buckets[0], 3, DIGEST_BYTES), np.uint8)

    def add_rows(self, buckets: tuple[int, int], rows: TableEntries) -> None:
        """Take all rows of some buckets, sorted by (bucket, key)."""
        columns = (rows.keys, rows.frequency, rows.version, rows.vectors, rows.slots)
        self._add(0, buckets, columns)

    def add_counters(self, buckets: tuple[int, int], counters: CounterEntries) -> None:
        """Take all counters of some buckets, sorted by (bucket, key)."""
        self._add(1, buckets, (counters.keys, counters.frequency, counters.version))

    def add_blooms(self, blooms: BloomBlocks) -> None:
        """Take blocks of the filter; those that are left out have counted nothing."""
        for bucket, block in zip(blooms.buckets.tolist(), blooms.counters, strict=True):
            if block.any():
                self._set(bucket, 2, hashlib.sha256(np.ascontiguousarray(block)))

    def digests(self) -> npt.NDArray[np.uint8]:
        """Return the digest of each bucket, uint8[buckets, 32]."""
        digests = np.tile(_NOTHING, (len(self._parts), 1))
        # Of 4096 buckets most hold nothing, where a table is small.
        filled = self._parts.any(axis=(1, 2))
        of_filled = b"".join(hashlib.sha256(part).digest() for part in self._parts[filled])
        digests[filled] = np.frombuffer(of_filled, np.uint8).reshape(-1, DIGEST_BYTES)
        return digests

    def _add(
        self, kind: int, buckets: tuple[int, int], columns: tuple[npt.NDArray[Any], ...]
    ) -> None:
        low, high = buckets
        starts = np.searchsorted(buckets_of(columns[0]), np.arange(low, high + 1))
        for i in np.flatnonzero(np.diff(starts)).tolist():
            part = slice(starts[i], starts[i + 1])
            digest = hashlib.sha256()
            for column in columns:
                if column[part].size:
                    digest.update(np.ascontiguousarray(column[part]))
            self._set(low + i, kind, digest)

    def _set(self, bucket: int, kind: int, digest: "hashlib._Hash") -> None:
        self._parts[bucket - self._first, kind] = np.frombuffer(digest.digest(), np.uint8)


def bucket_digests(table: EmbeddingVariable, buckets: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the digest of each bucket in [first, end), uint8[end - first, 32]."""
    digests = BucketDigests(buckets)
    for part, rows in table.export_parts(buckets, PART_BYTES):
        digests.add_rows(part, rows)
    for part in bucket_slices(table, buckets):
        digests.add_counters(part, table.export_counters(part))
        digests.add_blooms(table.export_bloom(part))
    return digests.digests()


def digests_of_shard(
    tables: Sequence[EmbeddingVariable], routing: Routing, shard: int
) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the digest of each bucket that a shard has, uint8[its buckets, 32], by table."""
    span = routing.bucket_span(shard)
    own = routing.buckets_of(shard) - span[0]
    return {table.spec.name: bucket_digests(table, span)[own] for table in tables}


def block_digests(dense: DenseBlocks) -> list[bytes]:
    """Return the digest of each dense block of a shard."""
    return [hashlib.sha256(np.ascontiguousarray(row)).digest() for row in dense.rows]


def model_digest(tables: Mapping[str, npt.NDArray[np.uint8]], blocks: Iterable[bytes]) -> str:
    """Combine bucket digests, uint8[4096, 32] for each table, and block digests into one."""
    digest = hashlib.sha256()
    for name in sorted(tables):
        assert tables[name].shape == (NUM_BUCKETS, DIGEST_BYTES), "every bucket has a digest"
        digest.update(name.encode())
        digest.update(hashlib.sha256(np.ascontiguousarray(tables[name])).digest())
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def shards_digest(
    routing: Routing,
    tables: Sequence[Mapping[str, npt.NDArray[np.uint8]]],
    blocks: Sequence[Sequence[bytes]],
) -> str:
    """Combine what each shard has into the digest of the model.

    Args:
        tables: of each shard, digests of its buckets by table, uint8[its buckets, 32].
        blocks: of each shard, digests of its dense blocks.
    """
    names = dict.fromkeys(name for of_shard in tables for name in of_shard)
    whole = {name: np.empty((NUM_BUCKETS, DIGEST_BYTES), np.uint8) for name in names}
    by_block: dict[int, bytes] = {}
    for shard in range(routing.num_shards):
        for name, digests in whole.items():
            digests[routing.buckets_of(shard)] = tables[shard][name]
        numbers = routing.blocks_of(shard).tolist()
        by_block.update(zip(numbers, blocks[shard], strict=True))
    return model_digest(whole, [by_block[number] for number in sorted(by_block)])


def bucket_slices(table: EmbeddingVariable, buckets: tuple[int, int]) -> list[tuple[int, int]]:
    """Cut a range of buckets so that each part has about 64 MiB of counters, or a 64th of them."""
    blooms = NUM_BUCKETS * table.bloom_block(0).nbytes
    return bucket_parts(24 * table.num_unadmitted + blooms, _COUNTER_BYTES, buckets)
