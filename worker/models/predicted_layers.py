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
    multiply_add,
    repeated,
    store_line,
)
from worker.models.protocol import FloatArray, SharedInputs

_ROWS = 6  # samples at once: their sums, 12 of the 16 registers of AVX2, stay where they are added
_BLOCK = 96  # samples whose inputs stay in the cache while all outputs are computed


class PackedLayer(NamedTuple):
    """The weights of a layer as its kernel reads them.

    Args:
        weight: float32[panels * inputs * 16]: of 16 outputs after another, for each input one line.
            Outputs that fill the last panel are 0.
        bias: float32[outputs].
        zeros: float32[1, panels * 16], with what sums begin.
        num_inputs: of the layer.
        relu: whether ReLU follows.
    """

    weight: FloatArray
    bias: FloatArray
    zeros: FloatArray
    num_inputs: int
    relu: bool


class BegunSums(NamedTuple):
    """Sums of a layer over its first inputs, for runs of samples that have these in common.

    Args:
        sums: float32[runs, panels * 16].
        group: int64[n], the run of each sample; empty: all are of the first.
        num_inputs: over how many.
    """

    sums: FloatArray
    group: npt.NDArray[np.int64]
    num_inputs: int


_NO_GROUP = np.empty(0, np.int64)


def packed_layer(weight: FloatArray, bias: FloatArray, *, relu: bool) -> PackedLayer:
    """Copy the weights of a layer, float32[inputs, outputs], and its bias."""
    inputs, outputs = weight.shape
    panels = -(-outputs // WIDTH)
    packed = np.zeros((panels, inputs, WIDTH), np.float32)
    for panel in range(panels):
        columns = weight[:, panel * WIDTH : (panel + 1) * WIDTH]
        packed[panel, :, : columns.shape[1]] = columns
    zeros = np.zeros((1, panels * WIDTH), np.float32)
    return PackedLayer(packed.reshape(-1), bias.copy(), zeros, inputs, relu)


def begin_sums(
    layer: PackedLayer, inputs: FloatArray, num_inputs: int, shared: SharedInputs
) -> BegunSums:
    """Sum over the first inputs, once for each run of samples that have them in common.

    Args:
        inputs: float32[n, inputs], C-contiguous; of a run's first sample the first `num_inputs` are
            read.
    """
    sums = np.empty((shared.firsts.size, layer.zeros.size), np.float32)
    _begin_sums(inputs, shared.firsts, layer.weight, num_inputs, sums)
    return BegunSums(sums, shared.group, num_inputs)


def predict_layers(
    layers: Sequence[PackedLayer],
    inputs: FloatArray,
    outputs: Sequence[FloatArray],
    begun: BegunSums | None = None,
) -> FloatArray:
    """Run layers one after another.

    Args:
        inputs: float32[n, inputs of the first], C-contiguous; [n, 0] where there are no layers.
        outputs: for each layer float32[n, its outputs], C-contiguous, written.
        begun: sums of the first layer; the inputs that they have are not read.

    Returns:
        the last of them.
    """
    for layer, out in zip(layers, outputs, strict=True):
        sums, group, first_input = begun or (layer.zeros, _NO_GROUP, 0)
        _predict_layer(inputs, layer.weight, layer.bias, layer.relu, sums, group, first_input, out)
        inputs, begun = out, None
    return inputs


@njit(cache=True, nogil=True)
def _begin_sums(inputs, rows, weight, num_summed, sums):  # type: ignore[no-untyped-def]
    num_inputs, width = inputs.shape[1], sums.shape[1]
    x, out = inputs.reshape(-1), sums.reshape(-1)
    for r in range(rows.size):
        for first in range(0, width, WIDTH):
            s = line_of_zeros()
            for k in range(num_summed):
                w = load_line(weight, first * num_inputs + k * WIDTH)
                s = multiply_add(repeated(x, rows[r] * num_inputs + k), w, s)
            store_line(s, out, r * width + first)


@njit(cache=True, nogil=True)
def _predict_layer(  # type: ignore[no-untyped-def]
    inputs, weight, bias, relu, begun, group, first_input, out
):
    n, num_inputs = inputs.shape
    num_outputs = out.shape[1]
    x, begun_sums, width = inputs.reshape(-1), begun.reshape(-1), begun.shape[1]
    starts = np.zeros(_ROWS, np.int64)
    sums = np.empty(_ROWS * WIDTH, np.float32)
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        for first in range(0, num_outputs, WIDTH):
            panel = first * num_inputs
            last = min(first + WIDTH, num_outputs)
            for i in range(start, end, _ROWS):
                # The last samples stand for those that are missing: all sums are made alike.
                x0, x1 = i * num_inputs, min(i + 1, n - 1) * num_inputs
                x2, x3 = min(i + 2, n - 1) * num_inputs, min(i + 3, n - 1) * num_inputs
                x4, x5 = min(i + 4, n - 1) * num_inputs, min(i + 5, n - 1) * num_inputs
                if group.size > 0:
                    for row in range(_ROWS):
                        starts[row] = group[min(i + row, n - 1)] * width
                s0 = load_line(begun_sums, starts[0] + first)
                s1 = load_line(begun_sums, starts[1] + first)
                s2 = load_line(begun_sums, starts[2] + first)
                s3 = load_line(begun_sums, starts[3] + first)
                s4 = load_line(begun_sums, starts[4] + first)
                s5 = load_line(begun_sums, starts[5] + first)
                for k in range(first_input, num_inputs):
                    w = load_line(weight, panel + k * WIDTH)
                    s0 = multiply_add(repeated(x, x0 + k), w, s0)
                    s1 = multiply_add(repeated(x, x1 + k), w, s1)
                    s2 = multiply_add(repeated(x, x2 + k), w, s2)
                    s3 = multiply_add(repeated(x, x3 + k), w, s3)
                    s4 = multiply_add(repeated(x, x4 + k), w, s4)
                    s5 = multiply_add(repeated(x, x5 + k), w, s5)
                store_line(s0, sums, 0)
                store_line(s1, sums, WIDTH)
                store_line(s2, sums, 2 * WIDTH)
                store_line(s3, sums, 3 * WIDTH)
                store_line(s4, sums, 4 * WIDTH)
                store_line(s5, sums, 5 * WIDTH)
                for row in range(i, min(i + _ROWS, end)):
                    at = (row - i) * WIDTH - first
                    for column in range(first, last):
                        value = sums[at + column] + bias[column]
                        out[row, column] = np.float32(0) if relu and value < 0 else value
