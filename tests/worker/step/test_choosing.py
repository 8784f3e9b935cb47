"""Adaptive tables: batch after batch against an explicit computation with dictionaries."""

from typing import Any

import numpy as np
import pytest

from embedding import EmbeddingVariable, TableSpec, step_scalars
from embedding.spec.admission import CounterAdmission
from embedding.spec.composition import Adaptive, compose
from embedding.spec.optimizers import Adam, Sgd
from embedding.table.key_maps import static_keys
from embedding.table.links import make_variables
from ps.client.deduplicate import Deduplicator, keep_admitted
from ps.routing import Routing
from worker.data.batch import Bags, Batch
from worker.spec import Lookup, SparseFeature
from worker.step.assembling import add_gradient, pool_vectors, vectors_of
from worker.step.choosing import choose_rows
from worker.step.preparing import Preparer

DIM, MIN_COUNT = 3, 4


class Trainer:
    """One table, adaptive, of one feature; the gradient of a sample's pooled vector is given."""

    def __init__(self, optimizer: Any, max_norm: float | None = None) -> None:
        table = TableSpec(
            name="t", dim=DIM, optimizer=optimizer, admission=CounterAdmission(min_count=MIN_COUNT)
        )
        composed = compose(table, Adaptive(static_rows=4096))
        self.lookup = Lookup(
            feature=0, table="t", dim=DIM, column=0, max_norm=max_norm,
            parts=composed.parts, operation=composed.operation,
        )  # fmt: skip
        self.own, self.static = make_variables(composed.tables)
        self.prepare = Preparer(
            tables=["t", "t_static"],
            sparse=[SparseFeature(name="f", column="f", table="t", combiner="sum")],
            lookups=[self.lookup],
            deduplicator=Deduplicator([DIM, DIM], Routing.even(1)),
        )
        self.step = 0

    @property
    def tables(self) -> tuple[EmbeddingVariable, EmbeddingVariable]:
        return self.own, self.static

    def train(self, bags: list[list[int]], of_pooled: np.ndarray) -> np.ndarray:
        """One step; return the pooled vectors."""
        keys = np.array([key for bag in bags for key in bag], np.int64)
        offsets = np.cumsum([0, *map(len, bags)])
        n = len(bags)
        batch = Batch(np.zeros(n, np.float32), np.zeros((n, 0), np.float32), (Bags(keys, offsets),))
        prepared = self.prepare(batch)
        unique = prepared.unique
        values = np.empty((unique.keys.size, DIM), np.float32)
        admitted = np.empty(unique.keys.size, np.uint8)
        parts = [slice(0, unique.sizes[0, 0]), slice(unique.sizes[0, 0], unique.keys.size)]
        for table, part in zip(self.tables, parts, strict=True):
            table.pull(unique.keys[part], unique.counts[part], values[part], admitted[part])

        prepared, trained = choose_rows(prepared, admitted)
        (bag,), flat = prepared.bags, values.reshape(-1)
        pooled, grad = np.empty((n, DIM), np.float32), np.zeros_like(flat)
        vectors = vectors_of(self.lookup, bag, flat)
        pool_vectors(self.lookup, bag, vectors, pooled)
        add_gradient(self.lookup, bag, flat, vectors, of_pooled.astype(np.float32), grad)
        kept = keep_admitted(grad, trained, unique.sizes[0], np.array([DIM, DIM]))
        rows = np.zeros_like(values)
        rows[trained != 0] = kept.reshape(-1, DIM)
        for table, part in zip(self.tables, parts, strict=True):
            table.apply(
                unique.keys[part],
                unique.counts[part].astype(np.int64),
                rows[part],
                trained[part],
                step=self.step,
                scale=1.0,
                scalars=step_scalars(table.spec.optimizer, learning_rate=0.1, step=self.step),
            )
        self.step += 1
        return pooled


def initial(table: EmbeddingVariable, key: int) -> np.ndarray:
    values = np.empty((1, DIM), np.float32)
    fresh = EmbeddingVariable(TableSpec(name=table.spec.name, dim=DIM))
    fresh.pull(np.array([key]), None, values, np.empty(1, np.uint8))
    return values[0].astype(np.float64)


@pytest.mark.parametrize("max_norm", [None, 0.2])
def test_training_is_the_explicit_computation(max_norm: float | None) -> None:
    trainer = Trainer(Sgd(learning_rate=0.1), max_norm)
    rng = np.random.default_rng(3)
    pool = np.arange(40_000)
    pool = pool[np.isin(static_keys(pool, 1), static_keys(np.arange(6), 1))][:40]
    own: dict[int, np.ndarray] = {}
    static: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}
    for _ in range(12):
        bags = [rng.choice(pool, rng.integers(0, 4)).tolist() for _ in range(8)]
        of_pooled = rng.normal(size=(8, DIM))
        batch_keys = [key for bag in bags for key in bag]
        before_own, before_static = dict(own), dict(static)

        def row_of(key: int) -> tuple[dict[int, np.ndarray], int, np.ndarray]:
            """Which dictionary and key hold the row that an occurrence uses, and its vector."""
            shared = int(static_keys(np.array([key]), 1)[0])
            vector = before_static.get(shared, initial(trainer.static, shared))  # noqa: B023
            if counts.get(key, 0) + batch_keys.count(key) < MIN_COUNT:  # noqa: B023
                return static, shared, vector
            return own, key, before_own.get(key, vector)  # noqa: B023

        pooled = np.zeros((8, DIM))
        changes: list[tuple[dict[int, np.ndarray], int, np.ndarray, np.ndarray]] = []
        for i, bag in enumerate(bags):
            for key in bag:
                place, number, x = row_of(key)
                norm, g = np.linalg.norm(x), of_pooled[i]
                if max_norm is not None and norm > max_norm:
                    pooled[i] += x * max_norm / norm
                    g = max_norm / norm * (g - x * (x @ g) / norm**2)
                else:
                    pooled[i] += x
                changes.append((place, number, x, g))
        for place, number, x, g in changes:
            place[number] = place.get(number, x) - 0.1 * g
        for key in batch_keys:
            counts[key] = counts.get(key, 0) + 1

        found = trainer.train(bags, of_pooled)

        np.testing.assert_allclose(found, pooled, rtol=1e-5, atol=1e-6)
    assert len(own) > 5
    for table, rows in ((trainer.own, own), (trainer.static, static)):
        entries = table.export()
        assert sorted(entries.keys.tolist()) == sorted(rows)
        expected = [rows[key] for key in entries.keys.tolist()]
        np.testing.assert_allclose(entries.vectors, expected, rtol=1e-5, atol=1e-6)


def test_a_static_row_rests_once_all_its_users_have_rows_of_their_own() -> None:
    trainer = Trainer(Adam(learning_rate=0.1))
    gradient = np.ones((2, DIM))
    for _ in range(2):
        trainer.train([[5], [5]], gradient)
    before = trainer.static.export()

    for _ in range(3):
        trainer.train([[5], [5]], gradient)

    after = trainer.static.export()
    assert len(before.keys) == 1
    np.testing.assert_array_equal(after.vectors, before.vectors)
    np.testing.assert_array_equal(after.slots, before.slots)
    assert len(trainer.own) == 1


def test_a_static_row_goes_on_for_those_that_still_use_it() -> None:
    trainer = Trainer(Sgd(learning_rate=0.1))
    pool = np.arange(20_000)
    frequent, rare = pool[static_keys(pool, 1) == static_keys(pool[:1], 1)][:2].tolist()
    trainer.train([[frequent] * 4], np.ones((1, DIM)))
    assert (len(trainer.own), len(trainer.static)) == (1, 0)

    trainer.train([[frequent], [rare, rare]], np.array([[1.0] * DIM, [3.0] * DIM]))

    shared = int(static_keys(np.array([rare]), 1)[0])
    expected = initial(trainer.static, shared) - 0.1 * 2 * 3.0
    np.testing.assert_allclose(trainer.static.export().vectors[0], expected, rtol=1e-6)


def test_batches_without_a_choice_stay_as_they_are() -> None:
    lookup = Lookup(feature=0, table="t", dim=DIM, column=0)
    prepare = Preparer(
        tables=["t"],
        sparse=[SparseFeature(name="f", column="f", table="t")],
        lookups=[lookup],
        deduplicator=Deduplicator([DIM], Routing.even(1)),
    )
    batch = Batch(
        np.zeros(1, np.float32), np.zeros((1, 0), np.float32), (Bags(np.array([4]), None),)
    )
    prepared, admitted = prepare(batch), np.zeros(1, np.uint8)

    assert choose_rows(prepared, admitted)[0] is prepared
    assert choose_rows(prepared, admitted)[1] is admitted


def test_rows_that_only_samples_of_weight_0_use_get_no_gradient() -> None:
    """Not even one of 0, by which Adam would move them."""
    pool = np.arange(20_000)
    own, rare, other = pool[static_keys(pool, 1) == static_keys(pool[:1], 1)][:3].tolist()
    trainer = Trainer(Adam(learning_rate=0.1))
    keys = np.array([own, own, rare, other], np.int64)
    batch = Batch(
        np.zeros(3, np.float32),
        np.zeros((3, 0), np.float32),
        (Bags(keys, np.array([0, 1, 2, 4])),),
        np.array([1, 0, 0], np.float32),
    )
    prepared = trainer.prepare(batch)
    admitted = np.ones(prepared.unique.keys.size, np.uint8)
    has_no_row = prepared.unique.keys[: prepared.unique.sizes[0, 0]] != own
    admitted[: has_no_row.size][has_no_row] = 0

    chosen, trained = choose_rows(prepared, admitted)

    by_key = dict(zip(prepared.unique.keys[: has_no_row.size].tolist(), trained, strict=False))
    assert by_key == {own: 1, rare: 0, other: 0}
    assert trained[has_no_row.size :].tolist() == [0], "who weighs something has its own row"
    assert chosen.bags[0].positions[0].size == 4


def test_a_batch_in_which_all_weigh_something_trains_all_its_keys() -> None:
    trainer = Trainer(Sgd(learning_rate=0.1))
    bags = (Bags(np.array([1, 2], np.int64), np.array([0, 1, 2])),)
    dense = np.zeros((2, 0), np.float32)

    prepared = trainer.prepare(Batch(np.zeros(2, np.float32), dense, bags, np.float32([0.1, 3])))

    assert prepared.weighing is None
