"""Wide & Deep: a linear model beside fully connected layers.

Source: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems". Crossed features are
columns of the data; they are not made here.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from embedding.spec.initial_values import Constant
from worker.models.layers import Mlp, RowBuffer, read_widths
from worker.models.predicted_layers import (
    NOT_BEGUN,
    PackedLayers,
    begin_sums,
    pack_layers,
    predict_layers,
)
from worker.models.protocol import FloatArray, Parameter, SharedInputs
from worker.spec import Lookup, ModelSpec

DEFAULTS = {"mlp": (1024, 512, 256)}

# A table of first-order weights has dim 1 and its feature's table name with this ending.
LINEAR_SUFFIX = "_linear"


def is_linear(lookup: Lookup) -> bool:
    """Say whether a lookup gives first-order weights and not embeddings."""
    return lookup.dim == 1 and lookup.table.endswith(LINEAR_SUFFIX)


class PackedWideDeep(NamedTuple):
    """The linear term, as a layer of one output, and the layers, as prediction reads them."""

    wide: PackedLayers
    deep: PackedLayers


class WideDeep:
    """The network of Wide & Deep; satisfies `worker.models.loss.Network`.

    The pooled input is [embeddings | first-order weights]. The logit is the sum of the
    first-order weights, a linear term of the dense features, and the layers' output on
    [embeddings | dense features]; its bias is the last layer's.

    Args:
        spec: its options are read as those of the model type it names.
        defaults: the options with their defaults.

    Raises:
        ValueError: an option is not legal, or the linear lookups don't come last.
    """

    def __init__(self, spec: ModelSpec, defaults: Mapping[str, tuple[int, ...]] = DEFAULTS) -> None:
        widths = read_widths(spec.type, spec.options, defaults)
        linear = [is_linear(lookup) for lookup in spec.lookups]
        if linear != sorted(linear):
            raise ValueError(
                f"{spec.type} takes its first-order lookups after all others, got tables "
                f"{[lookup.table for lookup in spec.lookups]}"
            )
        self._embedding_dims = [each.dim for each in spec.lookups if not is_linear(each)]
        # Columns of the pooled input that hold embeddings.
        self.embedding_width = spec.pooled_width - sum(linear)
        deep_width = self.embedding_width + spec.num_dense
        self._deep = Mlp("mlp", (deep_width, *widths["mlp"], 1), relu_last=False)
        self._deep_inputs = RowBuffer(deep_width)
        self._linear = RowBuffer(1)
        wide = Parameter("linear.weight", (spec.num_dense,), Constant())
        self.parameters = (wide, *self._deep.parameters)

    def forward(
        self, weights: Sequence[FloatArray], dense: FloatArray, pooled: FloatArray
    ) -> FloatArray:
        wide, *deep = weights
        logits = self._deep.forward(deep, self._joined(dense, pooled))
        linear = self._linear.rows(len(pooled))[:, 0]
        logits[:, 0] += np.sum(pooled[:, self.embedding_width :], axis=1, out=linear)
        logits[:, 0] += np.matmul(dense, wide, out=linear)
        return logits

    def packed(self, weights: Sequence[FloatArray]) -> PackedWideDeep:
        wide, *deep = weights
        linear = pack_layers([(wide.reshape(-1, 1), np.zeros(1, np.float32), False)])
        return PackedWideDeep(linear, self._deep.packed(deep))

    def predict(
        self,
        packed: PackedWideDeep,
        dense: FloatArray,
        pooled: FloatArray,
        shared: SharedInputs | None = None,
    ) -> FloatArray:
        inputs, begun = self._joined(dense, pooled), NOT_BEGUN
        if shared is not None:
            num_inputs = sum(self._embedding_dims[: shared.leading])
            begun = begin_sums(packed.deep, inputs, num_inputs, shared)
        logits = self._deep.predict(packed.deep, inputs, begun)
        linear = self._linear.rows(len(pooled))
        first_order = pooled[:, self.embedding_width :]
        logits[:, 0] += np.sum(first_order, axis=1, out=linear[:, 0])
        predict_layers(packed.wide, dense, linear[:0, 0], linear)
        logits += linear
        return logits

    def _joined(self, dense: FloatArray, pooled: FloatArray) -> FloatArray:
        """Return what the layers see: embeddings, then dense features."""
        deep_inputs = self._deep_inputs.rows(len(pooled))
        deep_inputs[:, : self.embedding_width] = pooled[:, : self.embedding_width]
        deep_inputs[:, self.embedding_width :] = dense
        return deep_inputs

    def backward(
        self,
        weights: Sequence[FloatArray],
        dense: FloatArray,
        pooled: FloatArray,
        grad_logits: FloatArray,
        gradients: Sequence[FloatArray],
        grad_pooled: FloatArray,
    ) -> None:
        grad_wide, *grad_deep = gradients
        np.matmul(dense.T, grad_logits[:, 0], out=grad_wide)
        grad_pooled[:, self.embedding_width :] = grad_logits
        self._deep.backward(
            weights[1:],
            self._deep_inputs.rows(len(pooled)),
            grad_logits,
            grad_deep,
            grad_pooled[:, : self.embedding_width],
        )
