"""Compile (or load) every kernel of a shard before the first message, not during it."""

import gc
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from embedding.entries import TableEntries
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.optimizers.rule import rule_for, step_scalars
from embedding.spec.admission import BloomAdmission
from embedding.spec.optimizers import Optimizer
from embedding.spec.table import TableSpec
from embedding.spec.tiers import MIN_MEMORY_BYTES, Tiers
from embedding.table.variable import EmbeddingVariable
from ps.messages.pull_push import Contribution, Pull
from ps.messages.records import Apply, DenseNorm, Entry, Record, TableEviction
from ps.shard.shard import Shard
from ps.spec import StoreSpec

_KEYS = np.arange(4, dtype=np.int64)
_ONES = np.ones(4, np.uint32)


def warm_up(spec: StoreSpec, tiers: Mapping[str, Tiers] | None = None) -> None:
    """Run a shard with one table of each kind through a pull and steps of one and two batches.

    Nothing of it is left, not even its address space, which the job's tables will share.

    Args:
        tiers: of the job's tables.
    """
    tiers = {} if tiers is None else tiers
    _run(_small(spec, tiers), tiers)
    gc.collect()  # compiling leaves cycles that refer to the arguments of kernels


def _small(spec: StoreSpec, tiers: Mapping[str, Tiers]) -> StoreSpec:
    """Return a store with one table of each kind."""
    kinds = {}
    for table in spec.tables:
        rule = rule_for(table.optimizer, sparse=True)
        # What an optimizer is set to can choose another kernel.
        kernels = (rule.kernel, rule.limits is None)
        warm = table.warm_start is not None
        tiered = table.name in tiers
        narrow = table.value_dtype != "float32"
        kinds[type(table.initializer), kernels, _counters_of(table), warm, tiered, narrow] = table
    names = {table.name for table in kinds.values()} | {table.base for table in kinds.values()}
    tables = tuple(
        replace(table, dim=2, track_usage=True)  # so that each can evict
        for table in spec.tables
        if table.name in names
    )
    return StoreSpec(
        tables=tables,
        dense_size=1,
        dense_optimizer=spec.dense_optimizer,
        num_shards=1,
        sparse_mean=spec.sparse_mean,
    )


def _run(small: StoreSpec, tiers: Mapping[str, Tiers]) -> None:
    tables = small.tables
    least = {name: replace(each, memory_bytes=MIN_MEMORY_BYTES) for name, each in tiers.items()}
    shard = Shard(small, 0, tiers=least)
    shard.initialize(0, dense=np.zeros(1, np.float32))
    sizes = (4,) * len(tables)
    for counts in (np.tile(_ONES, len(tables)), np.empty(0, np.uint32)):
        shard.handle(Pull(0, 0, 0, -1, sizes, np.tile(_KEYS, len(tables)), counts, True), None)
    batches = [(0,), (1, 2)]
    for step, batch_ids in enumerate(batches):
        for batch_id in batch_ids:
            shard.handle(_contribution(batch_id, small), None)
        entries = tuple(Entry(batch_id, 0, 1.0) for batch_id in batch_ids)
        shard.handle(DenseNorm(0, 0, step, entries, 4), None)
        record = Record(
            step=step,
            recovery_epoch=0,
            mode_epoch=0,
            entries=entries,
            divisor=4,
            scalars=tuple(_scalars(optimizer) for optimizer in small.optimizers),
            evict=tuple(TableEviction(t, 1, 0.0, 1) for t in range(len(tables))) if step else (),
        )
        shard.handle(Apply(0, 0, (record,)), None)
    assert shard.step == len(batches), "the warm-up steps were applied"
    for table in shard.tables:
        _alone(table, len(batches))
        # What is used where buckets come and go.
        rows, counters = table.export(), table.export_counters()
        table.remove(rows.keys)
        table.import_rows(rows)
        if counters.keys.size:
            table.import_counters(counters)
        table.own(np.ones(NUM_BUCKETS))
        table.freeze(changed_only=True).close()
        assert table.num_own == len(table)
        if table.spec.name in tiers:
            _leave_memory(table)
        for _ in table.drop_others():
            pass


def _alone(table: EmbeddingVariable, step: int) -> None:
    """Go the way of a step that a table takes by itself, as where a gradient is not finite."""
    vectors, admitted = np.empty((4, table.spec.dim), np.float32), np.empty(4, np.uint8)
    table.pull(_KEYS, _ONES, vectors, admitted)
    counts, scalars = np.ones(4, np.int64), _scalars(table.spec.optimizer)
    gradients = np.ones(vectors.shape, np.float32)
    table.apply(_KEYS, counts, gradients, admitted, step=step, scale=1, scalars=scalars)


def _leave_memory(table: EmbeddingVariable) -> None:
    """Have rows written to the disk, read ahead and when they are asked for, and updated."""
    rows = table.export()
    for first in range(0, 1 << 14, 1 << 10):
        keys = np.arange(first, first + (1 << 10))
        some = TableEntries(
            keys=keys,
            frequency=np.zeros(keys.size, np.int64),
            version=np.zeros(keys.size, np.int64),
            vectors=np.zeros((keys.size, table.spec.dim), np.float32),
            slots=np.ones((keys.size, rows.slots.shape[1]), np.float32),
        )
        table.import_rows(some)
    keys = np.arange(1 << 10)
    table.prefetch(keys[: 1 << 9])
    vectors, admitted = (
        np.empty((keys.size, table.spec.dim), np.float32),
        np.empty(keys.size, np.uint8),
    )
    table.pull(keys, None, vectors, admitted)
    scalars = _scalars(table.spec.optimizer)
    table.apply(keys, np.ones(keys.size, np.int64), vectors, None, step=2, scale=1, scalars=scalars)
    table.evict(l2_weight_threshold=1e9)


def _counters_of(table: TableSpec) -> tuple[str, int] | None:
    """What the kernels' types depend on."""
    rule = table.admission
    if rule is None:
        return None
    return rule.type, rule.counter_bits if isinstance(rule, BloomAdmission) else 0


def _contribution(batch_id: int, spec: StoreSpec) -> Contribution:
    num_tables = len(spec.tables)
    # The second key has no gradient, so that rows have to be lined up with keys.
    admitted = np.tile(np.array([1, batch_id == 0, 1, 1], np.uint8), num_tables)
    return Contribution(
        request_id=0,
        recovery_epoch=0,
        mode_epoch=0,
        routing_version=0,
        batch_id=batch_id,
        attempt=0,
        samples=4,
        pull_step=0,
        table_sizes=(4,) * num_tables,
        keys=np.tile(_KEYS, num_tables),
        counts=np.tile(_ONES, num_tables),
        gradients=np.ones(2 * int(admitted.sum()), np.float32),
        dense=np.ones(1, np.float32),
        admitted=admitted,
    )


def _scalars(optimizer: Optimizer) -> tuple[float, ...]:
    return step_scalars(optimizer, learning_rate=0.1, step=0)
