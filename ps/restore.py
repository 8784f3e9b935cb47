"""Fill a shard, or a whole store in one process, from a checkpoint."""

from collections.abc import Sequence

import numpy as np

from embedding import CounterEntries, EmbeddingVariable, TableEntries, TableSpec
from embedding.bloom import BloomSize
from embedding.mixing import NUM_BUCKETS
from embedding.spec import BloomAdmission, CounterAdmission
from ps.checkpoint import CheckpointError, CheckpointReader
from ps.shard import Shard
from ps.spec import StoreSpec, bucket_range


def check_fits(saved: StoreSpec, wanted: StoreSpec) -> None:
    """Raise CheckpointError where tables or dense parameters have another shape.

    A table that only the job has starts empty; one that only the checkpoint has is left out.
    """
    tables = {table.name: table for table in saved.tables}
    for table in wanted.tables:
        old = tables.get(table.name)
        if old is not None and (old.dim, old.optimizer.type) != (table.dim, table.optimizer.type):
            raise CheckpointError(
                f"table {table.name} has dim {old.dim} and optimizer {old.optimizer.type} in the"
                f" checkpoint, {table.dim} and {table.optimizer.type} in the job"
            )
        if old is not None:
            _check_bloom_fits(old, table)
    if (saved.dense_size, saved.dense_optimizer.type) != (
        wanted.dense_size,
        wanted.dense_optimizer.type,
    ):
        raise CheckpointError(
            f"the checkpoint has {saved.dense_size} dense parameters with"
            f" {saved.dense_optimizer.type}, the job {wanted.dense_size} with"
            f" {wanted.dense_optimizer.type}"
        )


def _check_bloom_fits(saved: TableSpec, wanted: TableSpec) -> None:
    """The blocks of a Bloom filter can only be taken over by one of the same size."""
    old, new = saved.admission, wanted.admission
    if not (isinstance(old, BloomAdmission) and isinstance(new, BloomAdmission)):
        return
    if BloomSize.of(old) != BloomSize.of(new):
        raise CheckpointError(
            f"table {saved.name} has a Bloom filter in the checkpoint for max_elements"
            f" {old.max_elements} and false_positive_probability {old.false_positive_probability},"
            f" in the job for {new.max_elements} and {new.false_positive_probability}; counts can't"
            " be moved between sizes, so keep these two options"
        )


def start_shard_from(shard: Shard, reader: CheckpointReader, *, recovery_epoch: int) -> None:
    """Give a shard its part of a checkpoint as the first state of a new job.

    Rows keep vector, slots and frequency; versions start at 0 with the new job's steps.
    """
    check_fits(reader.store, shard.spec)
    buckets = bucket_range(shard.index, shard.spec.num_shards)
    saved = {table.name: table for table in reader.store.tables}
    for table in shard.tables:
        old = saved.get(table.spec.name)
        if old is not None:
            _import(table, old, reader, buckets, keep_versions=False)
    shard.dense.restore(reader.dense_rows(shard.spec.blocks_of(shard.index)))
    shard.unfence(recovery_epoch, step=0)


def load_tables(
    reader: CheckpointReader, names: Sequence[str] | None = None
) -> dict[str, EmbeddingVariable]:
    """Load whole tables into this process, all by default."""
    loaded = {}
    for spec in reader.store.tables:
        if names is None or spec.name in names:
            table = EmbeddingVariable(spec)
            _import(table, spec, reader, (0, NUM_BUCKETS), keep_versions=True)
            loaded[spec.name] = table
    return loaded


def _import(
    table: EmbeddingVariable,
    saved: TableSpec,
    reader: CheckpointReader,
    buckets: tuple[int, int],
    *,
    keep_versions: bool,
) -> None:
    for rows in reader.rows(saved, buckets):
        version = rows.version if keep_versions else np.zeros_like(rows.version)
        table.import_rows(
            TableEntries(rows.keys, rows.frequency, version, rows.vectors, rows.slots)
        )
    if isinstance(table.spec.admission, BloomAdmission):
        for blocks in reader.bloom_blocks(saved, buckets):
            table.import_bloom(blocks)
    if isinstance(table.spec.admission, CounterAdmission | BloomAdmission):
        for counters in reader.counters(saved, buckets):
            version = counters.version if keep_versions else np.zeros_like(counters.version)
            table.import_counters(CounterEntries(counters.keys, counters.frequency, version))
