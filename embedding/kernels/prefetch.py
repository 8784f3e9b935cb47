"""Software prefetch for kernels that gather rows at random."""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

AHEAD = 32  # keys or rows between asking for one and working on it

_LINE = 16  # float32 values in a cache line
_MAX_VALUES = 8 * _LINE  # of a row that are asked for: the hardware follows a longer one by itself
_READ, _KEEP, _DATA = 0, 3, 1  # the operands of LLVM's `llvm.prefetch` after the address


@intrinsic
def prefetch(typing_context: Any, array: Any, row: Any, column: Any) -> Any:
    """Ask for the cache line that holds array[row, column]; a hint, never a fault.

    Args:
        array: a C-contiguous array of two axes.
        row: integer, not negative; need not lie inside the array.
        column: integer, likewise.
    """
    signature = types.void(array, row, column)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, row_type, column_type = signature.args
        view = context.make_array(array_type)(context, builder, arguments[0])
        indices = [
            context.cast(builder, arguments[1], row_type, types.intp),
            context.cast(builder, arguments[2], column_type, types.intp),
        ]
        address = cgutils.get_item_pointer(context, builder, array_type, view, indices)
        byte_pointer, operand = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint_type = ir.FunctionType(ir.VoidType(), [byte_pointer, operand, operand, operand])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], hint_type)
        operands = [ir.Constant(operand, value) for value in (_READ, _KEEP, _DATA)]
        builder.call(hint, [builder.bitcast(address, byte_pointer), *operands])
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True, inline="always")
def prefetch_row(array: npt.NDArray[np.float32], row: np.int64, width: int) -> None:
    """Ask for the first `width` values of a row of float32[any, any], for two lines at least.

    Those two without a loop: it would cost an update of 32 values 6 of its 35 ns.
    """
    prefetch(array, row, 0)
    prefetch(array, row, _LINE)
    for column in range(2 * _LINE, min(width, _MAX_VALUES), _LINE):
        prefetch(array, row, column)


@njit(cache=True, nogil=True, inline="always")
def prefetch_ahead(rows: npt.NDArray[np.float32], positions: npt.NDArray[np.int64], i: int) -> None:
    """Ask for the row whose turn comes some after that of positions[i]; -1 stands for none."""
    ahead = positions[min(i + AHEAD, positions.size - 1)]
    prefetch_row(rows, max(ahead, 0), rows.shape[1])
