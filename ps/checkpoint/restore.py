"""Fill a shard, or a whole store in one process, from a checkpoint."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from embedding import CounterEntries, EmbeddingVariable, TableSpec
from embedding.kernels.mixing import NUM_BUCKETS
from embedding.optimizers.rule import OptimizerRule, rule_for
from embedding.spec.admission import BloomAdmission, CounterAdmission
from embedding.table.bloom import BloomSize
from embedding.table.links import make_variables
from ps.checkpoint.adapting import adapted, state_of
from ps.checkpoint.chosen import Chosen
from ps.checkpoint.errors import UnfitCheckpointError
from ps.checkpoint.read import CheckpointReader
from ps.checkpoint.taking_extents import take_extents
from ps.routing import BLOCK_SIZE
from ps.shard.dense import DenseBlocks
from ps.shard.frozen import count_as_saved
from ps.shard.shard import Shard
from ps.spec import StoreSpec


def check_fits(
    saved: StoreSpec, wanted: StoreSpec, *, dense_size: bool = True, adapt: bool = False
) -> None:
    """Raise CheckpointError where tables or dense parameters have another shape.

    A table that only the job has starts empty; one that only the checkpoint has is left out. The
    number of dense parameters may differ where `dense_size` is false, the dim of a table and the
    type of its optimizer where `adapt` is true.
    """
    tables = {table.name: table for table in saved.tables}
    for table in wanted.tables:
        old = tables.get(table.name)
        if old is None:
            continue
        if not adapt:
            what = f"table {table.name}"
            _check_same(f"{what}: the dim", old.dim, table.dim)
            optimizers = state_of(old.optimizer), state_of(table.optimizer)
            _check_same(f"{what}: the optimizer", *optimizers)
        _check_bloom_fits(old, table)
    optimizers = state_of(saved.dense_optimizer), state_of(wanted.dense_optimizer)
    _check_same("model: the optimizer", *optimizers)
    if dense_size:
        _check_same("model: the number of dense parameters", saved.dense_size, wanted.dense_size)


def _check_same(what: str, saved: object, wanted: object) -> None:
    if saved != wanted:
        raise UnfitCheckpointError(
            f"{what} is {saved} in the checkpoint, {wanted} in the job; a job that starts from a"
            " checkpoint must keep it"
        )


def _check_bloom_fits(saved: TableSpec, wanted: TableSpec) -> None:
    """The blocks of a Bloom filter can only be taken over by one of the same size."""
    old, new = saved.admission, wanted.admission
    if not (isinstance(old, BloomAdmission) and isinstance(new, BloomAdmission)):
        return
    if BloomSize.of(old) != BloomSize.of(new):
        raise UnfitCheckpointError(
            f"table {saved.name} has a Bloom filter in the checkpoint for max_elements"
            f" {old.max_elements} and false_positive_probability {old.false_positive_probability},"
            f" in the job for {new.max_elements} and {new.false_positive_probability}; counts can't"
            " be moved between sizes, so keep these two options"
        )


@dataclass(frozen=True, slots=True)
class MovedDense:
    """A shard's dense parameters where they are not at the checkpoint's places.

    Args:
        initial: float32[n], of parameters that the checkpoint does not have.
        sources: int64[n], place of each in the checkpoint's vector, -1 where it has none.
    """

    initial: npt.NDArray[np.float32]
    sources: npt.NDArray[np.int64]


def start_shard_from(
    shard: Shard,
    reader: CheckpointReader,
    *,
    recovery_epoch: int,
    goes_on: bool = False,
    moved: MovedDense | None = None,
    adapt: bool = False,
) -> None:
    """Give a shard its part of a checkpoint as the first state of a new job.

    Rows keep vector, slots and frequency. If time `goes_on`, the first step is the checkpoint's,
    and versions, and slots that count time, are kept. Else all of them start at 0. With `adapt`
    tables may have another dim or optimizer, see `adapting`. Of the files it reads what may hold
    the shard's part, no more; where that fails the shard stays as it was.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit.
    """
    shard.check_alive()
    check_fits(reader.store, shard.spec, dense_size=moved is None, adapt=adapt)
    tables = shard.empty_tables()
    try:
        blocks = _fill(tables, shard, reader, goes_on=goes_on, moved=moved)
    except BaseException:
        shard.drop(tables)
        raise
    shard.dense.restore(blocks)
    if goes_on and reader.can_bear(shard.spec):
        count_as_saved(tables)
    shard.enter(recovery_epoch, step=reader.manifest.step if goes_on else 0, tables=tables)


def _fill(
    tables: list[EmbeddingVariable],
    shard: Shard,
    reader: CheckpointReader,
    *,
    goes_on: bool,
    moved: MovedDense | None,
) -> npt.NDArray[np.float32]:
    """Fill tables with a shard's part of a checkpoint; return its dense blocks."""
    buckets = Chosen.of(shard.routing.buckets == shard.index)
    saved = {table.name: table for table in reader.store.tables}
    with ThreadPoolExecutor(1, thread_name_prefix="dense") as beside:
        dense = beside.submit(_blocks_of, shard, reader, moved)
        for table in tables:
            old = saved.get(table.spec.name)
            if old is not None:
                _import(table, old, reader, buckets, keep_versions=goes_on)
        blocks = dense.result()
    if not goes_on:
        _start_time_anew(shard.dense.rule, BLOCK_SIZE, blocks[:, BLOCK_SIZE:])
    return blocks


def _blocks_of(
    shard: Shard, reader: CheckpointReader, moved: MovedDense | None
) -> npt.NDArray[np.float32]:
    if moved is None:
        return reader.dense_rows(shard.routing.block_range(shard.index))
    return _moved_blocks(shard, reader, moved)


def _moved_blocks(
    shard: Shard, reader: CheckpointReader, moved: MovedDense
) -> npt.NDArray[np.float32]:
    """Return a shard's blocks with values and slots from elsewhere in the checkpoint."""
    fresh = DenseBlocks(shard.spec, shard.index)
    fresh.initialize(moved.initial)
    new = fresh.rows
    places = np.flatnonzero(moved.sources >= 0)
    sources = moved.sources[places]
    needed = sources // BLOCK_SIZE if sources.size else np.zeros(1, np.int64)
    first, end = int(needed.min()), min(int(needed.max()) + 1, reader.store.num_blocks)
    old = reader.dense_rows((first, end))
    sources = sources - first * BLOCK_SIZE
    slots = [
        slice(BLOCK_SIZE + columns.start, BLOCK_SIZE + columns.stop)
        for columns in shard.dense.rule.columns(BLOCK_SIZE)
    ]
    for columns in (slice(0, BLOCK_SIZE), *slots):
        if columns.stop - columns.start == BLOCK_SIZE:
            at = columns.start + places % BLOCK_SIZE
            found = old[:, columns][sources // BLOCK_SIZE, sources % BLOCK_SIZE]
            new[places // BLOCK_SIZE, at] = found
        elif len(old):  # one number a block: every step updates all blocks, so all have the same
            new[:, columns] = old[0, columns]
    return new


def _start_time_anew(rule: OptimizerRule, dim: int, slots: npt.NDArray[np.float32]) -> None:
    for slot, columns in zip(rule.slots, rule.columns(dim), strict=True):
        if slot.counts_time:
            slots[:, columns] = slot.initial


def load_tables(
    reader: CheckpointReader, names: Sequence[str] | None = None
) -> dict[str, EmbeddingVariable]:
    """Load whole tables into this process, all by default, and the tables that those read."""
    specs = reader.store.tables
    if names is not None:
        read = {spec.base for spec in specs if spec.name in names}
        specs = tuple(spec for spec in specs if spec.name in names or spec.name in read)
    tables = make_variables(specs)
    for table in tables:
        _import(table, table.spec, reader, Chosen.of(np.ones(NUM_BUCKETS, np.bool_)),
                keep_versions=True)  # fmt: skip
    return {table.spec.name: table for table in tables}


def _import(
    table: EmbeddingVariable,
    saved: TableSpec,
    reader: CheckpointReader,
    buckets: Chosen,
    *,
    keep_versions: bool,
) -> None:
    counts = isinstance(table.spec.admission, CounterAdmission | BloomAdmission)
    if isinstance(table.spec.admission, BloomAdmission):
        for blocks in buckets.bloom_blocks(reader, saved):
            table.import_bloom(blocks)
    table.expect_rows(buckets.num_rows(reader, saved))
    # What a row's time begins anew for is copied: extents stay as they are.
    taken = take_extents(table, saved, reader, buckets) if keep_versions else None
    for found in buckets.entries(reader, saved, counters=counts, without=taken):
        version = found.version if keep_versions else np.zeros_like(found.version)
        if isinstance(found, CounterEntries):
            table.import_counters(CounterEntries(found.keys, found.frequency, version))
            continue
        if not keep_versions:
            _start_time_anew(rule_for(saved.optimizer, sparse=True), saved.dim, found.slots)
        table.import_rows(adapted(replace(found, version=version), saved, table))
