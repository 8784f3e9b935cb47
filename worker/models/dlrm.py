"""DLRM: bottom layers on the dense features, pairwise dot products, top layers.

Source: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and
Recommendation Systems".
"""

from collections.abc import Sequence

import numpy as np

from worker.models.interaction import PairwiseDots, common_dim
from worker.models.layers import Mlp, RowBuffer, read_widths
from worker.models.protocol import FloatArray
from worker.spec import ModelSpec

DEFAULTS = {"bottom_mlp": (512, 256, 64), "top_mlp": (512, 256)}


class Dlrm:
    """The network of DLRM; satisfies `worker.models.loss.Network`.

    The top layers see the bottom layers' output, then the dot products of that output and of the
    pooled vectors. Without dense features there is no bottom: the top layers see the dot products
    of the pooled vectors.

    Raises:
        ValueError: an option is not legal, the lookups differ in width, or there are too few.
    """

    def __init__(self, spec: ModelSpec) -> None:
        widths = read_widths("dlrm", spec.options, DEFAULTS)
        dim = common_dim("dlrm", {lookup.table: lookup.dim for lookup in spec.lookups})
        num_vectors = len(spec.lookups) + (spec.num_dense > 0)
        if num_vectors < 2:
            raise ValueError(
                "dlrm needs dense features and a sparse one, or two sparse ones, got "
                f"{spec.num_dense} dense and {len(spec.lookups)} sparse"
            )
        # Without dense features the bottom has no layers: its output is as empty as its input.
        bottom = (spec.num_dense, *widths["bottom_mlp"], dim) if spec.num_dense else (0,)
        self._bottom = Mlp("bottom", bottom, relu_last=True)
        self._bottom_width = bottom[-1]
        self._num_bottom = len(self._bottom.parameters)
        self._dots = PairwiseDots(num_vectors, dim)
        top = (self._bottom_width + self._dots.num_pairs, *widths["top_mlp"], 1)
        self._top = Mlp("top", top, relu_last=False)
        self.parameters = (*self._bottom.parameters, *self._top.parameters)

        # A sample's vectors: [bottom's output | pooled]. The top's input: [bottom's output | dots].
        self._vectors = RowBuffer(num_vectors * dim)
        self._top_inputs = RowBuffer(top[0])
        self._grad_vectors = RowBuffer(num_vectors * dim)
        self._grad_top_inputs = RowBuffer(top[0])
        self._grad_bottom = RowBuffer(self._bottom_width)

    def forward(
        self, weights: Sequence[FloatArray], dense: FloatArray, pooled: FloatArray
    ) -> FloatArray:
        n, width = len(pooled), self._bottom_width
        bottom = self._bottom.forward(weights[: self._num_bottom], dense)
        vectors, top_inputs = self._vectors.rows(n), self._top_inputs.rows(n)
        vectors[:, :width] = bottom
        vectors[:, width:] = pooled
        top_inputs[:, :width] = bottom
        self._dots.forward(vectors, top_inputs[:, width:])
        return self._top.forward(weights[self._num_bottom :], top_inputs)

    def backward(
        self,
        weights: Sequence[FloatArray],
        dense: FloatArray,
        pooled: FloatArray,
        grad_logits: FloatArray,
        gradients: Sequence[FloatArray],
        grad_pooled: FloatArray,
    ) -> None:
        n, width = len(pooled), self._bottom_width
        top_inputs, grad_top_inputs = self._top_inputs.rows(n), self._grad_top_inputs.rows(n)
        self._top.backward(
            weights[self._num_bottom :],
            top_inputs,
            grad_logits,
            gradients[self._num_bottom :],
            grad_top_inputs,
        )
        grad_vectors = self._grad_vectors.rows(n)
        self._dots.backward(self._vectors.rows(n), grad_top_inputs[:, width:], grad_vectors)
        grad_pooled[:] = grad_vectors[:, width:]
        grad_bottom = self._grad_bottom.rows(n)
        np.add(grad_vectors[:, :width], grad_top_inputs[:, :width], out=grad_bottom)
        self._bottom.backward(
            weights[: self._num_bottom], dense, grad_bottom, gradients[: self._num_bottom], None
        )
