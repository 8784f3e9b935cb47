"""Whether the arrays of a pull or a contribution fit together, and to the tables of a shard."""

from collections.abc import Sequence

import numpy as np

from ps.messages.pull_push import MAX_PREFETCHED_KEYS, Contribution, Prefetch, Pull


def what_does_not_fit(
    message: Pull | Contribution | Prefetch, dims: Sequence[int], dense_size: int
) -> str | None:
    """Say what is wrong with the sizes of a message's arrays; None: nothing.

    Args:
        dims: of the shard's tables.
        dense_size: number of the shard's dense parameters.
    """
    sizes, n = message.table_sizes, message.keys.size
    if len(sizes) != len(dims) or min(sizes, default=0) < 0 or sum(sizes) != n:
        return f"table sizes {sizes[:8]} do not fit {len(dims)} tables and {n} keys"
    if isinstance(message, Prefetch):
        return None if n <= MAX_PREFETCHED_KEYS else f"{n} keys"
    if isinstance(message, Pull):
        return None if message.counts.size in (0, n) else "counts do not fit keys"
    if message.counts.size != n or message.admitted.size != n:
        return "counts or admitted do not fit keys"
    expected = sum(size * dim for size, dim in zip(sizes, dims, strict=True))
    if np.count_nonzero(message.admitted) != n:
        start = 0
        for size, dim in zip(sizes, dims, strict=True):
            expected -= int(np.count_nonzero(message.admitted[start : start + size] == 0)) * dim
            start += size
    if message.gradients.size != expected or message.dense.size != dense_size:
        return (
            f"gradients {message.gradients.size} and dense {message.dense.size} elements,"
            f" expected {expected} and {dense_size}"
        )
    return None
