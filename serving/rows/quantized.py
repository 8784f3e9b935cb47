"""Vectors of one byte a value, with a scale and a bias of their own for each row.

A row is a word of two bfloat16, the bias in its low bits and the scale above, then the codes, four
in each word: value = bias + scale * code. Bias and scale are rounded so that the row's values lie
between bias and bias + 255 scale. So no value is off by more than half a step, 1 / 500 of the row's
range and 1 / 60,000 of its largest value.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding import TableSpec
from embedding.kernels.bits import bits_of, float_of
from embedding.kernels.prefetch import AHEAD, prefetch_row
from embedding.table.precision import BFLOAT16, kind_of, places_of

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

RowsAs = Literal["float32", "bf16", "int8"]
ROWS_AS: tuple[RowsAs, ...] = get_args(RowsAs)
INT8 = 4
"""Beside the kinds of `embedding.table.precision`."""

_LOW_16, _16 = np.uint32(0xFFFF), np.uint32(16)
_1, _NAN = np.uint32(1), np.uint32(0x7FC07FC0)


def kind_for(spec: TableSpec, rows: RowsAs) -> int:
    """Return how the rows of a table are kept: as asked for, or as they are where that is less."""
    own = kind_of(spec.value_dtype)
    wanted = {"float32": own, "bf16": BFLOAT16, "int8": INT8}[rows]
    return wanted if width_of(spec.dim, wanted) < width_of(spec.dim, own) else own


def width_of(dim: int, kind: int) -> int:
    """Return the float32 places that a vector takes."""
    return 1 + (dim + 3) // 4 if kind == INT8 else places_of(dim, kind)


@njit(cache=True, nogil=True)
def _rounded_down(value: np.float32) -> np.float32:
    """The largest bfloat16 that is not larger."""
    bits = bits_of(value)
    cut = float_of((bits >> _16) << _16)
    if cut > value:
        cut = float_of(((bits >> _16) + _1) << _16)
    return cut


@njit(cache=True, nogil=True)
def write_int8(values: Float32s, rows: Int64s, vectors: Float32s) -> None:
    """Write vectors, float32[n, dim], to rows of values, float32[any, width]; each at one place.

    A vector that is not finite, or whose values are too far apart for float32, reads as NaN.
    """
    n, dim = vectors.shape
    width = values.shape[1]
    places = values.view(np.uint8)
    for i in range(n):
        row = rows[i]
        least = most = vectors[i, 0]
        finite = True
        for c in range(dim):
            value = vectors[i, c]
            finite &= np.isfinite(value)
            least, most = min(least, value), max(most, value)
        for c in range(4 * width):
            places[row, c] = 0
        bias = _rounded_down(least)
        scale = -_rounded_down(-((most - bias) / np.float32(255)))
        if not (finite and np.isfinite(scale)):
            values[row, 0] = float_of(_NAN)
            continue
        values[row, 0] = float_of((bits_of(scale) & ~_LOW_16) | (bits_of(bias) >> _16))
        for c in range(dim):
            if scale > 0:
                code = np.rint((vectors[i, c] - bias) / scale)
                places[row, 4 + c] = np.uint8(min(max(code, 0), 255))


@njit(cache=True, nogil=True)
def read_int8(values: Float32s, rows: Int64s, out: Float32s) -> None:
    """Write the vectors of rows, int64[n], to out, float32[n, dim]; -1 leaves out[i] as it is."""
    n, dim = out.shape
    places = values.view(np.uint8)
    for i in range(n):
        prefetch_row(values, max(rows[min(i + AHEAD, n - 1)], 0), values.shape[1])
        row = rows[i]
        if row < 0:
            continue
        word = bits_of(values[row, 0])
        bias, scale = float_of(word << _16), float_of(word & ~_LOW_16)
        for c in range(dim):
            out[i, c] = bias + scale * np.float32(places[row, 4 + c])
