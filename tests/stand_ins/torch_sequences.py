"""Models of torch that read sequences, with a batch for each."""

from collections.abc import Callable
from typing import Any

import numpy as np

from embedding.spec.optimizers import Sgd
from worker.models import Model, build_model, initial_parameters, needed_lookups, parameter_views
from worker.models.sequences import Padded, WithSequences
from worker.spec import ModelSpec, SparseFeature

LENGTHS = (0, 1, 4, 2, 3, 4)
LONGEST = 4
Arrays = dict[str, np.ndarray]


def sequence_spec(
    options: dict[str, Any],
    dims: dict[str, int],
    sequences: dict[str, int | None],
    *,
    num_dense: int = 3,
) -> ModelSpec:
    """Return a model of these features.

    Args:
        dims: of each feature's vectors.
        sequences: those that are not pooled, each with its `max_length`.
    """
    sparse = [
        SparseFeature(
            name=name,
            column=name,
            table=f"t_{name}",
            combiner="none" if name in sequences else "sum",
            max_length=sequences.get(name),
        )
        for name in dims
    ]
    lookups = needed_lookups("torch", options, sparse, {f"t_{name}": d for name, d in dims.items()})
    return ModelSpec(
        type="torch",
        options=options,
        optimizer=Sgd(),
        num_dense=num_dense,
        lookups=lookups,
        seed=5,
        lookup_names=tuple(dims),
        dense_names=tuple(f"d{at}" for at in range(num_dense)),
    )


class Sequenced:
    """A model and a batch of samples whose sequences have LENGTHS."""

    def __init__(self, spec: ModelSpec, *, scale: float = 0.5) -> None:
        self.spec = spec
        self.model: Model[Any] = build_model(spec)
        draw = np.random.default_rng(3)
        n = len(LENGTHS)
        self.params = initial_parameters(self.model, spec.seed)
        # Not all 0, as biases begin.
        self.params += draw.normal(0, 0.1, self.params.size).astype(np.float32)
        self.dense = draw.normal(size=(n, spec.num_dense)).astype(np.float32)
        self.pooled = draw.normal(0, scale, (n, spec.pooled_width)).astype(np.float32)
        self.lengths = np.array(LENGTHS)
        self.sequences = []
        for number in spec.sequences:
            vectors = np.zeros((n, LONGEST, spec.lookups[number].dim), np.float32)
            for row, length in zip(vectors, LENGTHS, strict=True):
                row[:length] = draw.normal(0, scale, (length, vectors.shape[2]))
            self.sequences.append(vectors)
        self.labels = np.array([0, 1, 1, 0, 1, 0], np.float32)
        self.weights = np.array([1, 2, 0, 1, 0.5, 1], np.float32)

    def train(self, *weights: np.ndarray) -> tuple[float, np.ndarray, WithSequences]:
        """Return (loss, grad_params, gradients of inputs), which begin as NaN."""
        grad_params = np.full_like(self.params, np.nan)
        grads = WithSequences(
            np.full_like(self.pooled, np.nan),
            tuple(Padded(np.full_like(each, np.nan), self.lengths) for each in self.sequences),
        )
        loss = self.model.train(
            self.params, self.dense, self._inputs, self.labels, grad_params, grads, *weights
        )
        return loss, grad_params, grads

    def predict(self) -> np.ndarray:
        return self.model.predict(self.params, self.dense, self._inputs)

    @property
    def _inputs(self) -> WithSequences:
        return WithSequences(
            self.pooled, tuple(Padded(each, self.lengths) for each in self.sequences)
        )

    def arrays(self) -> list[np.ndarray]:
        """Return what a loss depends on, in float64: parameters, pooled vectors, sequences."""
        return [each.astype(float) for each in (self.params, self.pooled, *self.sequences)]

    def named(self, params: np.ndarray) -> Arrays:
        """Return parameters by name."""
        views = parameter_views(params, self.model.parameters)
        return {each.name: v for each, v in zip(self.model.parameters, views, strict=True)}

    def vectors(self, pooled: np.ndarray) -> Arrays:
        """Return the pooled vectors by the name of their feature."""
        found = {}
        for name, lookup in zip(self.spec.lookup_names, self.spec.lookups, strict=True):
            if not lookup.sequence:
                found[name] = pooled[:, lookup.column : lookup.column + lookup.dim]
        return found


def check_gradients(
    case: Sequenced, loss_of: Callable[..., float], *, weights: np.ndarray, most: int = 60
) -> None:
    """Hold the loss and its gradients against those of a loss in float64, by differences.

    Args:
        loss_of: of arrays as `Sequenced.arrays` gives them.
        most: how many values of each array are tried.
    """
    arrays = case.arrays()
    loss, grad_params, grads = case.train(weights)
    np.testing.assert_allclose(loss, loss_of(*arrays), rtol=1e-5)
    behind = np.arange(LONGEST) >= case.lengths[:, np.newaxis]
    of_sequences = [np.where(behind[..., np.newaxis], 0, s.vectors) for s in grads.sequences]
    draw = np.random.default_rng(7)
    for array, gradient in zip(arrays, (grad_params, grads.pooled, *of_sequences), strict=True):
        assert gradient.shape == array.shape
        chosen = draw.permutation(array.size)[:most]
        expected = [_difference(loss_of, arrays, array, at) for at in chosen]
        np.testing.assert_allclose(gradient.flat[chosen], expected, rtol=2e-3, atol=2e-5)


def _difference(
    loss_of: Callable[..., float], arrays: list[np.ndarray], array: np.ndarray, at: int
) -> float:
    kept, losses = array.flat[at], []
    for value in (kept + 1e-6, kept - 1e-6):
        array.flat[at] = value
        losses.append(loss_of(*arrays))
    array.flat[at] = kept
    return (losses[0] - losses[1]) / 2e-6
