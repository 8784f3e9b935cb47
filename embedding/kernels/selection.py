"""The value that would stand at a place were all sorted.

`np.partition` and `np.sort` do it too, but each of them takes seconds to compile.
"""

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def nth_lowest(values: npt.NDArray[np.int64], n: int) -> int:
    """Return the value at place n of int64[more than n], sorted; changes their order.

    Hoare's selection, of the value in the middle: it takes time in proportion to their number, of
    sorted and of equal ones, too.
    """
    low, high = 0, values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if n <= j:
            high = j
        elif n >= i:
            low = i
        else:
            break
    return values[n]
