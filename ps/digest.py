"""The digest of a model: equal for equal rows, slots, counters and dense parameters.

    bucket = sha256 of its rows by ascending key, then of its counters by ascending key, then of
             its block of the Bloom filter, if the table has one
    row    = key, frequency, version (int64), admitted (uint8) = 1, vector, slots (float32)
    table  = sha256 of its 4096 bucket digests
    block  = sha256 of parameters and slots (float32)
    model  = sha256 over tables by name of (name, table), then of the block digests in order

Everything is little-endian. How many shards there are does not matter. Equality is promised
within a version of the software.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding import EmbeddingVariable, rule_for
from embedding.buckets import bucket_parts
from embedding.mixing import NUM_BUCKETS, buckets_of
from ps.dense import DenseBlocks

DIGEST_BYTES = hashlib.sha256().digest_size

# What is exported at once, so that a digest of a large table needs little memory.
_PART_BYTES = 1 << 28


def bucket_digests(table: EmbeddingVariable, buckets: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return the digest of each bucket in [first, end), uint8[end - first, 32]."""
    first, end = buckets
    nothing = hashlib.sha256(bytes(table.bloom_block(first).nbytes) if end > first else b"")
    digests = np.tile(np.frombuffer(nothing.digest(), np.uint8), (end - first, 1))
    for low, high in bucket_slices(table, buckets):
        rows, counters = table.export((low, high)), table.export_counters((low, high))
        admitted = np.ones((len(rows.keys), 1), np.uint8)
        row_bytes = _as_bytes(
            rows.keys, rows.frequency, rows.version, admitted, rows.vectors, rows.slots
        )
        row_starts = _starts(rows.keys, low, high)
        not_admitted = np.zeros((len(counters.keys), 1), np.uint8)
        counter_bytes = _as_bytes(counters.keys, counters.frequency, counters.version, not_admitted)
        counter_starts = _starts(counters.keys, low, high)
        held = [buckets_of(rows.keys), buckets_of(counters.keys)]
        held.append(table.export_bloom((low, high)).buckets.astype(np.uint16))
        for i in (np.unique(np.concatenate(held)) - np.int64(low)).tolist():
            digest = hashlib.sha256(row_bytes[row_starts[i] : row_starts[i + 1]])
            digest.update(counter_bytes[counter_starts[i] : counter_starts[i + 1]])
            digest.update(np.ascontiguousarray(table.bloom_block(low + i)))
            digests[low + i - first] = np.frombuffer(digest.digest(), np.uint8)
    return digests


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


def bucket_slices(table: EmbeddingVariable, buckets: tuple[int, int]) -> list[tuple[int, int]]:
    """Cut a range of buckets so that each part holds about 256 MiB, or a 64th of the table.

    Every part costs a look through the whole index.
    """
    row_bytes = 24 + 4 * rule_for(table.spec.optimizer, sparse=True).row_width(table.spec.dim)
    num_bytes = row_bytes * len(table) + 24 * table.num_unadmitted
    return bucket_parts(num_bytes, _PART_BYTES, buckets)


def _as_bytes(*columns: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Lay columns side by side, uint8[n, bytes of a row]."""
    n = len(columns[0])
    if n == 0:
        return np.empty((0, 0), np.uint8)
    return np.hstack(
        [np.ascontiguousarray(c.reshape(n, -1)).view(np.uint8).reshape(n, -1) for c in columns]
    )


def _starts(keys: npt.NDArray[np.int64], low: int, high: int) -> npt.NDArray[np.int64]:
    """Where each bucket's rows start, int64[high - low + 1]; keys are sorted by bucket."""
    return np.searchsorted(buckets_of(keys), np.arange(low, high + 1))
