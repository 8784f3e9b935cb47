"""Arrays of a batch: used again, and nothing of an earlier batch is left in gradients."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding.spec.optimizers import Sgd
from ps.client.deduplicate import Deduplicator
from ps.routing import Routing
from runtime.fingerprint import FloatModeError
from worker.data.batch import Bags, Batch
from worker.models import build_model, initial_parameters, needed_lookups
from worker.spec import ModelSpec, SparseFeature
from worker.step.computing import Computation
from worker.step.preparing import Prepared, Preparer

FEATURES, DIM = 5, 8
OPTIONS = {
    "dlrm": {"bottom_mlp": [128], "top_mlp": [256, 32]},
    "deepfm": {"mlp": [256, 32]},
    "wide_deep": {"mlp": [256, 32]},
}
SPARSE = [SparseFeature(name=f"s{i}", column=f"s{i}", table=f"t{i}") for i in range(FEATURES)]
Trained = tuple[float, np.ndarray, np.ndarray]


class Trainer:
    """Batches of a model, and a computation that trains them."""

    def __init__(self, kind: str, *, threads: int = 1, ragged: bool = False) -> None:
        dims = {feature.table: DIM for feature in SPARSE}
        lookups = needed_lookups(kind, OPTIONS[kind], SPARSE, dims)
        tables = {lookup.table: lookup.dim for lookup in lookups}
        self.spec = ModelSpec(
            type=kind, options=OPTIONS[kind], optimizer=Sgd(), num_dense=3, lookups=lookups
        )
        self.threads = threads
        self.ragged = ragged
        self.preparer = Preparer(
            tables=list(tables),
            sparse=SPARSE,
            lookups=lookups,
            deduplicator=Deduplicator(list(tables.values()), Routing.even(2)),
        )
        self.parameters = initial_parameters(build_model(self.spec), 0)
        self.computation = self.fresh()

    def fresh(self) -> Computation:
        return Computation(self.spec, threads=self.threads)

    def batch(self, n: int) -> tuple[Prepared, np.ndarray]:
        """A prepared batch of n samples and its pulled rows; the same for the same n."""
        rng = np.random.default_rng(n)
        offsets = np.arange(n + 1) * 2 if self.ragged else None
        keys = [rng.integers(0, 5 * n, 2 * n if self.ragged else n) for _ in SPARSE]
        labels = (rng.random(n) < 0.3).astype(np.float32)
        dense = rng.normal(size=(n, 3)).astype(np.float32)
        prepared = self.preparer(Batch(labels, dense, tuple(Bags(k, offsets) for k in keys)))
        values = rng.normal(size=prepared.unique.value_starts[-1]).astype(np.float32)
        return prepared, values

    def train(self, batch: tuple[Prepared, np.ndarray]) -> Trained:
        return self.computation.train(*batch, self.parameters)


@pytest.fixture(
    params=[
        *(("dlrm", 1, False), ("dlrm", 2, False), ("dlrm", 2, True)),
        *(("deepfm", 1, False), ("deepfm", 2, True), ("wide_deep", 1, False)),
    ],
    ids=lambda p: f"{p[0]}-{p[1]}{'-ragged' if p[2] else ''}",
)
def trainer(request: pytest.FixtureRequest) -> Trainer:
    kind, threads, ragged = request.param
    return Trainer(kind, threads=threads, ragged=ragged)


def peak_bytes(task: Callable[[], None]) -> int:
    """Memory that was allocated at one moment of a task beyond what was before it."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        task()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_the_dense_path_allocates_nothing_large_in_the_steady_state(trainer: Trainer) -> None:
    batches = [trainer.batch(n) for n in (640, 600, 515, 577, 630)]

    def step(batch: tuple[Prepared, np.ndarray]) -> None:
        _, gradients, dense = trainer.train(batch)
        trainer.computation.give_back(gradients, dense)

    step(batches[0])

    # The gradients of the rows have 80,000 bytes and more, those of the parameters 36,000 and more.
    for batch in batches:
        assert peak_bytes(lambda batch=batch: step(batch)) < 32_768  # type: ignore[misc]


def test_nothing_of_an_earlier_batch_is_left_in_gradients(trainer: Trainer) -> None:
    prepared, values = trainer.batch(40)
    expected = trainer.fresh().train(prepared, values, trainer.parameters)

    for n in (90, 41):
        broken, rows = trainer.batch(n)
        _, gradients, dense = trainer.train((broken, np.full_like(rows, np.nan)))
        assert np.isnan(dense).any()
        trainer.computation.give_back(gradients, dense)
    loss, gradients, dense = trainer.train((prepared, values))

    assert loss == expected[0]
    assert gradients.tobytes() == expected[1].tobytes()
    assert dense.tobytes() == expected[2].tobytes()


def test_no_thread_trains_in_a_mode_that_flushes_denormals(
    trainer: Trainer, in_float_mode: Any
) -> None:
    batch = trainer.batch(40)

    with in_float_mode("flushing"):  # the computation's threads are started here, and inherit it
        trainer.computation = trainer.fresh()
        with pytest.raises(FloatModeError, match="denormal numbers flushed to zero"):
            trainer.train(batch)
        trainer.computation = Computation(
            trainer.spec, threads=trainer.threads, any_float_mode=True
        )
        trainer.train(batch)


def test_gradients_stay_until_they_are_given_back(trainer: Trainer) -> None:
    _, *first = trainer.train(trainer.batch(40))
    kept = [array.copy() for array in first]

    for n in (50, 30, 40):
        _, gradients, dense = trainer.train(trainer.batch(n))
        trainer.computation.give_back(gradients, dense)

    for array, before in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_preparing_allocates_nothing_large_in_the_steady_state() -> None:
    trainer = Trainer("dlrm")
    rng = np.random.default_rng(0)

    def batch(n: int) -> Batch:
        keys = tuple(Bags(rng.integers(0, 5 * n, n)) for _ in SPARSE)
        return Batch(np.zeros(n, np.float32), np.zeros((n, 3), np.float32), keys)

    def step(drawn: Batch) -> None:
        trainer.preparer.give_back(trainer.preparer(drawn))

    batches = [batch(n) for n in (4000, 3900, 3000, 3999)]
    step(batches[0])

    # The positions of a batch have 120,000 bytes and more.
    for drawn in batches:
        assert peak_bytes(lambda drawn=drawn: step(drawn)) < 16_384  # type: ignore[misc]


def test_a_prepared_batch_stays_until_it_is_given_back() -> None:
    trainer = Trainer("dlrm")
    prepared, _ = trainer.batch(60)
    names = ("keys", "counts", "positions", "places")
    kept = {name: getattr(prepared.unique, name).copy() for name in names}

    for n in (70, 20, 60):
        trainer.preparer.give_back(trainer.batch(n)[0])

    for name in names:
        np.testing.assert_array_equal(getattr(prepared.unique, name), kept[name])
