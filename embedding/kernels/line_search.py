"""The search in one line of the index: a key against all of its entries at once.

Written in LLVM's vectors, because a loop over the five is compiled to branches or to arithmetic on
one key after the other: this form finds uniform keys of 10 million in 14.6 ns instead of 17.3.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORDS, _PLACES = 8, 5  # of a line: keys in the first five words, then rows of 32 bits

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_LINE = ir.VectorType(_I64, _WORDS)


@intrinsic
def row_in_line(typing_context: Any, entries: Any, line: Any, key: Any) -> Any:
    """Return the row that a key has in a line of an index, or -1.

    An empty entry has key 0 and, for a row, 0. Entries are filled from the first on, so the first
    that is equal to key 0 is that key's own, if it has one.

    Args:
        entries: int64[capacity, 8], see `index`; rows are found by halves of little-endian words.
        line: uint64, must lie inside: nothing is checked.
        key: int64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type, line_type, _ = signature.args
        view = context.make_array(array_type)(context, builder, arguments[0])
        indices = [context.cast(builder, arguments[1], line_type, types.intp), _I64(0)]
        start = cgutils.get_item_pointer(context, builder, array_type, view, indices)
        words = builder.load(builder.bitcast(start, _LINE.as_pointer()), align=8)
        undefined = ir.Constant(_LINE, ir.Undefined)
        first = builder.insert_element(undefined, arguments[2], _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, _WORDS), [0] * _WORDS)
        keys = builder.shuffle_vector(first, undefined, zeros)
        equal = builder.bitcast(builder.icmp_unsigned("==", words, keys), _I8)
        equal = builder.and_(equal, _I8((1 << _PLACES) - 1))
        none = builder.icmp_unsigned("==", equal, _I8(0))
        equal = builder.or_(equal, _I8(1 << _PLACES))  # then the half word behind the last is read
        place = builder.cttz(builder.zext(equal, _I64), ir.IntType(1)(1))
        halves = builder.bitcast(start, _I32.as_pointer())
        row = builder.load(builder.gep(halves, [builder.add(place, _I64(2 * _PLACES))]))
        row = builder.select(none, _I32(0), row)
        return builder.sub(builder.zext(row, _I64), _I64(1))

    return types.int64(entries, line, key), generate
