"""Tiles of a matrix product in compiled code: sums of some rows and lines of columns, in registers.

A tile has a fixed number of rows and of lines of 16 columns, so that all of its sums stay in
registers while they are added up: more of them in flight than one row has, and what is loaded of
the weights serves all rows. Each sum goes over its inputs in their order, one rounding each, so
which tile a row is in changes none of its bits.

Arrays are flat, C-contiguous and of float32; positions are in elements and nothing is checked, as
in `embedding.kernels.lines`.
"""

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from embedding.kernels.lines import WIDTH, pointer_to, spread

_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_INDEX = ir.IntType(64)
_UNALIGNED = 4


def has_wide_registers() -> bool:
    """Whether a line is one register, of 32, where this code is compiled."""
    features = config.CPU_FEATURES
    if features is None:
        return bool(binding.get_host_cpu_features().get("avx512f", False))
    return "+avx512f" in features


def tile_of(rows: int, lines: int) -> Any:
    """Return what adds the products of a tile: for use in compiled code.

        add_products(x, x_at, x_step, w, w_at, w_step, count, sums)

    adds x[x_at + r x_step + k] w[w_at + c w_step + 16 k + e] over k < count, in order, to
    sums[16 (r lines + c) + e], for all rows r, lines c and e < 16.
    """

    @intrinsic
    def add_products(
        typing_context: Any, x: Any, x_at: Any, x_step: Any,
        w: Any, w_at: Any, w_step: Any, count: Any, sums: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def index(number: int) -> Any:
                return context.cast(builder, arguments[number], signature.args[number], types.intp)

            def moved(start: Any, by: Any, times: int) -> Any:
                return builder.gep(start, [builder.mul(by, _INDEX(times))])

            def line_at(start: Any, by: int) -> Any:
                return builder.bitcast(builder.gep(start, [_INDEX(by)]), _VECTOR.as_pointer())

            first_x = pointer_to(context, builder, signature, arguments, 0)
            first_w = pointer_to(context, builder, signature, arguments, 3)
            num_inputs = index(6)
            total = context.make_array(signature.args[7])(context, builder, arguments[7]).data
            x_rows = [moved(first_x, index(2), r) for r in range(rows)]
            w_lines = [moved(first_w, index(5), c) for c in range(lines)]
            places = [line_at(total, WIDTH * i) for i in range(rows * lines)]
            begun = [builder.load(place, align=_UNALIGNED) for place in places]
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), "llvm.fmuladd.v16f32"
            )
            before = builder.basic_block
            head = builder.append_basic_block("tile.head")
            body = builder.append_basic_block("tile.body")
            end = builder.append_basic_block("tile.end")
            builder.branch(head)
            builder.position_at_end(head)
            k = builder.phi(_INDEX)
            k.add_incoming(_INDEX(0), before)
            running = [builder.phi(_VECTOR) for _ in begun]
            for phi, value in zip(running, begun, strict=True):
                phi.add_incoming(value, before)
            builder.cbranch(builder.icmp_signed("<", k, num_inputs), body, end)
            builder.position_at_end(body)
            at = builder.mul(k, _INDEX(WIDTH))
            spreads = (spread(builder, builder.load(builder.gep(x_row, [k]))) for x_row in x_rows)
            weights = (
                builder.load(
                    builder.bitcast(builder.gep(start, [at]), _VECTOR.as_pointer()),
                    align=_UNALIGNED,
                )
                for start in w_lines
            )
            # Of rows and lines those that are fewer are held, the others loaded one by one: a
            # register more than there are would be stored and loaded again at each input.
            products: list[tuple[int, Any, Any]] = []
            if rows < lines:
                held = list(spreads)
                for c, weight in enumerate(weights):
                    products += [(r * lines + c, each, weight) for r, each in enumerate(held)]
            else:
                held = list(weights)
                for r, each in enumerate(spreads):
                    products += [(r * lines + c, each, weight) for c, weight in enumerate(held)]
            for place, each, weight in products:
                phi = running[place]
                phi.add_incoming(builder.call(fma, [each, weight, phi]), body)
            k.add_incoming(builder.add(k, _INDEX(1)), body)
            builder.branch(head)
            builder.position_at_end(end)
            for place, phi in zip(places, running, strict=True):
                builder.store(phi, place, align=_UNALIGNED)
            return context.get_dummy_value()

        return types.void(x, x_at, x_step, w, w_at, w_step, count, sums), generate

    return add_products
