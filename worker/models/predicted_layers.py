"""Fully connected layers for prediction: a sample's output does not depend on its batch.

BLAS sums a row's products in another order where the row stands elsewhere in the matrix, or the
matrix has more rows, so the last bits of a logit would depend on which samples came with it. Here
every element is the sum over its inputs in their order, each product added with one rounding. So
evaluation, `predict` and a served request, whatever its batch, give a sample the same logit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from embedding.kernels.lines import (
    WIDTH,
    line_of_zeros,
    load_line,
    multiply_add,
    repeated,
    store_line,
)
from worker.models.protocol import FloatArray

_ROWS = 6  # samples at once: their sums, 12 of the 16 registers of AVX2, stay where they are added
_BLOCK = 96  # samples whose inputs stay in the cache while all outputs are computed


class PackedLayer(NamedTuple):
    """The weights of a layer as its kernel reads them.

    Args:
        weight: float32[panels * inputs * 16]: of 16 outputs after another, for each input one line.
            Outputs that fill the last panel are 0.
        bias: float32[outputs].
        num_inputs: of the layer.
        relu: whether ReLU follows.
    """

    weight: FloatArray
    bias: FloatArray
    num_inputs: int
    relu: bool


def packed_layer(weight: FloatArray, bias: FloatArray, *, relu: bool) -> PackedLayer:
    """Copy the weights of a layer, float32[inputs, outputs], and its bias."""
    inputs, outputs = weight.shape
    panels = -(-outputs // WIDTH)
    packed = np.zeros((panels, inputs, WIDTH), np.float32)
    for panel in range(panels):
        columns = weight[:, panel * WIDTH : (panel + 1) * WIDTH]
        packed[panel, :, : columns.shape[1]] = columns
    return PackedLayer(packed.reshape(-1), bias.copy(), inputs, relu)


def predict_layers(
    layers: Sequence[PackedLayer], inputs: FloatArray, outputs: Sequence[FloatArray]
) -> FloatArray:
    """Run layers one after another.

    Args:
        inputs: float32[n, inputs of the first], C-contiguous; [n, 0] where there are no layers.
        outputs: for each layer float32[n, its outputs], C-contiguous, written.

    Returns:
        the last of them.
    """
    for layer, out in zip(layers, outputs, strict=True):
        _predict_layer(inputs, layer.weight, layer.bias, layer.relu, out)
        inputs = out
    return inputs


@njit(cache=True, nogil=True)
def _predict_layer(inputs, weight, bias, relu, out):  # type: ignore[no-untyped-def]
    n, num_inputs = inputs.shape
    num_outputs = out.shape[1]
    x = inputs.reshape(-1)
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
                s0 = s1 = s2 = s3 = s4 = s5 = line_of_zeros()
                for k in range(num_inputs):
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
