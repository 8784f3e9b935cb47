"""Ranges of buckets: (first, end), end not included."""

import itertools

import numpy as np

from embedding.kernels.mixing import NUM_BUCKETS

ALL_BUCKETS = (0, NUM_BUCKETS)
_MOST_PARTS = 64  # each costs a look through all keys


def check_buckets(buckets: tuple[int, int]) -> None:
    """Raise ValueError unless buckets are (first, end) of a range that exists."""
    first, end = buckets
    if not 0 <= first <= end <= NUM_BUCKETS:
        raise ValueError(
            f"buckets must be (first, end), 0 <= first <= end <= {NUM_BUCKETS}, got {buckets}"
        )


def bucket_parts(
    num_bytes: int,
    part_bytes: int,
    buckets: tuple[int, int] = ALL_BUCKETS,
    most_parts: int = _MOST_PARTS,
) -> list[tuple[int, int]]:
    """Cut a range of buckets into parts that hold about so many bytes, or the least share.

    Args:
        num_bytes: that the whole range holds.
        part_bytes: that a part should hold.
        most_parts: there are at most.
    """
    first, end = buckets
    parts = min(-(-num_bytes // part_bytes), most_parts, end - first)
    cuts = np.unique(np.linspace(first, end, max(parts, 1) + 1).astype(int)).tolist()
    return list(itertools.pairwise(cuts))
