"""DeepFM: a factorization machine and fully connected layers on the same embeddings.

Source: Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction".
"""

from collections.abc import Sequence

from worker.models.factorization import add_pair_sums, add_pair_sums_gradient
from worker.models.interaction import common_dim
from worker.models.protocol import FloatArray, SharedInputs
from worker.models.wide_deep import PackedWideDeep, WideDeep, is_linear
from worker.spec import ModelSpec

DEFAULTS = {"mlp": (400, 400, 400)}


class DeepFm:
    """The network of DeepFM; satisfies `worker.models.loss.Network`.

    Wide & Deep's (first-order weights, layers), plus the second-order term of the embeddings.
    Dense features have no embedding: they enter the linear term and the layers.

    Raises:
        ValueError: as `WideDeep`, or the embeddings differ in width.
    """

    def __init__(self, spec: ModelSpec) -> None:
        embeddings = [lookup for lookup in spec.lookups if not is_linear(lookup)]
        self._dim = common_dim("deepfm", {lookup.table: lookup.dim for lookup in embeddings})
        self._num_vectors = len(embeddings)
        self._wide_deep = WideDeep(spec, DEFAULTS)
        self.parameters = self._wide_deep.parameters

    def forward(
        self, weights: Sequence[FloatArray], dense: FloatArray, pooled: FloatArray
    ) -> FloatArray:
        logits = self._wide_deep.forward(weights, dense, pooled)
        add_pair_sums(self._vectors(pooled), logits[:, 0])
        return logits

    def packed(self, weights: Sequence[FloatArray]) -> PackedWideDeep:
        return self._wide_deep.packed(weights)

    def predict(
        self,
        packed: PackedWideDeep,
        dense: FloatArray,
        pooled: FloatArray,
        shared: SharedInputs | None = None,
    ) -> FloatArray:
        logits = self._wide_deep.predict(packed, dense, pooled, shared)
        add_pair_sums(self._vectors(pooled), logits[:, 0])
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
        self._wide_deep.backward(weights, dense, pooled, grad_logits, gradients, grad_pooled)
        add_pair_sums_gradient(self._vectors(pooled), grad_logits[:, 0], self._vectors(grad_pooled))

    def _vectors(self, pooled: FloatArray) -> FloatArray:
        """Return the columns of the embeddings, float32[n, vectors, dim], without a copy."""
        embeddings = pooled[:, : self._num_vectors * self._dim]
        return embeddings.reshape(len(pooled), self._num_vectors, self._dim)
