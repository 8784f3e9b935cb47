"""The messages between workers, the coordinator and the shards.

Every message to a shard carries the recovery epoch; a shard refuses those of another one. The
arrays of a message list all tables one after another (group embedding), in the order of
`StoreSpec.tables`; `table_sizes` says how many keys each has.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
UInt32s = npt.NDArray[np.uint32]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

ANY_STEP = -1
# A record of a step with so many batches, and with so many discards besides, fits one message.
MAX_STEP_BATCHES = 1 << 17
MAX_DISCARDS = 1 << 13

RefusalReason = Literal[
    "fenced",  # the shard is not initialised
    "dead",  # the shard failed in the middle of a step
    "epoch",  # the message is of another recovery epoch
    "routing",  # keys were sliced by another routing table
    "superseded",  # the batch was applied, discarded, or is below the low-water mark
    "step",  # a record or a pull is ahead of or behind what the shard can answer
    "missing",  # a contribution is named that the shard does not hold
    "full",  # the gradient buffer is at its limit
    "malformed",  # sizes or values do not fit the job
]


@dataclass(slots=True)
class Pull:
    """Read rows and dense parameters; changes nothing.

    Args:
        request_id: unique among the sender's open requests; the reply carries it.
        at_step: the step that must be read, or ANY_STEP; a later one is waited for.
        table_sizes: keys of each table.
        keys: int64[n], distinct within a table.
        counts: uint32[n], occurrences in the batch; empty for evaluation, which counts as 0.
        dense: whether the shard's dense parameters are wanted too.
        dense_step, dense_epoch: at which step of which recovery epoch the sender has them already,
            -1: at none. They are left out of an answer of that step, as two epochs may have other
            histories before it.
        not_before: the earliest step that may be read, which is waited for, or ANY_STEP.
    """

    request_id: int
    recovery_epoch: int
    routing_version: int
    at_step: int
    table_sizes: tuple[int, ...]
    keys: Int64s
    counts: UInt32s
    dense: bool
    dense_step: int = -1
    dense_epoch: int = -1
    not_before: int = ANY_STEP


@dataclass(slots=True)
class PullReply:
    """Answer to a pull: one step of all tables.

    Args:
        step: the shard's global step that was read.
        values: float32[sum over tables of keys x dim].
        dense: float32, the shard's dense parameters; empty where they were not wanted or are those
            of the pull's `dense_step`.
        admitted: uint8[n], 1 where the key has a row or gets one when its gradient arrives.
    """

    request_id: int
    step: int
    values: Float32s
    dense: Float32s
    admitted: Bytes


@dataclass(slots=True)
class Contribution:
    """What one attempt at a local batch gives to a step, one shard's part: sums, not means.

    Args:
        batch_id, attempt: with the recovery epoch, the identity of the contribution.
        samples: samples of the whole local batch, the same on every shard.
        pull_step: the shard's step when the batch was pulled.
        keys, counts: all keys of the batch on this shard, and how often each occurs.
        admitted: uint8[n], the admitted bits of the pull.
        gradients: float32, one row for each admitted key, in order.
        dense: float32, gradient of the shard's dense parameters.
    """

    request_id: int
    recovery_epoch: int
    mode_epoch: int
    routing_version: int
    batch_id: int
    attempt: int
    samples: int
    pull_step: int
    table_sizes: tuple[int, ...]
    keys: Int64s
    counts: UInt32s
    gradients: Float32s
    dense: Float32s
    admitted: Bytes

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self.keys, self.counts, self.gradients, self.dense, self.admitted)
        return sum(array.nbytes for array in arrays)


@dataclass(slots=True)
class PushReply:
    """The shard holds the contribution."""

    request_id: int


@dataclass(slots=True, frozen=True)
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


@dataclass(slots=True, frozen=True)
class Totals:
    """How far a job is once a step is applied: what a new coordinator counts on from.

    Args:
        applied, dropped: samples of the batches that are resolved.
        skipped: theirs that were not used, (reason, samples).
        clock: ticks of the schedule clock.
        since_tick: samples applied since the last one.
    """

    applied: int = 0
    dropped: int = 0
    skipped: tuple[tuple[str, int], ...] = ()
    clock: int = 0
    since_tick: int = 0


@dataclass(slots=True, frozen=True)
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
        cut: whether a checkpoint is taken after this step.
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
    cut: bool = False
    dense_factor: float = 1.0
    totals: Totals = Totals()


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


@dataclass(slots=True)
class Refusal:
    """A message had no effect. `reason` is for programs, `text` for people."""

    request_id: int
    reason: RefusalReason
    text: str


Request = Pull | Contribution | Apply | DenseNorm
Reply = PullReply | PushReply | ApplyReply | DenseNormReply | Refusal
Message = Request | Reply
