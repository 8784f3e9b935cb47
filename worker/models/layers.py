"""Fully connected layers, forward and backward, on work buffers that live from batch to batch."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit

from embedding.spec.initial_values import Constant, Uniform
from worker.models.predicted_layers import (
    NOT_BEGUN,
    BegunSums,
    PackedLayers,
    pack_layers,
    predict_layers,
)
from worker.models.protocol import FloatArray, Parameter, name_hint

WIDTH_MAX = 65536


def read_widths(
    model_type: str, options: Mapping[str, Any], defaults: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Read a model's options, each of which is a list of layer widths.

    Args:
        model_type: named in errors.
        options: what the job gives.
        defaults: the options that the model knows, with the widths of those not given.

    Raises:
        ValueError: an option is not known, or is not a list of widths in [1, `WIDTH_MAX`].
    """
    for name in options:
        if name not in defaults:
            known = name_hint(name, defaults) if defaults else "it has none"
            raise ValueError(f"model.{name}: {model_type} has no such option; {known}")
    widths = dict(defaults)
    for name, value in options.items():
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"model.{name} must be a list of layer widths, got {value!r}")
        for i, width in enumerate(value):
            if type(width) is not int or not 1 <= width <= WIDTH_MAX:
                raise ValueError(
                    f"model.{name}[{i}] must be a whole number from 1 to {WIDTH_MAX}, got {width!r}"
                )
        widths[name] = tuple(value)
    return widths


class RowBuffer:
    """A float32 matrix of fixed width that is kept from batch to batch."""

    def __init__(self, width: int) -> None:
        self._matrix = np.empty((0, width), np.float32)

    def rows(self, n: int) -> FloatArray:
        """Return the first n rows, float32[n, width], as the last call left them.

        A call for more rows than ever before makes a new matrix; its values are arbitrary.
        """
        if n > len(self._matrix):
            self._matrix = np.empty((n, self._matrix.shape[1]), np.float32)
        return self._matrix[:n]


class Mlp:
    """Fully connected layers y = x W + b, each followed by ReLU; the last one only if asked.

    Args:
        name: prefix of the parameters' names.
        widths: of the input and of each layer's output.
        relu_last: whether ReLU follows the last layer too.
    """

    def __init__(self, name: str, widths: Sequence[int], *, relu_last: bool) -> None:
        parameters = []
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            weight = Parameter(f"{name}.{i}.weight", (fan_in, fan_out), glorot(fan_in, fan_out))
            parameters += [weight, Parameter(f"{name}.{i}.bias", (fan_out,), Constant())]
        self.parameters = tuple(parameters)
        self._num_layers = len(widths) - 1
        self._relu_last = relu_last
        self._outputs = [RowBuffer(width) for width in widths[1:]]
        self._gradients = [RowBuffer(width) for width in widths[1:-1]]
        self._work = RowBuffer(max(widths[1:], default=0))

    def forward(self, parameters: Sequence[FloatArray], inputs: FloatArray) -> FloatArray:
        """Return the last layer's output, float32[n, width]; the next call overwrites it.

        Args:
            parameters: views in the order of `self.parameters`.
            inputs: float32[n, inputs].
        """
        for layer in range(self._num_layers):
            weight, bias = parameters[2 * layer : 2 * layer + 2]
            outputs = self._outputs[layer].rows(len(inputs))
            np.matmul(inputs, weight, out=outputs)
            if self._has_relu(layer):
                add_bias_relu(outputs, bias)
            else:
                add_bias(outputs, bias)
            inputs = outputs
        return inputs

    def packed(self, parameters: Sequence[FloatArray]) -> PackedLayers:
        """Copy the parameters to where `predict` reads them."""
        return pack_layers(
            [
                (parameters[2 * layer], parameters[2 * layer + 1], self._has_relu(layer))
                for layer in range(self._num_layers)
            ]
        )

    def predict(
        self, layers: PackedLayers, inputs: FloatArray, begun: BegunSums = NOT_BEGUN
    ) -> FloatArray:
        """As `forward`, but for last bits: those of a sample do not depend on its batch.

        Args:
            layers: what `packed` made of the parameters.
            inputs: float32[n, inputs], C-contiguous.
            begun: sums of the first layer over inputs that are then not read.
        """
        n = len(inputs)
        if self._num_layers == 0:
            return inputs
        outputs = self.outputs(n)
        predict_layers(layers, inputs, self._work.rows(2 * n).reshape(-1), outputs, begun)
        return outputs

    def outputs(self, n: int) -> FloatArray:
        """Return where `predict` writes the last layer's output."""
        return self._outputs[-1].rows(n)

    def backward(
        self,
        parameters: Sequence[FloatArray],
        inputs: FloatArray,
        grad_outputs: FloatArray,
        grad_parameters: Sequence[FloatArray],
        grad_inputs: FloatArray | None,
    ) -> None:
        """Write the gradients; `forward` was last called with the same parameters and inputs.

        Args:
            parameters, inputs: as given to `forward`.
            grad_outputs: float32[n, outputs]; overwritten where ReLU follows the last layer.
            grad_parameters: written, in the order of `self.parameters`.
            grad_inputs: float32[n, m] or None; written, gradient of the first m input columns.
        """
        n = len(inputs)
        grad = grad_outputs
        for layer in reversed(range(self._num_layers)):
            weight = parameters[2 * layer]
            grad_weight, grad_bias = grad_parameters[2 * layer : 2 * layer + 2]
            if self._has_relu(layer):
                relu_gradient(grad, self._outputs[layer].rows(n), grad_bias)
            else:
                column_sums(grad, grad_bias)
            if layer > 0:
                np.matmul(self._outputs[layer - 1].rows(n).T, grad, out=grad_weight)
                grad_below = self._gradients[layer - 1].rows(n)
                if weight.shape[1] == 1:  # BLAS is slow at an outer product
                    outer_product(grad, weight, grad_below)
                else:
                    np.matmul(grad, weight.T, out=grad_below)
                grad = grad_below
            else:
                np.matmul(inputs.T, grad, out=grad_weight)
        if grad_inputs is not None:
            np.matmul(grad, parameters[0][: grad_inputs.shape[1]].T, out=grad_inputs)

    def _has_relu(self, layer: int) -> bool:
        return self._relu_last or layer < self._num_layers - 1


def glorot(fan_in: int, fan_out: int) -> Uniform:
    """Return the initial distribution of Glorot and Bengio 2010: variance 2 / (in + out)."""
    return Uniform(scale=float(np.sqrt(6 / (fan_in + fan_out))))


@njit(cache=True, nogil=True)
def add_bias(outputs: FloatArray, bias: FloatArray) -> None:
    """Add bias[m] to each row of outputs[n, m], in place."""
    n, m = outputs.shape
    for i in range(n):
        for j in range(m):
            outputs[i, j] += bias[j]


@njit(cache=True, nogil=True)
def add_bias_relu(outputs: FloatArray, bias: FloatArray) -> None:
    """Replace outputs[n, m] by max(outputs + bias, 0). NaN stays NaN, so that it is noticed."""
    n, m = outputs.shape
    for i in range(n):
        for j in range(m):
            value = outputs[i, j] + bias[j]
            outputs[i, j] = np.float32(0) if value < 0 else value


@njit(cache=True, nogil=True)
def outer_product(column: FloatArray, other: FloatArray, out: FloatArray) -> None:
    """Write the product of column[n, 1] and the transpose of other[m, 1] to out[n, m]."""
    n, m = out.shape
    for i in range(n):
        for j in range(m):
            out[i, j] = column[i, 0] * other[j, 0]


@njit(cache=True, nogil=True)
def relu_gradient(grad: FloatArray, outputs: FloatArray, grad_bias: FloatArray) -> None:
    """Zero grad[n, m] where ReLU gave 0, in place, and write its column sums to grad_bias[m]."""
    n, m = grad.shape
    grad_bias[:] = 0
    for i in range(n):
        for j in range(m):
            value = np.float32(0) if outputs[i, j] <= 0 else grad[i, j]
            grad[i, j] = value
            grad_bias[j] += value


@njit(cache=True, nogil=True)
def column_sums(grad: FloatArray, sums: FloatArray) -> None:
    """Write the sums of the columns of grad[n, m], taken in row order, to sums[m]."""
    n, m = grad.shape
    sums[:] = 0
    for i in range(n):
        for j in range(m):
            sums[j] += grad[i, j]
