"""Models of torch with a batch for each. Torch itself is loaded by what makes one."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedding.spec.optimizers import Sgd
from worker.models import Model, build_model, initial_parameters, needed_lookups
from worker.spec import ModelSpec, SparseFeature

DIMS = {"a": 4, "b": 2}


def make_spec(
    options: dict[str, Any],
    *,
    num_dense: int = 3,
    dims: dict[str, int] = DIMS,
    tasks: dict[str, float] | None = None,
) -> ModelSpec:
    """Return the spec of a model; tasks: the weight of each, where there are several."""
    sparse = [SparseFeature(name=name, column=name, table=f"t_{name}") for name in dims]
    lookups = needed_lookups("torch", options, sparse, {f"t_{name}": d for name, d in dims.items()})
    return ModelSpec(
        type="torch",
        options=options,
        optimizer=Sgd(),
        num_dense=num_dense,
        lookups=lookups,
        seed=5,
        lookup_names=tuple(dims),
        tasks=tuple(tasks or {}),
        task_weights=tuple((tasks or {}).values()),
    )


@dataclass
class Tried:
    """A model, and a batch with which it is trained."""

    spec: ModelSpec
    n: int = 7

    def __post_init__(self) -> None:
        self.model: Model[Any] = build_model(self.spec)
        self.params = initial_parameters(self.model, self.spec.seed)
        draw = np.random.default_rng(1)
        n, spec = self.n, self.spec
        self.dense = draw.normal(size=(n, spec.num_dense)).astype(np.float32)
        self.pooled = draw.normal(0, 0.5, (n, spec.pooled_width)).astype(np.float32)
        self.labels = (draw.random(n) < 0.4).astype(np.float32)
        self.weights = draw.integers(0, 3, n).astype(np.float32)
        if spec.tasks:  # some samples do not count in some
            shape = spec.logits_shape(n)
            self.labels = (draw.random(shape) < 0.4).astype(np.float32)
            self.labels[draw.random(shape) < 0.3] = np.nan

    def rows(self, rows: slice) -> "Tried":
        """The same with some of the samples."""
        part = replace(self, n=len(range(self.n)[rows]))
        for name in ("dense", "pooled", "labels", "weights"):
            setattr(part, name, getattr(self, name)[rows].copy())
        part.params = self.params
        return part

    def train(
        self, *weights: np.ndarray, batch_id: int = 0
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Return (loss, grad_params, grad_pooled), which begin as NaN to show what is left."""
        grad_params = np.full_like(self.params, np.nan)
        grad_pooled = np.full_like(self.pooled, np.nan)
        self.model.begin_batch(batch_id)  # type: ignore[attr-defined]
        loss = self.model.train(
            self.params, self.dense, self.pooled, self.labels, grad_params, grad_pooled, *weights
        )
        return loss, grad_params, grad_pooled

    def predict(self) -> np.ndarray:
        return self.model.predict(self.params, self.dense, self.pooled)
