from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from worker.models import Model, SampleVectors, build_model
from worker.spec import ModelSpec


class PooledModel:
    """A model that reads vectors where they lie, on pooled inputs like any other."""

    def __init__(self, spec: ModelSpec, model: Model[Any]) -> None:
        self.parameters = model.parameters
        self._columns = [lookup.column for lookup in spec.lookups]
        self._model = model
        self._positions = {}

    def train(self, params, dense, pooled, labels, grad_params, grad_pooled):
        grad_pooled[:] = 0
        vectors = self._vectors(pooled)
        grad_flat = grad_pooled.reshape(-1)
        return self._model.train(params, dense, vectors, labels, grad_params, grad_flat)

    def predict(self, params, dense, pooled):
        return self._model.predict(params, dense, self._vectors(pooled))

    def _vectors(self, pooled):
        n = len(pooled)
        if n not in self._positions:
            # Kept, as a test that measures memory means the model's.
            self._positions[n] = np.empty((len(self._columns), n), np.int64)
            SampleVectors.of_pooled(pooled, self._columns, self._positions[n])
        return SampleVectors(pooled.reshape(-1), self._positions[n])


@pytest.fixture
def pooled_model() -> Callable[[ModelSpec], Model[np.ndarray]]:
    """Build a model of float32[n, W], whatever it reads by itself."""

    def build(spec: ModelSpec) -> Model[np.ndarray]:
        model = build_model(spec)
        return PooledModel(spec, model) if getattr(model, "reads_vectors", False) else model

    return build
