"""Weights of samples: what one adds to the sums of a batch is multiplied by its own."""

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from ps.client.deduplicate import Deduplicator
from ps.routing import Routing
from worker.data.batch import Bags
from worker.data.columns import Columns
from worker.models import build_model, initial_parameters, needed_lookups
from worker.spec import ModelSpec, SparseFeature
from worker.step.choosing import choose_rows
from worker.step.computing import Computation
from worker.step.preparing import Prepared, Preparer

DIM, N = 4, 60
OPTIONS = {
    "dlrm": {"bottom_mlp": [8], "top_mlp": [8]},
    "deepfm": {"mlp": [8]},
    "wide_deep": {"mlp": [8]},
}
SPARSE = [SparseFeature(name=f"s{i}", column=f"s{i}", table=f"t{i}") for i in range(2)]
FLOATS = {"rtol": 1e-4, "atol": 1e-5}


class Trainer:
    """One batch of samples, of which some may be there more than once."""

    def __init__(self, kind: str, *, threads: int = 1, ragged: bool = False) -> None:
        lookups = needed_lookups(kind, OPTIONS[kind], SPARSE, dict.fromkeys(("t0", "t1"), DIM))
        self.dims = {lookup.table: lookup.dim for lookup in lookups}
        self.spec = ModelSpec(
            type=kind, options=OPTIONS[kind], optimizer=Sgd(), num_dense=3, lookups=lookups
        )
        self.threads = threads
        self.parameters = initial_parameters(build_model(self.spec), 0)
        rng = np.random.default_rng(5)
        offsets = np.arange(N + 1) * 2 if ragged else None
        self.samples = Columns(
            (rng.random(N) < 0.3).astype(np.float32),
            rng.normal(size=(N, 3)).astype(np.float32),
            tuple(Bags(rng.integers(0, N, 2 * N if ragged else N), offsets) for _ in SPARSE),
        )

    def prepared(
        self, times: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> Prepared:
        columns = self.samples
        if times is not None:
            columns = columns.take(np.repeat(np.arange(N), times))
        batch = columns.batch(0, columns.num_rows)
        preparer = Preparer(
            tables=list(self.dims),
            sparse=SPARSE,
            lookups=self.spec.lookups,
            deduplicator=Deduplicator(list(self.dims.values()), Routing.even(1)),
        )
        return preparer(type(batch)(batch.labels, batch.dense, batch.sparse, weights))

    def train(
        self, prepared: Prepared
    ) -> tuple[float, dict[tuple[str, int], list[float]], np.ndarray]:
        """Return the loss, the gradient of each row that gets one, and of the dense parameters."""
        unique = prepared.unique
        tables = np.repeat(list(self.dims), unique.sizes[0])
        rows = list(zip(tables.tolist(), unique.keys.tolist(), strict=True))
        values = [np.random.default_rng([len(t), k]).normal(size=self.dims[t]) for t, k in rows]
        prepared, trained = choose_rows(prepared, np.ones(len(rows), np.uint8))
        computation = Computation(self.spec, threads=self.threads)
        flat = np.concatenate(values).astype(np.float32)
        loss, gradients, dense = computation.train(prepared, flat, self.parameters)
        ends = np.cumsum([len(value) for value in values])[:-1]
        parts = zip(rows, np.split(gradients, ends), trained, strict=True)
        return loss, {row: part.tolist() for row, part, gets in parts if gets}, dense


@pytest.fixture(
    params=[("dlrm", 1, False), ("dlrm", 2, True), ("deepfm", 2, False), ("wide_deep", 1, True)],
    ids=lambda p: f"{p[0]}-{p[1]}{'-ragged' if p[2] else ''}",
)
def trainer(request: pytest.FixtureRequest) -> Trainer:
    kind, threads, ragged = request.param
    return Trainer(kind, threads=threads, ragged=ragged)


def test_weights_of_1_change_no_bit(trainer: Trainer) -> None:
    plain = trainer.train(trainer.prepared())
    weighed = trainer.train(trainer.prepared(weights=np.ones(N, np.float32)))

    assert weighed[:2] == plain[:2]
    assert weighed[2].tobytes() == plain[2].tobytes()


@pytest.mark.parametrize("least", [0, 1])
def test_a_whole_weight_is_a_sample_that_is_there_so_often(trainer: Trainer, least: int) -> None:
    times = np.random.default_rng(1).integers(least, 4, N)

    repeated = trainer.train(trainer.prepared(times))
    weighed = trainer.train(trainer.prepared(weights=times.astype(np.float32)))

    assert weighed[0] == pytest.approx(repeated[0], rel=1e-5)
    assert weighed[1].keys() == repeated[1].keys()
    for row, gradient in repeated[1].items():
        np.testing.assert_allclose(weighed[1][row], gradient, err_msg=str(row), **FLOATS)
    np.testing.assert_allclose(weighed[2], repeated[2], **FLOATS)


def test_samples_of_weight_0_are_seen_and_move_nothing(trainer: Trainer) -> None:
    prepared = trainer.prepared(weights=np.zeros(N, np.float32))
    counts = trainer.prepared().unique.counts

    loss, rows, dense = trainer.train(prepared)

    assert (loss, rows) == (0.0, {})
    assert not dense.any()
    assert prepared.num_samples == N
    np.testing.assert_array_equal(prepared.unique.counts, counts)
