"""How much of the traffic goes to each bucket: an estimate from some of the steps."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.arguments import read_only
from embedding.kernels.mixing import NUM_BUCKETS, bucket_of
from ps.messages.pull_push import Contribution

# Steps of which one is counted; each counts for so many. A key takes 10 ns where its update takes
# 340 (both on cold memory): 0.3 % of the updates. A job that does not go by it does not count.
EVERY = 8


class BucketLoads:
    """Counts the keys of contributions that are applied, each by the bytes that it took.

    A key of a contribution was pulled before, and is pushed, merged and updated. It is no state of
    the model: copies of a shard count each for itself, from when they began.

    Args:
        dims: of the tables.

    Attributes:
        values: int64[4096], bytes of pulls and pushes of keys in each bucket.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        self.values = np.zeros(NUM_BUCKETS, np.int64)
        # A pull takes 12 bytes up and a vector with a bit down, a push 13 and a vector.
        self._bytes = [EVERY * (26 + 2 * 4 * dim) for dim in dims]

    def add(self, step: int, contributions: Sequence[Contribution]) -> None:
        """Count the contributions of a step, if it is one of those that are counted."""
        if step % EVERY:
            return
        for contribution in contributions:
            keys, start = read_only(contribution.keys), 0
            for size, num_bytes in zip(contribution.table_sizes, self._bytes, strict=True):
                _count(keys[start : start + size], num_bytes, self.values)
                start += size


@njit(cache=True, nogil=True)
def _count(keys: npt.NDArray[np.int64], num_bytes: int, values: npt.NDArray[np.int64]) -> None:
    for i in range(keys.size):
        values[bucket_of(keys[i])] += num_bytes
