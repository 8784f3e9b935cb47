"""Arrays by their addresses: how one call of compiled code reads arrays of any number of tables.

Numba looks at each array that a call is given, which of a hundred takes longer than what is read.
"""

from typing import Any

import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def address_of(array: npt.NDArray[Any]) -> int:
    """Return where an array begins; it must be C-contiguous and live as long as this is used."""
    assert array.flags.c_contiguous
    return int(array.ctypes.data)


@intrinsic
def pointer_at(typing_context: Any, address: Any) -> Any:
    """Return an address as what `numba.carray` takes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate
