"""Records: everything that a step does, as the coordinator says it to every shard alike."""

from dataclasses import dataclass
from typing import Literal

from ps.messages.pull_push import Float64s

# Entries, totals and records are not frozen: nobody changes one, and in async every batch has one
# of each, which takes 15 times as long to make where it is frozen.


@dataclass(slots=True, unsafe_hash=True)
class Entry:
    """One contribution in a record. A weight of 0 changes nothing."""

    batch_id: int
    attempt: int
    weight: float


@dataclass(slots=True, frozen=True)
class TableEviction:
    """What a step evicts from one table; see `EmbeddingVariable.evict`.

    Args:
        table: its number.
        min_version: rows and counters last changed before that step are removed.
        l2_weight_threshold: rows with less than that as half the squared sum of their vector are.
        rows_per_bucket: quota of a bucket; 0: none.
        evict_first: which rows go first where a bucket has more.
    """

    table: int
    min_version: int = 0
    l2_weight_threshold: float = 0.0
    rows_per_bucket: int = 0
    evict_first: Literal["least_frequent", "least_recent"] = "least_frequent"


@dataclass(slots=True, unsafe_hash=True)
class Totals:
    """How far a job is once a step is applied: what a new coordinator counts on from.

    Args:
        applied, dropped: samples of the batches that are resolved.
        skipped: theirs that were not used, (reason, samples).
        clock: ticks of the schedule clock.
        since_tick: samples applied since the last one.
        dropped_batches, skipped_batches: of the resolved ones; the others are applied.
        mode, mode_epoch: that the next step is formed in.
        loss_sum, loss_samples: of the batches that are resolved and were trained.
    """

    applied: int = 0
    dropped: int = 0
    skipped: tuple[tuple[str, int], ...] = ()
    clock: int = 0
    since_tick: int = 0
    dropped_batches: int = 0
    skipped_batches: int = 0
    mode: str = "sync"
    mode_epoch: int = 0
    loss_sum: float = 0.0
    loss_samples: int = 0


NO_TOTALS = Totals()


@dataclass(slots=True, unsafe_hash=True)
class Record:
    """Everything that step `step` does: with the contributions it names, it is self-contained.

    Args:
        step: k; legal on a shard at global step k, which it makes k + 1.
        entries: contributions in the order in which they are summed.
        divisor: N, the samples of all entries, those of weight 0 included; 0 for an empty step.
        scalars: for each of `StoreSpec.optimizers` its time-dependent numbers.
        clock: floor(samples applied / G) before this step: what schedules run on.
        evict: what is removed from tables after the update, for each table at most once.
        skipped: batches that end with this step without being in it.
        discard: (batch id, attempt): no step will name a contribution of that attempt or of an
            earlier one.
        low_water: every batch id below it is resolved.
        oldest_pull_step: no contribution still to come was pulled before this step.
        applied_step: every shard has reached this step.
        routing_version: raised where this step moves buckets.
        dense_factor: what global-norm clipping multiplies the dense gradient by.
        totals: of the job, this step included.
    """

    step: int
    recovery_epoch: int
    mode_epoch: int
    entries: tuple[Entry, ...]
    divisor: int
    scalars: tuple[tuple[float, ...], ...]
    clock: int = 0
    evict: tuple[TableEviction, ...] = ()
    skipped: tuple[int, ...] = ()
    discard: tuple[tuple[int, int], ...] = ()
    low_water: int = 0
    oldest_pull_step: int = 0
    applied_step: int = 0
    routing_version: int = 0
    dense_factor: float = 1.0
    totals: Totals = NO_TOTALS


@dataclass(slots=True)
class Apply:
    """Apply records in order; those below the shard's step are acknowledged without effect."""

    request_id: int
    recovery_epoch: int
    records: tuple[Record, ...]


@dataclass(slots=True)
class ApplyReply:
    """The shard's global step after the records."""

    request_id: int
    step: int


@dataclass(slots=True)
class Freeze:
    """Keep the state of now, to be written while the shard goes on: it is a cut.

    Refused by a shard at another step. One that comes again changes nothing.

    Args:
        number: of the recovery epoch's cuts; rises.
        step: k, the next record's.
        changed_only: whether only what has changed since the freeze before is wanted of tables.
    """

    request_id: int
    recovery_epoch: int
    number: int
    step: int
    changed_only: bool


@dataclass(slots=True)
class FreezeReply:
    """The shard has frozen that step."""

    request_id: int
    step: int


@dataclass(slots=True)
class DenseNorm:
    """Read the norm of the dense gradient that a step will have; changes nothing.

    It depends on the contributions alone, not on the shard's step.

    Args:
        step: k, for people.
        entries, divisor: those of the step's record.
    """

    request_id: int
    recovery_epoch: int
    step: int
    entries: tuple[Entry, ...]
    divisor: int


@dataclass(slots=True)
class DenseNormReply:
    """One shard's part of a norm.

    Args:
        sums: float64[blocks of the shard], see `DenseBlocks.sums_of_squares`.
    """

    request_id: int
    sums: Float64s
