"""Vectors of 8 bits: how they lie in a row, and how they are rounded.

A row begins with a byte e, then comes a code from -127 to 127 for each value, which is the code
times 2^(e - 127), the row's scale: the least power of two with which the largest value has a code.
So what one scale holds a finer one holds, too: values that did not change are not rounded anew, and
a vector that is written as it was read is the same, bit for bit, wherever it was meanwhile. By a
scale of the range, as served rows have it (`serving.rows.quantized`), neither would hold.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.bits import bits_of, float_of
from embedding.kernels.mixing import mix64

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
UInt32Array = npt.NDArray[np.uint32]

_REST, _INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
# 127 is 1.984375 * 2^6: added to the bits of a number it makes the exponent of a larger fraction
# that of the next power of two.
_ROUND_UP = np.uint32(0x1FFFF)
_SIX, _SEVEN, _23, _254 = np.uint32(6), np.uint32(7), np.uint32(23), np.uint32(254)
_LARGEST = np.uint32(248)  # with 127 a finite number; what is beyond that becomes it
_NOT_FINITE = np.uint32(255)
_DRAW, _MOST = np.float32(2.0**-16), np.int32(127)
_UPPER = np.uint64(32)

NEAREST = np.uint32(0x80008000)
"""Draws of two columns that round to the nearest, ties away from zero."""


def places_of(dim: int) -> int:
    """Return the float32 places that a vector takes."""
    return (dim + 4) // 4


@njit(cache=True, nogil=True, inline="always")
def read_codes(codes: Int8Array, at: np.int64, out: Float32Array, to: np.int64, dim: int) -> None:
    """out[to : to + dim] = the vector of the row that begins at codes[at]; flat arrays."""
    exponent = np.uint32(np.uint8(codes[at]))
    scale = np.float32(np.nan) if exponent == _NOT_FINITE else float_of(exponent << _23)
    row, vector = codes[at + 1 : at + 1 + dim], out[to : to + dim]
    for c in range(dim):
        vector[c] = np.float32(row[c]) * scale


@njit(cache=True, nogil=True, inline="always")
def write_codes(
    codes: Int8Array,
    at: np.int64,
    vectors: Float32Array,
    source: np.int64,
    dim: int,
    draws: UInt32Array,
) -> None:
    """Write vectors[source : source + dim] to the row that begins at codes[at]; flat arrays.

    A vector that is not finite reads as NaN.

    Args:
        draws: uint32[(dim + 1) / 2], 16 bits for each column, those of the even one are the low.
    """
    row, vector = codes[at + 1 : at + 1 + dim], vectors[source : source + dim]
    most = np.uint32(0)
    for c in range(dim):
        most = max(most, np.uint32(bits_of(vector[c]) & _REST))
    if most >= _INFINITE:
        codes[at] = np.int8(-1)  # the byte _NOT_FINITE
        row[:] = 0
        return
    exponent = np.uint32(max(np.uint32(most + _ROUND_UP) >> _23, _SEVEN) - _SIX)
    exponent = min(exponent, _LARGEST)
    codes[at] = np.int8(np.uint8(exponent))
    inverse = float_of(np.uint32(_254 - exponent) << _23)
    drawn = draws.view(np.uint16)
    for c in range(dim):
        value = vector[c] * inverse
        code = min(np.int32(abs(value) + np.float32(drawn[c]) * _DRAW), _MOST)
        row[c] = np.int8(-code if value < 0 else code)


@njit(cache=True, nogil=True, inline="always")
def draw(base: np.uint64, draws: UInt32Array) -> None:
    """Write the draws of two columns each: the upper halves of mix64(base + column)."""
    for i in range(draws.size):
        draws[i] = np.uint32(mix64(base + np.uint64(2) * np.uint64(i)) >> _UPPER)
