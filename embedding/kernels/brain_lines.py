"""Lines of 16 bfloat16: eight words of two each, widened to a line of float32, and rounded back.

Two values lie in a word of 32 bits, the even column in the low ones. See `lines`; arrays are flat,
C-contiguous and of float32, of which nothing but the bits counts.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from embedding.kernels.lines import LINE, WIDTH, pointer_to

WORDS = WIDTH // 2
"""Places that a line of bfloat16 takes."""

_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_UNALIGNED = 4
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_HALF, _WHOLE = ir.VectorType(_INT32, WORDS), ir.VectorType(_INT32, WIDTH)
_LONG = ir.VectorType(_INT64, WORDS)
_INFINITE, _QUIET_NAN, _LARGEST = 0x7F800000, 0x7FC00000, 0x7F7F
_SIGN, _REST, _LOW, _HIGH = 0x80000000, 0x7FFFFFFF, 0xFFFF, 0xFFFF0000
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST = 31


def _all(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _places(columns: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_INT32, len(columns)), columns)


@intrinsic
def load_brain_line(typing_context: Any, array: Any, position: Any) -> Any:
    """Return the 16 values in array[position : position + 8]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = pointer_to(context, builder, signature, arguments, 0)
        words = builder.load(builder.bitcast(pointer, _HALF.as_pointer()), align=_UNALIGNED)
        even = builder.shl(words, _all(_HALF, 16))
        odd = builder.and_(words, _all(_HALF, _HIGH))
        order = [c // 2 + WORDS * (c % 2) for c in range(WIDTH)]
        return builder.bitcast(builder.shuffle_vector(even, odd, _places(order)), _FLOATS)

    return LINE(array, position), generate


@intrinsic
def store_brain_line(typing_context: Any, line: Any, base: Any, array: Any, position: Any) -> Any:
    """array[position : position + 8] = a line, rounded by draws; see `precision.narrow_rows`.

    Args:
        base: uint64; columns 2 i and 2 i + 1 take the upper 32 bits of mix64(base + 2 i).
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _WHOLE)
        draws = _draws(builder, arguments[1])
        even, odd = (
            builder.shuffle_vector(bits, bits, _places(list(range(first, WIDTH, 2))))
            for first in (0, 1)
        )
        low = _rounded(builder, even, builder.and_(draws, _all(_HALF, _LOW)))
        high = _rounded(builder, odd, builder.lshr(draws, _all(_HALF, 16)))
        words = builder.or_(low, builder.shl(high, _all(_HALF, 16)))
        pointer = pointer_to(context, builder, signature, arguments, 2)
        builder.store(words, builder.bitcast(pointer, _HALF.as_pointer()), align=_UNALIGNED)
        return context.get_dummy_value()

    return types.void(line, types.uint64, array, position), generate


def _draws(builder: Any, base: Any) -> Any:
    """Return the upper halves of `mixing.mix64` of base, base + 2, ... base + 14."""
    first = builder.insert_element(ir.Constant(_LONG, ir.Undefined), base, _INT32(0))
    z = builder.shuffle_vector(first, first, _places([0] * WORDS))
    z = builder.add(z, ir.Constant(_LONG, list(range(0, WIDTH, 2))))
    z = builder.add(z, _all(_LONG, _GOLDEN))
    for shift, multiplier in _ROUNDS:
        z = builder.xor(z, builder.lshr(z, _all(_LONG, shift)))
        z = builder.mul(z, _all(_LONG, multiplier))
    z = builder.xor(z, builder.lshr(z, _all(_LONG, _LAST)))
    return builder.trunc(builder.lshr(z, _all(_LONG, 32)), _HALF)


def _rounded(builder: Any, bits: Any, draws: Any) -> Any:
    """Return the 16 bits that float32 are rounded to by draws of 16 bits, as `precision` has it."""

    def least(a: Any, b: Any) -> Any:
        return builder.select(builder.icmp_unsigned("<", a, b), a, b)

    sixteen = _all(_HALF, 16)
    sign = builder.lshr(builder.and_(bits, _all(_HALF, _SIGN)), sixteen)
    size = builder.and_(bits, _all(_HALF, _REST))
    finite = least(builder.lshr(builder.add(size, draws), sixteen), _all(_HALF, _LARGEST))
    other = builder.lshr(least(size, _all(_HALF, _QUIET_NAN)), sixteen)
    is_finite = builder.icmp_unsigned("<", size, _all(_HALF, _INFINITE))
    return builder.or_(sign, builder.select(is_finite, finite, other))
