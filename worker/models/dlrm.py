"""DLRM: bottom layers on the dense features, pairwise dot products, top layers.

Source: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and
Recommendation Systems".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from worker.models.interaction import Interaction, common_dim, dots
from worker.models.layers import Mlp, RowBuffer, read_widths
from worker.models.predicted_layers import NOT_BEGUN, PackedLayers, begin_sums, run_layers
from worker.models.protocol import FloatArray, SampleVectors, SharedInputs
from worker.spec import ModelSpec

DEFAULTS = {"bottom_mlp": (512, 256, 64), "top_mlp": (512, 256)}


class PackedDlrm(NamedTuple):
    """The layers as prediction reads them."""

    bottom: PackedLayers
    top: PackedLayers


class Dlrm:
    """The network of DLRM; a `worker.models.loss.Network` that reads the vectors where they lie.

    The top layers see the bottom layers' output, then the dot products of that output and of the
    pooled vectors. Without dense features there is no bottom: the top layers see the dot products
    of the pooled vectors.

    Raises:
        ValueError: an option is not legal, the lookups differ in width, or there are too few.
    """

    reads_vectors = True

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
        self._num_bottom = len(self._bottom.parameters)
        self._interaction = Interaction(len(spec.lookups), dim, has_first=spec.num_dense > 0)
        top = (self._interaction.width, *widths["top_mlp"], 1)
        self._top = Mlp("top", top, relu_last=False)
        self.parameters = (*self._bottom.parameters, *self._top.parameters)

        self._dim = dim
        self._work = RowBuffer(2 * max(*widths["bottom_mlp"], *widths["top_mlp"], dim, 1))
        self._first = RowBuffer(bottom[-1])
        self._bottom_outputs = np.empty((0, 0), np.float32)
        self._top_inputs = RowBuffer(top[0])
        self._grad_top_inputs = RowBuffer(top[0])
        self._grad_bottom = RowBuffer(bottom[-1])

    def forward(
        self, weights: Sequence[FloatArray], dense: FloatArray, vectors: SampleVectors
    ) -> FloatArray:
        self._bottom_outputs = self._bottom.forward(weights[: self._num_bottom], dense)
        top_inputs = self._top_inputs.rows(len(dense))
        self._interaction.forward(self._bottom_outputs, vectors, top_inputs)
        return self._top.forward(weights[self._num_bottom :], top_inputs)

    def packed(self, weights: Sequence[FloatArray]) -> PackedDlrm:
        weight, *others = weights[self._num_bottom :]
        return PackedDlrm(
            self._bottom.packed(weights[: self._num_bottom]),
            self._top.packed([weight[self._interaction.prediction_order], *others]),
        )

    def predict(
        self,
        packed: PackedDlrm,
        dense: FloatArray,
        vectors: SampleVectors,
        shared: SharedInputs | None = None,
    ) -> FloatArray:
        n = len(dense)
        top_inputs = self._top_inputs.rows(n)
        if shared is None:
            first, logits = self._first.rows(n), self._top.outputs(n)
            _predict(
                *packed.bottom, *packed.top, dense, vectors.flat, vectors.positions, self._dim,
                self._work.rows(n), first, top_inputs, logits,
            )  # fmt: skip
            return logits
        bottom_outputs = self._bottom.predict(
            packed.bottom, dense[shared.firsts] if shared.dense else dense
        )
        if shared.dense:
            bottom_outputs = bottom_outputs[shared.group]
        begun_inputs = self._interaction.predict_shared(bottom_outputs, vectors, shared, top_inputs)
        begun = begin_sums(packed.top, top_inputs, begun_inputs, shared)
        return self._top.predict(packed.top, top_inputs, begun)

    def backward(
        self,
        weights: Sequence[FloatArray],
        dense: FloatArray,
        vectors: SampleVectors,
        grad_logits: FloatArray,
        gradients: Sequence[FloatArray],
        grad_flat: FloatArray,
    ) -> None:
        n = len(dense)
        grad_top_inputs, grad_bottom = self._grad_top_inputs.rows(n), self._grad_bottom.rows(n)
        self._top.backward(
            weights[self._num_bottom :],
            self._top_inputs.rows(n),
            grad_logits,
            gradients[self._num_bottom :],
            grad_top_inputs,
        )
        self._interaction.backward(
            self._bottom_outputs, vectors, grad_top_inputs, grad_bottom, grad_flat
        )
        self._bottom.backward(
            weights[: self._num_bottom], dense, grad_bottom, gradients[: self._num_bottom], None
        )


@njit(cache=True, nogil=True)
def _predict(  # type: ignore[no-untyped-def]
    weights, biases, shapes, top_weights, top_biases, top_shapes, dense, flat, positions, dim, work,
    first, top_inputs, logits,
):  # fmt: skip
    """All of a prediction in one call: of few samples calls would take longer than the work.

    Layers come array by array: a tuple of arrays takes a call 6 us to look at.
    """
    numbers = work.reshape(-1)
    run_layers(PackedLayers(weights, biases, shapes), dense, numbers, first, NOT_BEGUN)
    dots(first, flat, positions, dim, True, top_inputs)
    top = PackedLayers(top_weights, top_biases, top_shapes)
    run_layers(top, top_inputs, numbers, logits, NOT_BEGUN)
