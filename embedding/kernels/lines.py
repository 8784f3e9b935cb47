"""Vectors of 16 float32, one cache line, as values in compiled code.

A loop over the columns of a row is vectorised only if the compiler can tell that the arrays do not
overlap and how often it runs, which of rows it can't. Here one line is one value:

    total = line_of_zeros()
    for i in range(n):
        total = multiply_add(repeated(weights, i), load_line(rows, 16 * i), total)
    store_line(total, out, 0)

Lines can be added, subtracted, multiplied and divided, element by element and rounded as float32.
Arrays are flat, C-contiguous and of float32; positions are in elements, not negative, and all 16
elements must lie inside: nothing is checked. Any position will do, a line need not begin with one.
"""

import operator
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, lower_builtin, register_model, type_callable

WIDTH = 16

_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_UNALIGNED = 4


class _LineType(types.Type):
    pass


@register_model(_LineType)
class _LineModel(models.PrimitiveModel):
    def __init__(self, manager: Any, line_type: Any) -> None:
        super().__init__(manager, line_type, _VECTOR)


LINE = _LineType("float32x16")


def pointer_to(context: Any, builder: Any, signature: Any, arguments: Any, first: int) -> Any:
    """Return the address of the element that arguments `first` and the next name."""
    array_type, position_type = signature.args[first : first + 2]
    view = context.make_array(array_type)(context, builder, arguments[first])
    position = context.cast(builder, arguments[first + 1], position_type, types.intp)
    return builder.gep(view.data, [position])


def spread(builder: Any, element: Any) -> Any:
    """Return a line of one float32 in every place."""
    undefined, integer = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(undefined, element, integer(0))
    zeros = ir.Constant(ir.VectorType(integer, WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def load_line(typing_context: Any, array: Any, position: Any) -> Any:
    """Return array[position : position + 16]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = pointer_to(context, builder, signature, arguments, 0)
        return builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=_UNALIGNED)

    return LINE(array, position), generate


@intrinsic
def store_line(typing_context: Any, value: Any, array: Any, position: Any) -> Any:
    """array[position : position + 16] = value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = pointer_to(context, builder, signature, arguments, 1)
        target = builder.bitcast(pointer, _VECTOR.as_pointer())
        builder.store(arguments[0], target, align=_UNALIGNED)
        return context.get_dummy_value()

    return types.void(value, array, position), generate


@intrinsic
def repeated(typing_context: Any, array: Any, position: Any) -> Any:
    """Return a line of which every element is array[position]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = builder.load(pointer_to(context, builder, signature, arguments, 0))
        return spread(builder, element)

    return LINE(array, position), generate


@intrinsic
def line_of_zeros(typing_context: Any) -> Any:
    """Return a line of zeros."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_VECTOR, [0.0] * WIDTH)

    return LINE(), generate


@intrinsic
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")
        return builder.call(fma, arguments)

    return LINE(a, b, c), generate


@intrinsic
def line_of(typing_context: Any, value: Any) -> Any:
    """Return a line of which every element is a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return spread(builder, arguments[0])

    return LINE(types.float32), generate


@intrinsic
def roots(typing_context: Any, a: Any) -> Any:
    """Return the square roots of a line's elements."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        root = cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.v16f32")
        return builder.call(root, arguments)

    return LINE(a), generate


@intrinsic
def not_below_zero(typing_context: Any, a: Any) -> Any:
    """Return a line with 0 for each element that is less; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = ir.Constant(_VECTOR, [0.0] * WIDTH)
        below = builder.fcmp_ordered("<", arguments[0], zeros)
        return builder.select(below, zeros, arguments[0])

    return LINE(a), generate


@intrinsic
def transpose_lines(
    typing_context: Any, source: Any, at: Any, step: Any, target: Any, to: Any, stride: Any
) -> Any:
    """target[to + k stride + i] = source[at + i step + k] for i, k < 16: 16 lines, transposed.

    By four rounds that each exchange quarters between lines 8, 4, 2 and 1 apart. Both arrays and
    what is said of positions are as of `load_line`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index = types.intp
        first = pointer_to(context, builder, signature, arguments, 0)
        output = pointer_to(context, builder, signature, arguments, 3)
        step, stride = (
            context.cast(builder, arguments[i], signature.args[i], index) for i in (2, 5)
        )

        def line_at(start: Any, number: int, distance: Any) -> Any:
            offset = builder.mul(distance, ir.IntType(64)(number))
            return builder.bitcast(builder.gep(start, [offset]), _VECTOR.as_pointer())

        def mixed(a: Any, b: Any, elements: list[int]) -> Any:
            return builder.shuffle_vector(
                a, b, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), elements)
            )

        lines = [builder.load(line_at(first, i, step), align=_UNALIGNED) for i in range(WIDTH)]
        for apart in (8, 4, 2, 1):
            low = [WIDTH + k - apart if k & apart else k for k in range(WIDTH)]
            high = [WIDTH + k if k & apart else k + apart for k in range(WIDTH)]
            for i in range(WIDTH):
                if not i & apart:
                    a, b = lines[i], lines[i + apart]
                    lines[i], lines[i + apart] = mixed(a, b, low), mixed(a, b, high)
        for k, line in enumerate(lines):
            builder.store(line, line_at(output, k, stride), align=_UNALIGNED)
        return context.get_dummy_value()

    return types.void(source, at, step, target, to, stride), generate


def _define(operation: Any, instruction: str) -> None:
    """Let an operator work on two lines, element by element."""

    @type_callable(operation)
    def type_of(context: Any) -> Any:
        return lambda a, b: LINE if a == b == LINE else None

    @lower_builtin(operation, LINE, LINE)
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


@njit(cache=True, nogil=True, inline="always")
def copy_row(source, at, dim, target, to):  # type: ignore[no-untyped-def]
    """target[to : to + dim] = source[at : at + dim], flat arrays of float32."""
    whole = dim - dim % WIDTH
    for c in range(0, whole, WIDTH):
        store_line(load_line(source, at + c), target, to + c)
    for c in range(whole, dim):
        target[to + c] = source[at + c]


@njit(cache=True, nogil=True, inline="always")
def add_row(source, at, dim, target, to):  # type: ignore[no-untyped-def]
    """target[to : to + dim] += source[at : at + dim], flat arrays of float32."""
    whole = dim - dim % WIDTH
    for c in range(0, whole, WIDTH):
        store_line(load_line(target, to + c) + load_line(source, at + c), target, to + c)
    for c in range(whole, dim):
        target[to + c] += source[at + c]
