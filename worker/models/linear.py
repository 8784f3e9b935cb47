"""Logistic regression: a weight for each key and each dense feature, and a bias.

Weights of keys are rows of dim 1 in the features' own tables. With FTRL on both sides this is the
model of McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches".
"""

from collections.abc import Mapping, Sequence

import numpy as np

from embedding.spec.initial_values import Constant
from worker.models.layers import RowBuffer, column_sums, read_widths
from worker.models.predicted_layers import PackedLayers, pack_layers, predict_layers
from worker.models.protocol import FloatArray, Parameter, SharedInputs
from worker.spec import ModelSpec

DEFAULTS: dict[str, tuple[int, ...]] = {}


class Linear:
    """The network of logistic regression; satisfies `worker.models.loss.Network`.

    Raises:
        ValueError: an option is given, as there is none, or a table has another dim than 1.
    """

    def __init__(self, spec: ModelSpec) -> None:
        read_widths(spec.type, spec.options, DEFAULTS)
        require_weights({lookup.table: lookup.dim for lookup in spec.lookups})
        self.parameters: tuple[Parameter, ...] = (
            Parameter("linear.weight", (spec.num_dense, 1), Constant()),
            Parameter("linear.bias", (1,), Constant()),
        )
        self._logits = RowBuffer(1)
        self._sums = RowBuffer(1)

    def forward(
        self, weights: Sequence[FloatArray], dense: FloatArray, pooled: FloatArray
    ) -> FloatArray:
        weight, bias = weights
        logits = self._logits.rows(len(pooled))
        np.matmul(dense, weight, out=logits)
        logits += np.sum(pooled, axis=1, keepdims=True, out=self._sums.rows(len(pooled)))
        logits += bias
        return logits

    def packed(self, weights: Sequence[FloatArray]) -> PackedLayers:
        weight, bias = weights
        return pack_layers([(weight, bias, False)])

    def predict(
        self,
        packed: PackedLayers,
        dense: FloatArray,
        pooled: FloatArray,
        shared: SharedInputs | None = None,
    ) -> FloatArray:
        logits = self._logits.rows(len(pooled))
        predict_layers(packed, dense, logits[:0, 0], logits)
        logits += np.sum(pooled, axis=1, keepdims=True, out=self._sums.rows(len(pooled)))
        return logits

    def backward(
        self,
        weights: Sequence[FloatArray],
        dense: FloatArray,
        pooled: FloatArray,
        grad_logits: FloatArray,
        gradients: Sequence[FloatArray],
        grad_pooled: FloatArray,
    ) -> None:
        grad_weight, grad_bias = gradients
        np.matmul(dense.T, grad_logits, out=grad_weight)
        column_sums(grad_logits, grad_bias)
        grad_pooled[:] = grad_logits


def require_weights(dims: Mapping[str, int]) -> None:
    """Raise ValueError where a table's rows are more than a weight."""
    for table, dim in dims.items():
        if dim != 1:
            raise ValueError(
                f"linear has one weight for each key, and table {table!r} has dim {dim}: "
                "set embedding.dim to 1"
            )
