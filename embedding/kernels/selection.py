"""The value that would stand at a place were all sorted.

`np.partition` and `np.sort` do it too, but each of them takes seconds to compile.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import mix64


@njit(cache=True, nogil=True)
def nth_lowest(values: npt.NDArray[np.int64], n: int) -> int:
    """Return the value at place n of int64[more than n], sorted; changes their order.

    Hoare's selection by values at drawn places, always the same ones: by that in the middle it
    would take the square of their number where the lowest are at both ends.
    """
    low, high = 0, values.size - 1
    draw = np.uint64(0)
    while low < high:
        draw = mix64(draw + np.uint64(1))
        pivot = values[low + np.int64(draw >> np.uint64(33)) % (high - low + 1)]
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
