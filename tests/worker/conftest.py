"""Read files and tables whole, as a job of one batch would."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from worker.data.batch import Batch
from worker.data.plan import Plan
from worker.data.planning import make_plan
from worker.data.reading import Reader
from worker.spec import DataSpec, FeatureSpec, SparseFeature


@dataclass(frozen=True, slots=True)
class Rows:
    """What a job reads: the plan, and its one batch."""

    plan: Plan
    features: FeatureSpec
    batch: Batch

    def keys(self, name: str) -> list[list[int]]:
        """The bag of each row of a sparse column."""
        at = [feature.name for feature in self.features.sparse].index(name)
        bags = self.batch.sparse[at]
        offsets = np.arange(bags.keys.size + 1) if bags.offsets is None else bags.offsets
        return [bags.keys[i:j].tolist() for i, j in itertools.pairwise(offsets)]


@pytest.fixture
def read() -> Callable[..., Rows]:
    """Plan what patterns name with one large batch, and read it.

    `read(*patterns, sparse=names, dense=names, label=name, **options)` gives `Rows`.
    """

    def read(
        *patterns: object,
        sparse: Sequence[str] = (),
        dense: Sequence[str] = (),
        label: str | None = None,
        **options: Any,
    ) -> Rows:
        features = FeatureSpec(
            label=label,
            dense=tuple(dense),
            dense_transform="none",
            sparse=tuple(SparseFeature(name=name, column=name, table="t") for name in sparse),
        )
        data = DataSpec(features=features, batch_size=1 << 20, **options)
        plan = make_plan([str(pattern) for pattern in patterns], data)
        reader = Reader(plan, features)
        batch, skipped = reader.read(0)
        reader.close()
        assert (batch.num_samples, skipped) == (plan.rows_per_epoch, 0)
        return Rows(plan, features, batch)

    return read
