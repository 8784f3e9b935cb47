"""Copying parts of rows that lie at random: the vectors of a pull, the columns of an export."""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from embedding.prefetch import AHEAD, prefetch

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_LINE = 16  # float32 values in a cache line


@intrinsic
def _copy_line(
    typing_context: Any, source: Any, row: Any, column: Any, target: Any, i: Any, c: Any
) -> Any:
    """target[i, c : c + 16] = source[row, column : column + 16], of C-contiguous float32[any, any].

    One load and one store: of a loop LLVM can't know that the arrays do not overlap.
    """
    signature = types.void(source, row, column, target, i, c)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def address(first: int) -> Any:
            array_type = signature.args[first]
            view = context.make_array(array_type)(context, builder, arguments[first])
            indices = [
                context.cast(builder, arguments[k], signature.args[k], types.intp)
                for k in (first + 1, first + 2)
            ]
            pointer = cgutils.get_item_pointer(context, builder, array_type, view, indices)
            return builder.bitcast(pointer, ir.VectorType(ir.FloatType(), _LINE).as_pointer())

        line = builder.load(address(0), align=4)
        builder.store(line, address(3), align=4)
        return context.get_dummy_value()

    return signature, generate


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
    whole = width - width % _LINE
    for c in range(0, whole, _LINE):
        for i in range(n):
            prefetch(source, max(positions[min(i + AHEAD, n - 1)], 0), first + c)
            if positions[i] >= 0:
                _copy_line(source, positions[i], first + c, target, i, c)
    if whole < width:
        for i in range(n):
            prefetch(source, max(positions[min(i + AHEAD, n - 1)], 0), first + whole)
            if positions[i] >= 0:
                for c in range(whole, width):
                    target[i, c] = source[positions[i], first + c]
