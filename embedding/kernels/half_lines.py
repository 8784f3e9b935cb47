"""Lines of 16 values of 16 bits: eight words of two each, widened to float32, and rounded back.

Two values lie in a word of 32 bits, the even column in the low ones. See `lines`; arrays are flat,
C-contiguous and of float32, of which nothing but the bits counts. Bit for bit they do what
`embedding.table.precision` does with single values, which also says what is rounded how.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from embedding.kernels.lines import LINE, WIDTH, pointer_to

_WORDS = WIDTH // 2
_UNALIGNED = 4
_INT32 = ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_WHOLE, _HALF = ir.VectorType(_INT32, WIDTH), ir.VectorType(_INT32, _WORDS)
_HALF_FLOATS = ir.VectorType(ir.FloatType(), _WORDS)
_LONG = ir.VectorType(ir.IntType(64), _WORDS)

_SIGN, _REST, _LOW, _HIGH = 0x80000000, 0x7FFFFFFF, 0xFFFF, 0xFFFF0000
_INFINITE, _QUIET_NAN, _BRAIN_MAX = 0x7F800000, 0x7FC00000, 0x7F7F
_FRACTION, _LEADING_ONE = 0x7FFFFF, 0x800000
_HALF_SIGN, _HALF_REST, _HALF_INFINITE, _HALF_NAN = 0x8000, 0x7FFF, 0x7C00, 0x7E00
_HALF_MAX, _HALF_MAX_WIDE, _HALF_NORMAL_WIDE = 0x7BFF, 0x477FE000, 0x38800000
_HALF_BIAS = 112 << 10
# Of `mixing.mix64`.
_GOLDEN, _LAST_SHIFT = 0x9E3779B97F4A7C15, 31
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@intrinsic
def load_bfloat16_line(typing_context: Any, array: Any, position: Any) -> Any:
    """Return the 16 bfloat16 in array[position : position + 8]."""
    return LINE(array, position), _load(_widened_bfloat16)


@intrinsic
def load_float16_line(typing_context: Any, array: Any, position: Any) -> Any:
    """Return the 16 float16 in array[position : position + 8]."""
    return LINE(array, position), _load(_widened_float16)


@intrinsic
def store_bfloat16_line(typing_context: Any, line: Any, base: Any, array: Any, at: Any) -> Any:
    """array[at : at + 8] = a line, rounded by draws to bfloat16.

    Args:
        base: uint64; columns 2 i and 2 i + 1 take the upper 32 bits of mix64(base + 2 i).
    """
    return types.void(line, types.uint64, array, at), _store(_rounded_bfloat16)


@intrinsic
def store_float16_line(typing_context: Any, line: Any, base: Any, array: Any, at: Any) -> Any:
    """array[at : at + 8] = a line, rounded by draws to float16; as of `store_bfloat16_line`."""
    return types.void(line, types.uint64, array, at), _store(_rounded_float16)


def _all(vector: Any, value: float) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _columns(columns: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_INT32, len(columns)), columns)


def _least(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_unsigned("<", a, b), a, b)


def _load(widened: Any) -> Any:
    """Return what makes code that loads a line; `widened` makes that for even and odd columns."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = pointer_to(context, builder, signature, arguments, 0)
        words = builder.load(builder.bitcast(pointer, _HALF.as_pointer()), align=_UNALIGNED)
        even, odd = widened(builder, words)
        order = [c // 2 + _WORDS * (c % 2) for c in range(WIDTH)]
        return builder.bitcast(builder.shuffle_vector(even, odd, _columns(order)), _FLOATS)

    return generate


def _store(rounded: Any) -> Any:
    """Return what makes code that stores a line; `rounded` makes that for columns of one parity."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sixteen = _all(_HALF, 16)
        bits = builder.bitcast(arguments[0], _WHOLE)
        even, odd = (
            builder.shuffle_vector(bits, bits, _columns(list(range(first, WIDTH, 2))))
            for first in (0, 1)
        )
        draws = _draws(builder, arguments[1])
        low = rounded(builder, even, builder.and_(draws, _all(_HALF, _LOW)))
        high = rounded(builder, odd, builder.lshr(draws, sixteen))
        words = builder.or_(low, builder.shl(high, sixteen))
        pointer = pointer_to(context, builder, signature, arguments, 2)
        builder.store(words, builder.bitcast(pointer, _HALF.as_pointer()), align=_UNALIGNED)
        return context.get_dummy_value()

    return generate


def _draws(builder: Any, base: Any) -> Any:
    """Return the upper halves of mix64 of base, base + 2, ... base + 14."""
    first = builder.insert_element(ir.Constant(_LONG, ir.Undefined), base, _INT32(0))
    z = builder.shuffle_vector(first, first, _columns([0] * _WORDS))
    z = builder.add(z, ir.Constant(_LONG, list(range(0, WIDTH, 2))))
    z = builder.add(z, _all(_LONG, _GOLDEN))
    for shift, multiplier in _ROUNDS:
        z = builder.xor(z, builder.lshr(z, _all(_LONG, shift)))
        z = builder.mul(z, _all(_LONG, multiplier))
    z = builder.xor(z, builder.lshr(z, _all(_LONG, _LAST_SHIFT)))
    return builder.trunc(builder.lshr(z, _all(_LONG, 32)), _HALF)


def _widened_bfloat16(builder: Any, words: Any) -> tuple[Any, Any]:
    return builder.shl(words, _all(_HALF, 16)), builder.and_(words, _all(_HALF, _HIGH))


def _widened_float16(builder: Any, words: Any) -> tuple[Any, Any]:
    def widened(half: Any) -> Any:
        size = builder.and_(half, _all(_HALF, _HALF_REST))
        shifted = builder.shl(size, _all(_HALF, 13))
        # Shifted into place its exponent is too small by the difference of the biases.
        scale = _all(_HALF_FLOATS, 2.0**112)
        finite = builder.bitcast(builder.fmul(builder.bitcast(shifted, _HALF_FLOATS), scale), _HALF)
        other = builder.or_(shifted, _all(_HALF, _INFINITE))
        is_finite = builder.icmp_unsigned("<", size, _all(_HALF, _HALF_INFINITE))
        sign = builder.shl(builder.and_(half, _all(_HALF, _HALF_SIGN)), _all(_HALF, 16))
        return builder.or_(sign, builder.select(is_finite, finite, other))

    low = builder.and_(words, _all(_HALF, _LOW))
    return widened(low), widened(builder.lshr(words, _all(_HALF, 16)))


def _rounded_bfloat16(builder: Any, bits: Any, draws: Any) -> Any:
    sixteen = _all(_HALF, 16)
    sign = builder.lshr(builder.and_(bits, _all(_HALF, _SIGN)), sixteen)
    size = builder.and_(bits, _all(_HALF, _REST))
    up = builder.lshr(builder.add(size, draws), sixteen)
    finite = _least(builder, up, _all(_HALF, _BRAIN_MAX))
    other = builder.lshr(_least(builder, size, _all(_HALF, _QUIET_NAN)), sixteen)
    is_finite = builder.icmp_unsigned("<", size, _all(_HALF, _INFINITE))
    return builder.or_(sign, builder.select(is_finite, finite, other))


def _rounded_float16(builder: Any, bits: Any, draws: Any) -> Any:
    def below(limit: int) -> Any:
        return builder.icmp_unsigned("<", size, _all(_HALF, limit))

    sign = builder.lshr(builder.and_(bits, _all(_HALF, _SIGN)), _all(_HALF, 16))
    size = builder.and_(bits, _all(_HALF, _REST))
    up = builder.add(size, builder.lshr(draws, _all(_HALF, 3)))
    normal = builder.sub(builder.lshr(up, _all(_HALF, 13)), _all(_HALF, _HALF_BIAS))
    nan_too = builder.select(
        below(_INFINITE + 1), _all(_HALF, _HALF_INFINITE), _all(_HALF, _HALF_NAN)
    )
    large = builder.select(below(_INFINITE), _all(_HALF, _HALF_MAX), nan_too)
    half = builder.select(below(_HALF_MAX_WIDE), normal, large)
    half = builder.select(below(_HALF_NORMAL_WIDE), _tiny_float16(builder, size, draws), half)
    return builder.or_(sign, half)


def _tiny_float16(builder: Any, size: Any, draws: Any) -> Any:
    """Return sizes below the normal numbers of float16 as multiples of 2^-24."""
    one, exponent = _all(_HALF, 1), builder.lshr(size, _all(_HALF, 23))
    has_one = builder.icmp_unsigned(">=", exponent, one)
    cut = builder.sub(_all(_HALF, 126), builder.select(has_one, exponent, one))
    # Below 2^-40 the draw has too few bits to round up. What is above all tiny numbers is not used.
    rounds = builder.icmp_unsigned("<=", cut, _all(_HALF, 40))
    cut = builder.zext(builder.select(rounds, cut, _all(_HALF, 40)), _LONG)
    leading = builder.select(has_one, _all(_HALF, _LEADING_ONE), _all(_HALF, 0))
    fraction = builder.or_(builder.and_(size, _all(_HALF, _FRACTION)), leading)
    drawn = builder.lshr(builder.shl(builder.zext(draws, _LONG), cut), _all(_LONG, 16))
    whole = builder.lshr(builder.add(builder.zext(fraction, _LONG), drawn), cut)
    return builder.select(rounds, builder.trunc(whole, _HALF), _all(_HALF, 0))
