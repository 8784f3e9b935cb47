"""What a checkpoint's files hold of a table, read once for the files and for the digest."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from embedding import EmbeddingVariable
from embedding.arrow import counters_to_arrow, to_arrow
from ps.checkpoint.digest import PART_BYTES, BucketDigests


def rows_of(
    table: EmbeddingVariable, buckets: tuple[int, int], digests: BucketDigests
) -> Iterator[pa.Table]:
    """Yield rows for a file; they are hashed for the digest while they are written."""
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as hashing:
        for part, rows in table.export_parts(buckets, PART_BYTES):
            hashed = hashing.submit(digests.add_rows, part, rows)
            yield to_arrow(rows, table.spec)
            hashed.result()


def counters_of(
    table: EmbeddingVariable, slices: list[tuple[int, int]], digests: BucketDigests
) -> Iterator[pa.Table]:
    """Yield counters for a file; they are hashed for the digest first."""
    for part in slices:
        counters = table.export_counters(part)
        digests.add_counters(part, counters)
        yield counters_to_arrow(counters)
