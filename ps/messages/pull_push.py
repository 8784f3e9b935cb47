"""Pulls and pushes: the rows of a batch, and what it adds to its step.

Every message to a shard carries the recovery epoch; a shard refuses those of another one. The
arrays of a message list all tables one after another (group embedding), in the order of
`StoreSpec.tables`; `table_sizes` says how many keys each has.
"""

from dataclasses import dataclass

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
MAX_PREFETCHED_KEYS = 1 << 20  # of one message: of batches that have more nothing is prefetched


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
        for_step: the step that is to have the batch. Where any step may be read and the shard's is
            an earlier one, dense parameters are answered a step ahead, see `ps.shard.ahead`.
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
    for_step: int = ANY_STEP


@dataclass(slots=True)
class Prefetch:
    """Rows that will be pulled, as a hint to a shard that has some of them on disk.

    It is never answered and may be lost, late or repeated: it changes nothing that is read.

    Args:
        batch_id, attempt: whose pull it is; -1: of one that is only evaluated. Of a batch that has
            been trained nothing is wanted any more.
        table_sizes: keys of each table, 0 of those that are in memory.
        keys: int64[n], distinct within a table.
    """

    recovery_epoch: int
    routing_version: int
    batch_id: int
    attempt: int
    table_sizes: tuple[int, ...]
    keys: Int64s


@dataclass(slots=True)
class PullReply:
    """Answer to a pull: one step of all tables.

    Args:
        step: the shard's global step that was read.
        values: float32[sum over tables of keys x dim].
        dense: float32, the shard's dense parameters; empty where they were not wanted or are those
            of the pull's `dense_step`.
        admitted: uint8[n], 1 where the key has a row or gets one when its gradient arrives.
        ahead: whether the dense parameters are those that the shard expects of the next step, and
            so of no step.
    """

    request_id: int
    step: int
    values: Float32s
    dense: Float32s
    admitted: Bytes
    ahead: bool = False


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
