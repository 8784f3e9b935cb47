"""Which row of a part of a composition a key has."""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import BUCKET_BITS, mix64, unmix64
from embedding.spec.composition import Part

Int64Array = npt.NDArray[np.int64]

_SHIFT = np.uint64(64 - BUCKET_BITS)
_LOW = np.uint64((1 << (64 - BUCKET_BITS)) - 1)
_ODD = np.uint64(0x9E3779B97F4A7)  # 2^52 over the golden ratio


def map_keys(part: Part, keys: Int64Array) -> Int64Array:
    """Return the key of each key's row in a physical table.

    own: the key itself. quotient and remainder: of the division by the part's divisor m, rounded
    towards minus infinity, so that 0 <= remainder < m for negative keys too. static: see
    `static_keys`.

    Args:
        keys: int64[n], any values.

    Returns:
        int64[n], the given array where nothing changes.
    """
    if part.keys == "quotient":
        return np.floor_divide(keys, np.int64(part.divisor))
    if part.keys == "remainder":
        return np.remainder(keys, np.int64(part.divisor))
    if part.keys == "static":
        return static_keys(keys, part.divisor)
    return keys


def static_keys(keys: Int64Array, rows_per_bucket: int) -> Int64Array:
    """Return for each key the one of its bucket's static rows that it shares, as that row's key.

    It lies in the key's own bucket, so both are on one shard, whatever the routing.

    Args:
        keys: int64[n], any values.
        rows_per_bucket: static rows of a bucket; at most 2^28.
    """
    out = np.empty(keys.size, np.int64)
    _static_keys(np.ascontiguousarray(keys), rows_per_bucket, out)
    return out


@njit(cache=True, nogil=True)
def _static_keys(keys: Int64Array, rows_per_bucket: int, out: Int64Array) -> None:
    """Choose the mix of the static key, its bucket on top, and take the key that has this mix.

    Below the bucket comes the row's number times an odd constant: other numbers give other bits,
    and both ends of them, by which hash tables find their slots, are spread evenly.
    """
    rows = np.uint64(rows_per_bucket)
    for i in range(keys.size):
        mixed = mix64(np.uint64(keys[i]))
        bucket = mixed >> _SHIFT
        number = bucket * rows + (mixed & _LOW) % rows
        out[i] = np.int64(unmix64((bucket << _SHIFT) | ((number * _ODD) & _LOW)))
