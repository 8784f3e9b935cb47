"""Copying parts of rows that lie at random: the vectors of a pull, the columns of an export.

And back, the columns of an import.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.lines import WIDTH, load_line, store_line
from embedding.kernels.prefetch import AHEAD, prefetch

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def copy_rows(
    source: Float32Array, positions: Int64Array, first: int, target: Float32Array
) -> None:
    """target[i] = source[positions[i], first : first + width of target], a line at a time.

    Args:
        source: float32[capacity, any].
        positions: int64[n], rows of source; -1 leaves target[i] as it is.
        target: float32[n, any], written.
    """
    n, width = positions.size, target.shape[1]
    whole = width - width % WIDTH
    stride, lines, copies = source.shape[1], source.reshape(-1), target.reshape(-1)
    for c in range(0, whole, WIDTH):
        for i in range(n):
            prefetch(source, max(positions[min(i + AHEAD, n - 1)], 0), first + c)
            if positions[i] >= 0:
                line = load_line(lines, positions[i] * stride + first + c)
                store_line(line, copies, i * width + c)
    if whole < width:
        for i in range(n):
            prefetch(source, max(positions[min(i + AHEAD, n - 1)], 0), first + whole)
            if positions[i] >= 0:
                for c in range(whole, width):
                    target[i, c] = source[positions[i], first + c]


@njit(cache=True, nogil=True)
def put_rows(source: Float32Array, positions: Int64Array, first: int, target: Float32Array) -> None:
    """target[positions[i], first : first + width of source] = source[i], a line at a time.

    Args:
        source: float32[n, any].
        positions: int64[n], rows of target.
        target: float32[capacity, any], written.
    """
    n, width = positions.size, source.shape[1]
    whole = width - width % WIDTH
    stride, lines, copies = target.shape[1], source.reshape(-1), target.reshape(-1)
    for i in range(n):
        at = positions[i] * stride + first
        for c in range(0, whole, WIDTH):
            store_line(load_line(lines, i * width + c), copies, at + c)
        for c in range(whole, width):
            copies[at + c] = lines[i * width + c]
