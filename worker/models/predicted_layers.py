"""Fully connected layers for prediction: a sample's output does not depend on its batch.

BLAS sums a row's products in another order where the row stands elsewhere in the matrix, or the
matrix has more rows, so the last bits of a logit would depend on which samples came with it. Here
every element is the sum over its inputs in their order, each product added with one rounding. So
evaluation, `predict` and a served request, whatever its batch, give a sample the same logit. And
what the first inputs of a layer add, where samples have them in common, can be summed once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.lines import (
    WIDTH,
    line_of_zeros,
    load_line,
    not_below_zero,
    store_line,
)
from embedding.kernels.tiles import has_wide_registers, tile_of
from worker.models.protocol import FloatArray, SharedInputs

_BLOCK = 96  # samples whose inputs stay in the cache while all outputs are computed
# Lines of a tile of 6 samples, and of the 4, 2 or 1 that are left: as many sums as registers hold
# beside what they read. So few samples have several lines in flight. Where no more than 2 or 1 are
# computed at all it is by tiles of their own, which have more of them.
_MANY, _REST, _TWO, _ONE = (4, 4, 8, 16) if has_wide_registers() else (1, 3, 3, 4)
_WIDEST = 16
_6_many = tile_of(6, _MANY)
_4_rest, _2_rest, _1_rest = (tile_of(rows, _REST) for rows in (4, 2, 1))
_2_two, _1_one = tile_of(2, _TWO), tile_of(1, _ONE)
_6_last, _4_last, _2_last, _1_last = (tile_of(rows, 1) for rows in (6, 4, 2, 1))
_FOUR_AT_ONCE = _REST == _MANY  # 4 samples and so many lines of them have a register for each sum

Int64Array = npt.NDArray[np.int64]


class PackedLayers(NamedTuple):
    """Layers, one after another, as their kernel reads them.

    Args:
        weights: float32, layer after layer [lines, inputs, 16]: of 16 outputs after another, for
            each input one line. Outputs that fill the last line are 0.
        biases: float32, layer after layer, each with as many as its lines have.
        shapes: int64[layers, 5]: inputs, outputs, where weights and biases begin, whether ReLU
            follows.
    """

    weights: FloatArray
    biases: FloatArray
    shapes: Int64Array

    @property
    def widest(self) -> int:
        """The most outputs of a layer."""
        return int(self.shapes[:, 1].max(initial=0))


class BegunSums(NamedTuple):
    """Sums of a layer over its first inputs, for runs of samples that have these in common.

    Args:
        sums: float32[runs * lines * 16].
        group: int64[n], the run of each sample.
        num_inputs: over how many; 0: nothing is begun.
    """

    sums: FloatArray
    group: Int64Array
    num_inputs: int


NOT_BEGUN = BegunSums(np.empty(0, np.float32), np.empty(0, np.int64), 0)


def pack_layers(layers: Sequence[tuple[FloatArray, FloatArray, bool]]) -> PackedLayers:
    """Copy layers, each weights of float32[inputs, outputs], a bias and whether ReLU follows."""
    weights, biases, shapes = [], [], []
    weight_at = bias_at = 0
    for weight, bias, relu in layers:
        inputs, outputs = weight.shape
        packed = np.zeros((_lines_of(outputs), inputs, WIDTH), np.float32)
        for line in range(len(packed)):
            columns = weight[:, line * WIDTH : (line + 1) * WIDTH]
            packed[line, :, : columns.shape[1]] = columns
        weights.append(packed.reshape(-1))
        biases.append(np.pad(bias, (0, len(packed) * WIDTH - outputs)))
        shapes.append((inputs, outputs, weight_at, bias_at, int(relu)))
        weight_at, bias_at = weight_at + packed.size, bias_at + len(packed) * WIDTH
    none = np.empty(0, np.float32)
    return PackedLayers(
        np.concatenate([none, *weights]),
        np.concatenate([none, *biases]),
        np.array(shapes, np.int64).reshape(len(shapes), 5),
    )


def _lines_of(outputs: int) -> int:
    return -(-outputs // WIDTH)


def begin_sums(
    layers: PackedLayers, inputs: FloatArray, num_inputs: int, shared: SharedInputs
) -> BegunSums:
    """Sum over the first inputs of the first layer, once for each run of samples that share them.

    Args:
        inputs: float32[n, inputs], C-contiguous; of a run's first sample the first `num_inputs` are
            read.
    """
    runs = shared.firsts.size
    sums = np.empty(runs * _lines_of(int(layers.shapes[0, 1])) * WIDTH, np.float32)
    if num_inputs == 0:
        return NOT_BEGUN
    _begin_sums(layers, inputs, shared.firsts, num_inputs, sums)
    return BegunSums(sums, shared.group, num_inputs)


def predict_layers(
    layers: PackedLayers,
    inputs: FloatArray,
    work: FloatArray,
    out: FloatArray,
    begun: BegunSums = NOT_BEGUN,
) -> None:
    """Run layers one after another.

    Args:
        inputs: float32[n, inputs of the first], C-contiguous.
        work: float32[at least 2 n `layers.widest`], written.
        out: float32[n, outputs of the last], C-contiguous, written; untouched without layers.
        begun: sums of the first layer; the inputs that they have are not read.
    """
    run_layers(layers, inputs, work, out, begun)


@njit(cache=True, nogil=True)
def run_layers(layers, inputs, work, out, begun):  # type: ignore[no-untyped-def]
    """As `predict_layers`, from compiled code."""
    n, num_layers = out.shape[0], layers.shapes.shape[0]
    x, outputs = inputs.reshape(-1), out.reshape(-1)
    half = work.size // 2
    group, first_input, sums = begun.group, begun.num_inputs, begun.sums
    for layer in range(num_layers):
        shape = layers.shapes[layer]
        y = work[(layer % 2) * half :]
        if layer == num_layers - 1:
            y = outputs
        _run_layer(
            n, x, layers.weights, layers.biases, shape[0], shape[1], shape[2], shape[3],
            shape[4] != 0, sums, group, first_input, y,
        )  # fmt: skip
        x, first_input = y, 0


@njit(cache=True, nogil=True)
def _begin_sums(layers, inputs, rows, num_summed, sums):  # type: ignore[no-untyped-def]
    num_inputs, num_outputs = layers.shapes[0, 0], layers.shapes[0, 1]
    x = inputs.reshape(-1)
    width = -(-num_outputs // WIDTH) * WIDTH
    sums[:] = 0
    for r in range(rows.size):
        for first in range(0, width, WIDTH):
            _1_last(
                x, rows[r] * num_inputs, num_inputs, layers.weights,
                layers.shapes[0, 2] + first * num_inputs, 0, num_summed,
                sums[r * width + first :],
            )  # fmt: skip


@njit(cache=True, nogil=True)
def _run_layer(  # type: ignore[no-untyped-def]
    n, x, weights, biases, num_inputs, num_outputs, weight_at, bias_at, relu,
    begun, group, first_input, out,
):  # fmt: skip
    lines = -(-num_outputs // WIDTH)
    sums = np.empty(6 * _WIDEST * WIDTH, np.float32)
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        most = _REST if end - start > 2 else _TWO if end - start == 2 else _ONE
        line = 0
        while line < lines:
            taken = most if line + most <= lines else 1
            i = start
            while i < end:
                left, count = end - i, taken
                rows = 2 if left >= 2 else 1
                if left >= 6:
                    rows, count = 6, min(_MANY, taken)
                elif left >= 4 and (taken == 1 or _FOUR_AT_ONCE):
                    rows = 4
                for first in range(line, line + taken, count):
                    _tile(
                        rows, count, x, i * num_inputs, num_inputs, weights,
                        weight_at + first * WIDTH * num_inputs, begun, group, first_input, i,
                        lines * WIDTH, first * WIDTH, sums,
                    )  # fmt: skip
                    _finish(
                        sums, rows, count, first, biases, bias_at, relu, num_outputs, out,
                        i * num_outputs,
                    )  # fmt: skip
                i += rows
            line += taken


@njit(cache=True, nogil=True)
def _finish(  # type: ignore[no-untyped-def]
    sums, rows, lines, first, biases, bias_at, relu, num_outputs, out, out_at
):
    """Add the bias to a tile's sums, and write them."""
    for r in range(rows):
        for number in range(first, first + lines):
            at = (r * lines + number - first) * WIDTH
            to = out_at + r * num_outputs + number * WIDTH
            value = load_line(sums, at) + load_line(biases, bias_at + number * WIDTH)
            if relu:
                value = not_below_zero(value)
            if (number + 1) * WIDTH <= num_outputs:
                store_line(value, out, to)
            else:
                store_line(value, sums, at)
                for c in range(num_outputs - number * WIDTH):
                    out[to + c] = sums[at + c]


@njit(cache=True, nogil=True)
def _tile(  # type: ignore[no-untyped-def]
    rows, lines, x, x_at, num_inputs, w, w_at, begun, group, first_input, sample, width, column,
    sums,
):  # fmt: skip
    """Write the sums of some samples and lines of outputs, without the bias."""
    size = lines * WIDTH
    for r in range(rows):
        for c in range(0, size, WIDTH):
            value = line_of_zeros()
            if first_input > 0:
                value = load_line(begun, group[sample + r] * width + column + c)
            store_line(value, sums, r * size + c)
    count, step = num_inputs - first_input, num_inputs * WIDTH
    x_at, w_at = x_at + first_input, w_at + first_input * WIDTH
    if rows == 6 and lines == _MANY:
        _6_many(x, x_at, num_inputs, w, w_at, step, count, sums)
    elif lines == _REST:
        if rows == 4 and _FOUR_AT_ONCE:
            _4_rest(x, x_at, num_inputs, w, w_at, step, count, sums)
        elif rows == 2:
            _2_rest(x, x_at, num_inputs, w, w_at, step, count, sums)
        else:
            _1_rest(x, x_at, num_inputs, w, w_at, step, count, sums)
    elif lines == _TWO:
        _2_two(x, x_at, num_inputs, w, w_at, step, count, sums)
    elif lines == _ONE:
        _1_one(x, x_at, num_inputs, w, w_at, step, count, sums)
    elif rows == 6:
        _6_last(x, x_at, num_inputs, w, w_at, step, count, sums)
    elif rows == 4:
        _4_last(x, x_at, num_inputs, w, w_at, step, count, sums)
    elif rows == 2:
        _2_last(x, x_at, num_inputs, w, w_at, step, count, sums)
    else:
        _1_last(x, x_at, num_inputs, w, w_at, step, count, sums)
