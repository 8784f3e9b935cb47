"""Write what a chain of checkpoints holds as one full checkpoint, sorted, with its digest.

Rows from elsewhere may take their place in it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedding import CounterEntries, TableEntries, TableSpec, rule_for
from embedding.arrow import COUNTER_SCHEMA, counters_to_arrow, row_schema, to_arrow
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of
from embedding.spec.admission import BloomAdmission
from ps.checkpoint.bucket_ranges import blocks_of, counters_of, ranges_of, rows_of
from ps.checkpoint.digest import PART_BYTES, BucketDigests, model_digest
from ps.checkpoint.file_parts import FileEntry, FilePart
from ps.checkpoint.manifest import write_manifest
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.write import (
    begin_checkpoint,
    bloom_batch,
    bloom_schema,
    file_suffix,
    give_up_checkpoint,
    parts_writer,
    publish_checkpoint,
    write_blocks,
    write_parts_list,
)
from runtime.places import Place

_SUFFIX = file_suffix(0, 1)


def compact(
    reader: CheckpointReader, path: Place, others: Mapping[str, TableEntries] | None = None
) -> tuple[Place, str]:
    """Write a full checkpoint that holds what a chain does; return its folder and its digest.

    It is of one shard, and restores on any number. Memory is taken for a range of buckets.

    Args:
        path: of the new checkpoint; where the name is taken it gets a number.
        others: rows of tables, by name, each key once: they take the place of what the chain has
            of these keys.

    Raises:
        CheckpointError: a file of the chain is missing or damaged.
        OSError: it could not be written; nothing is left of it.
    """
    partial = begin_checkpoint(path)
    try:
        digest = _write(reader, partial, others or {})
        return publish_checkpoint(partial, path), digest
    except BaseException:
        give_up_checkpoint(partial)
        raise


def _write(reader: CheckpointReader, root: Place, others: Mapping[str, TableEntries]) -> str:
    entries: list[FileEntry] = []
    parts: list[FilePart] = []
    digests: dict[str, npt.NDArray[np.uint8]] = {}
    for spec in reader.store.tables:
        taken = BucketDigests((0, NUM_BUCKETS))
        its = others.get(spec.name, TableEntries.empty(spec))
        entries += _write_table(reader, spec, root, parts, taken, its)
        digests[spec.name] = taken.digests()
    rule = rule_for(reader.store.dense_optimizer, sparse=False)
    rows = reader.dense_rows()
    entries.append(write_blocks(root, _SUFFIX, rule, rows, 0, parts))
    entries.append(write_parts_list(root, _SUFFIX, parts))
    digest = model_digest(digests, [hashlib.sha256(row).digest() for row in rows])
    manifest = reader.manifest
    write_manifest(
        root,
        replace(
            manifest,
            kind="full",
            parent=None,
            sorted=True,
            store={**manifest.store, "num_shards": 1},
            job={**manifest.job, "model_digest": digest},
            files=tuple(entries),
        ),
    )
    return digest


def _write_table(
    reader: CheckpointReader,
    spec: TableSpec,
    root: Place,
    parts: list[FilePart],
    digests: BucketDigests,
    others: TableEntries,
) -> list[FileEntry]:
    folder = Path("tables") / spec.name
    ranges = ranges_of(spec.name, reader)
    # Parts of a file follow one another, so each kind is gone through by itself.
    entries = []
    with parts_writer(root, folder / f"rows-{_SUFFIX}", row_schema(spec), parts) as writer:
        for buckets in ranges:
            rows = _with_others(rows_of(reader, spec, buckets), others, buckets)
            digests.add_rows(buckets, rows)
            for part in _parts_of(rows):
                for batch in to_arrow(part, spec).to_batches():
                    writer.write(batch)
    entries.append(writer.entry)
    with parts_writer(root, folder / f"counters-{_SUFFIX}", COUNTER_SCHEMA, parts) as writer:
        for buckets in ranges:
            counters = _without(counters_of(reader, spec, buckets), others)
            digests.add_counters(buckets, counters)
            for batch in counters_to_arrow(counters).to_batches():
                writer.write(batch)
    entries.append(writer.entry)
    if isinstance(spec.admission, BloomAdmission):
        schema = bloom_schema(spec.admission)
        with parts_writer(root, folder / f"bloom-{_SUFFIX}", schema, parts) as writer:
            for buckets in ranges:
                for found in blocks_of(reader, spec, buckets):
                    digests.add_blooms(found)
                    writer.write(bloom_batch(found, schema))
        entries.append(writer.entry)
    return entries


def _with_others(
    rows: TableEntries, others: TableEntries, buckets: tuple[int, int]
) -> TableEntries:
    """Return the rows of some buckets, sorted, with those of others in the place of their own."""
    numbers = buckets_of(others.keys)
    its = others.take(np.flatnonzero((numbers >= buckets[0]) & (numbers < buckets[1])))
    if not its.keys.size:
        return rows
    whole = rows.take(np.flatnonzero(~np.isin(rows.keys, its.keys))).joined(its)
    return whole.take(np.lexsort((whole.keys, buckets_of(whole.keys))))


def _without(counters: CounterEntries, others: TableEntries) -> CounterEntries:
    """Return the counters of keys that no row of others has: with a row they are admitted."""
    kept = ~np.isin(counters.keys, others.keys)
    return CounterEntries(*(getattr(counters, name)[kept] for name in CounterEntries.__slots__))


def _parts_of(rows: TableEntries) -> Iterator[TableEntries]:
    """Cut rows into parts that end between buckets, as each bucket is in one part only."""
    row_bytes = 24 + 4 * (rows.vectors.shape[1] + rows.slots.shape[1])
    at_once = max(1, PART_BYTES // row_bytes)
    buckets = buckets_of(rows.keys)
    start = 0
    while start < buckets.size:
        end = min(start + at_once, buckets.size)
        if end < buckets.size:
            first = int(np.searchsorted(buckets, buckets[end]))
            end = first if first > start else int(np.searchsorted(buckets, buckets[end], "right"))
        yield rows.take(np.arange(start, end))
        start = end
