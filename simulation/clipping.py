"""What global-norm clipping has to make of a step, from the contributions that were seen."""

import math
from collections.abc import Mapping

import numpy as np

from ps.messages.pull_push import Contribution
from ps.messages.records import Record
from ps.routing import BLOCK_SIZE
from ps.spec import StoreSpec


def expected_dense_factor(
    record: Record, pushed: Mapping[tuple[int, int, int], Contribution], store: StoreSpec
) -> float:
    """Return the factor of a record's dense gradient, on one shard and in NumPy.

    Args:
        pushed: contributions by (batch, attempt, shard).
        store: of the run.
    """
    limit = store.dense_clip_norm
    if limit is None or record.divisor == 0:
        return 1.0
    total = np.zeros(store.dense_size, np.float32)
    for entry in record.entries:
        name = entry.batch_id, entry.attempt
        parts = [pushed[*name, shard].dense for shard in store.routing.by_block]
        total += np.float32(entry.weight) * np.concatenate(parts)
    squares = (total * np.float32(1.0 / record.divisor)).astype(np.float64) ** 2
    starts = range(0, store.dense_size, BLOCK_SIZE)
    # The last of a cumulative sum is one that was taken from left to right.
    blocks = [np.cumsum(squares[start : start + BLOCK_SIZE])[-1] for start in starts]
    norm = math.sqrt(np.cumsum(blocks)[-1])
    return 1.0 if norm <= limit else limit / norm
