import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worker.models import Model, SampleVectors, build_model
from worker.spec import ModelSpec


@pytest.fixture
def write_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Return a function that makes a module importable for the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


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
