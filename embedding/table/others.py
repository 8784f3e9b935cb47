"""Rows in a table that belong to other tables: of buckets that come to it, or that have left it.

Tables of one name in several processes share the buckets out. Where a bucket goes from one to
another, its rows are in both for a while: nobody asks the one that does not own it for them, and
what goes over a whole table leaves them out, until they are removed a few at a time.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import NUM_BUCKETS, bucket_of, buckets_of
from embedding.table.freezing import FROZEN
from embedding.table.row_arrays import NUM_TOUCHED, RowArrays

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]


def owned(buckets: npt.ArrayLike) -> UInt8Array:
    """Return uint8[4096], 1 for each bucket that a table owns; raises ValueError unless so many."""
    own = np.ascontiguousarray(buckets).astype(np.uint8)
    if own.shape != (NUM_BUCKETS,):
        raise ValueError(f"own must have {NUM_BUCKETS} buckets, got {list(own.shape)}")
    return own


def of_own(keys: Int64Array, own: UInt8Array) -> npt.NDArray[np.bool_]:
    """Return which keys, int64[n], are in buckets that a table owns."""
    return own[buckets_of(keys)] != 0


def thaw_others(rows: RowArrays, own: UInt8Array) -> int:
    """Take what is another table's out of what has just been frozen; return how many it is."""
    return int(_thaw(rows.keys, rows.flags, int(rows.state[NUM_TOUCHED]), own))


def count_own(rows: RowArrays, own: UInt8Array) -> int:
    """Return how many rows are in buckets that a table owns."""
    return int(_count(rows.keys, rows.flags, int(rows.state[NUM_TOUCHED]), own))


def keys_of_others(rows: RowArrays, own: UInt8Array, most: int) -> Iterator[Int64Array]:
    """Yield keys of other tables' rows, looking at so many rows at once; the caller removes them.

    Rows may be added and removed between two of them; those that are added may be left out.
    """
    start, found = 0, np.empty(most, np.int64)
    while start < rows.state[NUM_TOUCHED]:
        end = min(start + most, int(rows.state[NUM_TOUCHED]))
        yield found[: _collect(rows.keys, rows.flags, start, end, own, found)].copy()
        start = end


@njit(cache=True, nogil=True)
def _thaw(keys: Int64Array, flags: UInt8Array, end: int, own: UInt8Array) -> int:
    count = 0
    for row in range(end):
        if flags[row] & FROZEN != 0 and own[bucket_of(keys[row])] == 0:
            flags[row] ^= FROZEN
            count += 1
    return count


@njit(cache=True, nogil=True)
def _count(keys: Int64Array, flags: UInt8Array, end: int, own: UInt8Array) -> int:
    count = 0
    for row in range(end):
        if flags[row] != 0 and own[bucket_of(keys[row])] != 0:
            count += 1
    return count


@njit(cache=True, nogil=True)
def _collect(
    keys: Int64Array, flags: UInt8Array, start: int, end: int, own: UInt8Array, found: Int64Array
) -> int:
    count = 0
    for row in range(start, end):
        if flags[row] != 0 and own[bucket_of(keys[row])] == 0:
            found[count] = keys[row]
            count += 1
    return count
