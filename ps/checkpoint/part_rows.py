"""Where the rows of a part lie, by bucket or block, and whether they are in order."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import bucket_of

Int64Array = npt.NDArray[np.int64]


def bounds_of_rows(column: npt.NDArray[Any], *, by_key: bool, in_order: bool) -> tuple[int, int]:
    """Return the lowest and the highest bucket, or block, of rows: 0 and -1 of none.

    Args:
        column: int64[n], their keys, or the buckets or blocks themselves.
        by_key: whether it is keys.
        in_order: whether they must be sorted by (bucket, key), and each be there once.

    Raises:
        ValueError: they must be and are not.
    """
    column = np.ascontiguousarray(column, np.int64)
    lowest, highest, wrong = _bounds(column, by_key, in_order)
    if wrong > 0:
        name = "key" if by_key else "block"
        raise ValueError(
            f"{name} {column[wrong]} comes after {name} {column[wrong - 1]}; rows must be sorted by"
            " bucket and key, and each be there once"
        )
    return int(lowest), int(highest)


@njit(cache=True, nogil=True)
def _bounds(
    column: Int64Array, by_key: bool, in_order: bool
) -> tuple[np.int64, np.int64, np.int64]:
    """Return lowest and highest number, and the first row that is out of order, or 0."""
    if column.size == 0:
        return np.int64(0), np.int64(-1), np.int64(0)
    before = bucket_of(column[0]) if by_key else column[0]
    lowest, highest, wrong = before, before, np.int64(0)
    for i in range(1, column.size):
        number = bucket_of(column[i]) if by_key else column[i]
        lowest, highest = min(lowest, number), max(highest, number)
        if in_order:
            sorted_ = before < number or (before == number and column[i - 1] < column[i])
            if not sorted_ and wrong == 0:
                wrong = np.int64(i)
            before = number
    return lowest, highest, wrong
