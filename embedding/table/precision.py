"""Vectors of 16 or 8 bits: how they lie in a row, and how they are rounded.

A row is float32[width]: the vector, then the slots. A vector of float16 or bfloat16 takes half as
many of these places, two values in each, the even column in the low bits. Slots stay float32, and
optimizers see rows of float32: `widen_rows` copies some, `narrow_rows` puts them back.

What an update leaves is rounded *stochastically*: up with the probability of the part that is cut
off, so that steps much smaller than the distance of two values still move a row on average. The
draw is made from (seed, key, step, column) alone, so a row is rounded the same on any shard.
Initial and imported values are rounded to the nearest. Values beyond the largest of float16, 65504,
become that. Those of int8 have a scale of their own for each row, see `eight_bits`.

Source: stochastic rounding as in Gupta et al. 2015; the counter-based draws as in `initial_values`.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.bits import bits_of, float_of
from embedding.kernels.half_lines import (
    load_bfloat16_line,
    load_float16_line,
    store_bfloat16_line,
    store_float16_line,
)
from embedding.kernels.lines import WIDTH, copy_row, load_line, store_line
from embedding.kernels.mixing import mix64
from embedding.kernels.prefetch import AHEAD, prefetch_ahead, prefetch_row
from embedding.kernels.row_copy import copy_rows
from embedding.optimizers.rule import rule_for
from embedding.spec.table import TableSpec, ValueDtype
from embedding.table import eight_bits
from embedding.table.eight_bits import NEAREST, draw, read_codes, write_codes

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

FLOAT32, FLOAT16, BFLOAT16, INT8 = range(4)
FIRST = np.int64(0)  # a row: as a Python int, kernels would be compiled for it alone
_KINDS: dict[ValueDtype, int] = {
    "float32": FLOAT32,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "int8": INT8,
}

_NEAREST = np.uint32(0x8000)  # a draw in the middle rounds to the nearest, ties away from zero
_LOW_16 = np.uint32(0xFFFF)
_HALF_SIGN, _HALF_REST = np.uint32(0x8000), np.uint32(0x7FFF)
_SIGN, _REST = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_INFINITE, _QUIET_NAN = np.uint32(0x7F800000), np.uint32(0x7FC00000)
_FRACTION, _LEADING_ONE = np.uint32(0x7FFFFF), np.uint32(0x800000)
_BRAIN_MAX = np.uint32(0x7F7F)
_HALF_MAX, _HALF_MAX_WIDE = np.uint32(0x7BFF), np.uint32(0x477FE000)  # 65504, also as float32
_HALF_INFINITE, _HALF_NAN = np.uint32(0x7C00), np.uint32(0x7E00)
_HALF_NORMAL_WIDE = np.uint32(0x38800000)  # 2^-14 as float32, the least normal number of float16
_HALF_BIAS = np.uint32(112 << 10)  # difference of the exponents' biases, in place
_HALF_SCALE = np.float32(2.0**112)
_1, _3, _13, _16, _23 = np.uint32(1), np.uint32(3), np.uint32(13), np.uint32(16), np.uint32(23)
_BITS_16, _UPPER = np.uint64(16), np.uint64(32)


def kind_of(dtype: ValueDtype) -> int:
    """Return what kernels take for a type of values."""
    return _KINDS[dtype]


def stored_width(spec: TableSpec) -> int:
    """Return the float32 places that a row of a table takes: vector and slots."""
    slots = rule_for(spec.optimizer, sparse=True).row_width(spec.dim) - spec.dim
    return places_of(spec.dim, kind_of(spec.value_dtype)) + slots


def places_of(dim: int, kind: int) -> int:
    """Return the float32 places that a vector takes."""
    if kind == INT8:
        return eight_bits.places_of(dim)
    return dim if kind == FLOAT32 else (dim + 1) // 2


@njit(cache=True, nogil=True)
def _narrow(bits: np.uint32, draw: np.uint32, kind: int) -> np.uint32:
    """Round the bits of a float32 to 16 bits; `draw` is 16 bits, uniform or `_NEAREST`."""
    sign, size = (bits & _SIGN) >> _16, bits & _REST
    if kind == BFLOAT16:
        if size >= _INFINITE:
            return sign | (min(size, _QUIET_NAN) >> _16)
        return sign | min((size + draw) >> _16, _BRAIN_MAX)
    if size >= _HALF_MAX_WIDE:
        if size >= _INFINITE:
            return sign | (_HALF_NAN if size > _INFINITE else _HALF_INFINITE)
        return sign | _HALF_MAX
    if size >= _HALF_NORMAL_WIDE:
        return sign | (((size + (draw >> _3)) >> _13) - _HALF_BIAS)
    # Multiples of 2^-24. Below 2^-40 the draw has too few bits to round up.
    exponent = size >> _23
    cut = np.uint64(126) - np.uint64(max(exponent, _1))
    if cut > np.uint64(40):
        return sign
    fraction = np.uint64(size & _FRACTION)
    if exponent > 0:
        fraction |= np.uint64(_LEADING_ONE)
    return sign | np.uint32((fraction + ((np.uint64(draw) << cut) >> _BITS_16)) >> cut)


@njit(cache=True, nogil=True)
def _widen(half: np.uint32, kind: int) -> np.float32:
    """Return the number that 16 bits stand for."""
    if kind == BFLOAT16:
        return float_of(half << _16)
    size = half & _HALF_REST
    # Shifted into place its exponent is too small by the difference of the biases.
    number = float_of(size << _13) * _HALF_SCALE
    if size >= _HALF_INFINITE:
        number = float_of(_INFINITE | (size << _13))
    return -number if half & _HALF_SIGN else number


@njit(cache=True, nogil=True, inline="always")
def _read_at(
    words: Float32Array, at: np.int64, kind: int, out: Float32Array, to: np.int64, dim: int
) -> None:
    """out[to : to + dim] = the vector of 16 bits that begins at words[at]; flat arrays."""
    whole = dim - dim % WIDTH
    if kind == BFLOAT16:
        for c in range(0, whole, WIDTH):
            store_line(load_bfloat16_line(words, at + (c >> 1)), out, to + c)
    else:
        for c in range(0, whole, WIDTH):
            store_line(load_float16_line(words, at + (c >> 1)), out, to + c)
    for c in range(whole, dim - 1, 2):
        word = bits_of(words[at + (c >> 1)])
        out[to + c] = _widen(word & _LOW_16, kind)
        out[to + c + 1] = _widen(word >> _16, kind)
    if dim & 1:
        out[to + dim - 1] = _widen(bits_of(words[at + (dim >> 1)]) & _LOW_16, kind)


@njit(cache=True, nogil=True, inline="always")
def read_vector(
    values: Float32Array,
    row: np.int64,
    kind: int,
    out: Float32Array,
    target: np.int64,
    dim: int,
) -> None:
    """Write the vector of a row of values, float32[capacity, width], to out[target, :dim]."""
    if kind == FLOAT32:
        for c in range(dim):
            out[target, c] = values[row, c]
        return
    words, numbers = values.reshape(-1), out.reshape(-1)
    at, to = row * values.shape[1], target * out.shape[1]
    if kind == INT8:
        read_codes(words.view(np.int8), 4 * at, numbers, to, dim)
    else:
        _read_at(words, at, kind, numbers, to, dim)


@njit(cache=True, nogil=True)
def read_vectors(values: Float32Array, positions: Int64Array, kind: int, out: Float32Array) -> None:
    """Write the vectors of rows, int64[n], to out, float32[n, dim]; -1 leaves out[i] as it is."""
    if kind == FLOAT32:
        copy_rows(values, positions, 0, out)
        return
    n, dim = out.shape
    width, words, numbers = values.shape[1], values.reshape(-1), out.reshape(-1)
    codes = words.view(np.int8)
    for i in range(n):
        prefetch_row(values, max(positions[min(i + AHEAD, n - 1)], 0), (dim + 1) // 2)
        if positions[i] < 0:
            continue
        if kind == INT8:
            read_codes(codes, 4 * positions[i] * width, numbers, i * dim, dim)
        else:
            _read_at(words, positions[i] * width, kind, numbers, i * dim, dim)


@njit(cache=True, nogil=True)
def write_vector(
    values: Float32Array,
    row: np.int64,
    kind: int,
    vectors: Float32Array,
    source: np.int64,
    dim: int,
) -> None:
    """Write vectors[source, :dim] to a row of values, rounded to the nearest."""
    if kind == FLOAT32:
        for c in range(dim):
            values[row, c] = vectors[source, c]
        return
    if kind == INT8:
        codes, numbers = values.reshape(-1).view(np.int8), vectors.reshape(-1)
        at, start = 4 * row * values.shape[1], source * vectors.shape[1]
        write_codes(codes, at, numbers, start, dim, np.full((dim + 1) // 2, NEAREST))
        return
    for c in range(0, dim, 2):
        word = _narrow(bits_of(vectors[source, c]), _NEAREST, kind)
        if c + 1 < dim:
            word |= _narrow(bits_of(vectors[source, c + 1]), _NEAREST, kind) << _16
        values[row, c >> 1] = float_of(word)


@njit(cache=True, nogil=True)
def round_vector(
    vectors: Float32Array, row: np.int64, kind: int, dim: int, narrow: Float32Array
) -> None:
    """Round vectors[row, :dim] to the nearest, by way of narrow, float32[1, at least dim]."""
    write_vector(narrow, FIRST, kind, vectors, row, dim)
    read_vector(narrow, FIRST, kind, vectors, row, dim)


@njit(cache=True, nogil=True)
def widen_rows(
    values: Float32Array,
    positions: Int64Array,
    kind: int,
    dim: int,
    wide: Float32Array,
    places: Int64Array,
) -> None:
    """Copy rows with vectors of 16 or 8 bits to rows of float32.

    Args:
        values: float32[capacity, width].
        positions: int64[n], rows; -1 is left out.
        wide: float32[at least n, dim + slots], written.
        places: int64[n], written: where in `wide` each is, or -1.
    """
    wide_width, width = wide.shape[1], values.shape[1]
    narrow = width - (wide_width - dim)
    words, numbers = values.reshape(-1), wide.reshape(-1)
    codes = words.view(np.int8)
    for i in range(positions.size):
        prefetch_ahead(values, positions, i)
        row, places[i] = positions[i], -1
        if row >= 0:
            places[i] = i
            if kind == INT8:
                read_codes(codes, 4 * row * width, numbers, i * wide_width, dim)
            else:
                _read_at(words, row * width, kind, numbers, i * wide_width, dim)
            copy_row(words, row * width + narrow, wide_width - dim, numbers, i * wide_width + dim)


@njit(cache=True, nogil=True)
def narrow_rows(
    values: Float32Array,
    positions: Int64Array,
    kind: int,
    dim: int,
    wide: Float32Array,
    keys: Int64Array,
    seed: np.uint64,
    step: int,
) -> None:
    """Put rows back that `widen_rows` copied, each vector rounded stochastically.

    Args:
        keys: int64[n], whose rows they are.
        seed: of the table's draws.
        step: the step that changed them.
    """
    wide_width, width = wide.shape[1], values.shape[1]
    narrow = width - (wide_width - dim)
    whole = dim - dim % WIDTH
    drawn = np.empty((dim + 1) // 2, np.uint32)
    words, numbers = values.reshape(-1), wide.reshape(-1)
    codes = words.view(np.int8)
    for i in range(positions.size):
        if positions[i] < 0:
            continue
        at, source = positions[i] * width, i * wide_width
        base = mix64(mix64(np.uint64(keys[i]) ^ seed) + np.uint64(step))
        copy_row(numbers, source + dim, wide_width - dim, words, at + narrow)
        if kind == INT8:
            draw(base, drawn)
            write_codes(codes, 4 * at, numbers, source, dim, drawn)
            continue
        for c in range(0, whole, WIDTH):
            line = load_line(numbers, source + c)
            if kind == BFLOAT16:
                store_bfloat16_line(line, base + np.uint64(c), words, at + (c >> 1))
            else:
                store_float16_line(line, base + np.uint64(c), words, at + (c >> 1))
        for c in range(whole, dim, 2):
            draws = np.uint32(mix64(base + np.uint64(c)) >> _UPPER)
            word = _narrow(bits_of(numbers[source + c]), draws & _LOW_16, kind)
            if c + 1 < dim:
                word |= _narrow(bits_of(numbers[source + c + 1]), draws >> _16, kind) << _16
            words[at + (c >> 1)] = float_of(word)
