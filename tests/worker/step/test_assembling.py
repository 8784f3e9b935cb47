"""Pooled inputs of a batch and their gradients, against explicit float64 computations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedding import TableSpec
from embedding.spec.composition import DynamicDimension, MultiHash, Part, compose
from ps.client.deduplicate import Deduplicator
from ps.routing import Routing
from worker.data.batch import Bags, Batch
from worker.spec import Lookup, SparseFeature
from worker.step.assembling import add_gradient, pool_vectors, vectors_of
from worker.step.computing import lookups_by_tables
from worker.step.preparing import Prepared, Preparer

Rows = dict[tuple[str, int], np.ndarray]
DIM = 4
LENGTH = 5
BAGS: list[list[int]] = [[5, -7, 5], [], [2**62], [-7, 0, 9, 5], [9], [-(2**63), 0]]
WEIGHTS = [[0.5, 2.0, -1.0], [], [3.0], [1.0, 0.25, 1.0, 2.0], [-2.0], [1.0, 1.0]]


def flat(lists: list[list[Any]], dtype: Any) -> np.ndarray:
    return np.array([item for part in lists for item in part], dtype)


class Batched:
    """One lookup of a feature on a batch, prepared for tables of random rows on three shards."""

    def __init__(
        self, lookup: Lookup, dims: dict[str, int], *, bags: list[list[int]] = BAGS, **feature: Any
    ) -> None:
        weighted = feature.get("weights") is not None
        self.lookup, self.dims = lookup, dims
        self.prepared = self._prepare(bags, weighted, feature)
        self.rng = np.random.default_rng(1)
        self.rows: Rows = {}
        self.values = np.empty(self.prepared.unique.value_starts[-1], np.float32)
        for name, key, place in self._places():
            row = self.rng.normal(size=dims[name]).astype(np.float32)
            self.rows[name, key] = row.astype(np.float64)
            self.values[place] = row

    def _prepare(self, bags: list[list[int]], weighted: bool, feature: Any) -> Prepared:
        single = all(len(bag) == 1 for bag in bags)
        offsets = None if single else np.cumsum([0, *map(len, bags)])
        weights = flat(WEIGHTS, np.float32) if weighted else None
        batch = Batch(
            np.zeros(len(bags), np.float32),
            np.zeros((len(bags), 0), np.float32),
            (Bags(flat(bags, np.int64), offsets, weights),),
        )
        prepare = Preparer(
            tables=list(self.dims),
            sparse=[SparseFeature(name="f", column="f", table=self.lookup.table, **feature)],
            lookups=[self.lookup],
            deduplicator=Deduplicator(list(self.dims.values()), Routing.even(3)),
        )
        return prepare(batch)

    def _places(self) -> list[tuple[str, int, slice]]:
        """Table, key and part of the flat buffer of every row, in the order of the messages."""
        unique, places = self.prepared.unique, []
        key = start = 0
        for sizes in unique.sizes:
            for (name, dim), size in zip(self.dims.items(), sizes, strict=True):
                for _ in range(size):
                    places.append((name, int(unique.keys[key]), slice(start, start + dim)))
                    key, start = key + 1, start + dim
        return places

    def pooled(self) -> np.ndarray:
        """float32[n, dim + 3]: columns that are not the lookup's hold 7."""
        (bag,) = self.prepared.bags
        out = np.full((self.prepared.num_samples, DIM + 3), 7, np.float32)
        pool_vectors(self.lookup, bag, vectors_of(self.lookup, bag, self.values), out)
        assert (np.delete(out, np.s_[2 : 2 + DIM], axis=1) == 7).all()
        return out[:, 2 : 2 + DIM]

    def gradient(self, of_pooled: np.ndarray) -> Rows:
        """The gradient of each row, where sum(pooled * of_pooled) is what is minimised."""
        (bag,) = self.prepared.bags
        grad_pooled = np.full((len(of_pooled), DIM + 3), np.nan, np.float32)
        grad_pooled[:, 2 : 2 + DIM] = of_pooled
        grad = np.zeros_like(self.values)
        vectors = vectors_of(self.lookup, bag, self.values)
        add_gradient(self.lookup, bag, self.values, vectors, grad_pooled, grad)
        return {(name, key): grad[place] for name, key, place in self._places()}

    def check(self, pooled_of: Callable[[Rows], np.ndarray]) -> None:
        """Compare with a float64 computation, gradients with its central differences."""
        check(self, self.rng.normal(size=(self.prepared.num_samples, DIM)), pooled_of)


def check(batch: Batched, of_pooled: np.ndarray, pooled_of: Callable[[Rows], np.ndarray]) -> None:
    np.testing.assert_allclose(batch.pooled(), pooled_of(batch.rows), rtol=1e-5, atol=1e-6)
    for place, gradient in batch.gradient(of_pooled).items():
        row = batch.rows[place]
        for k in range(row.size):
            results = []
            for change in (1e-6, -1e-6):
                moved = row.copy()
                moved[k] += change
                results.append((pooled_of({**batch.rows, place: moved}) * of_pooled).sum())
            expected = (results[0] - results[1]) / 2e-6
            np.testing.assert_allclose(gradient[k], expected, rtol=1e-4, atol=1e-5)


class OneByOne(Batched):
    """One lookup of sequences, filled up to LENGTH."""

    def pooled(self) -> np.ndarray:
        (bag,) = self.prepared.bags
        out = np.full((self.prepared.num_samples, LENGTH, DIM), np.nan, np.float32)
        pool_vectors(self.lookup, bag, vectors_of(self.lookup, bag, self.values), out)
        return out.reshape(len(out), LENGTH * DIM)

    def gradient(self, of_pooled: np.ndarray) -> Rows:
        (bag,) = self.prepared.bags
        given = of_pooled.reshape(len(of_pooled), LENGTH, DIM).astype(np.float32)
        lengths = np.ones(len(given)) if bag.offsets is None else np.diff(bag.offsets)
        given[np.arange(LENGTH) >= lengths[:, np.newaxis]] = np.nan
        grad = np.zeros_like(self.values)
        vectors = vectors_of(self.lookup, bag, self.values)
        add_gradient(self.lookup, bag, self.values, vectors, given, grad)
        return {(name, key): grad[place] for name, key, place in self._places()}

    def check(self, pooled_of: Callable[[Rows], np.ndarray]) -> None:
        """As of one vector of all vectors side by side."""
        of_pooled = self.rng.normal(size=(self.prepared.num_samples, LENGTH * DIM))
        check(self, of_pooled, pooled_of)


def combined(vectors: list[np.ndarray], weights: list[float], combiner: str) -> np.ndarray:
    if not vectors:
        return np.zeros(DIM)
    if combiner == "max":
        return np.max(vectors, axis=0)
    total = sum(w * v for w, v in zip(weights, vectors, strict=True))
    divisor = {
        "sum": 1.0,
        "mean": sum(weights),
        "sqrtn": np.sqrt(sum(w * w for w in weights)),
    }[combiner]
    return np.asarray(total / divisor)


def clipped(vector: np.ndarray, max_norm: float | None) -> np.ndarray:
    norm = np.sqrt((vector**2).sum())
    return vector if max_norm is None or norm <= max_norm else vector * (max_norm / norm)


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn", "max"])
@pytest.mark.parametrize("max_norm", [None, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_clipped_then_combined(
    combiner: Any, max_norm: float | None, weighted: bool
) -> None:
    if weighted and combiner == "max":
        with pytest.raises(ValueError, match="takes no weights"):
            SparseFeature(name="f", column="f", table="t", combiner="max", weights="w")
        return
    lookup = Lookup(feature=0, table="t", dim=DIM, column=2, max_norm=max_norm)
    weights = WEIGHTS if weighted else [[1.0] * len(bag) for bag in BAGS]
    batch = Batched(lookup, {"t": DIM}, combiner=combiner, weights="w" if weighted else None)
    norms = [np.linalg.norm(row) for row in batch.rows.values()]
    assert min(norms) < 1.5 < max(norms)

    def pooled_of(rows: Rows) -> np.ndarray:
        return np.array(
            [
                combined([clipped(rows["t", key], max_norm) for key in bag], w, combiner)
                for bag, w in zip(BAGS, weights, strict=True)
            ]
        )

    batch.check(pooled_of)


@pytest.mark.parametrize("combiner", ["sum", "max"])
def test_a_batch_of_single_keys_is_clipped_too(combiner: Any) -> None:
    lookup = Lookup(feature=0, table="t", dim=DIM, column=2, max_norm=0.5)
    bags = [[3], [4], [3]]

    Batched(lookup, {"t": DIM}, bags=bags, combiner=combiner).check(
        lambda rows: np.array([clipped(rows["t", key], 0.5) for (key,) in bags])
    )


def test_a_plain_lookup_is_pooled_from_the_pulled_rows_without_a_copy() -> None:
    batch = Batched(Lookup(feature=0, table="t", dim=DIM, column=2), {"t": DIM})

    vectors = vectors_of(batch.lookup, batch.prepared.bags[0], batch.values)

    assert vectors.flat is batch.values


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("inf"), float("nan")])
def test_a_max_norm_that_limits_nothing_sensible_is_refused(max_norm: float) -> None:
    with pytest.raises(ValueError, match="feature f: max_norm must be > 0"):
        SparseFeature(name="f", column="f", table="t", max_norm=max_norm)


# Sequences ----------------------------------------------------------------------------------------


def filled_up(bags: list[list[np.ndarray]]) -> np.ndarray:
    zeros = [np.zeros(DIM)] * LENGTH
    return np.array([np.concatenate([*bag, *zeros][:LENGTH]) for bag in bags])


@pytest.mark.parametrize("max_norm", [None, 1.5])
@pytest.mark.parametrize("bags", [BAGS, [[3], [4], [3]]], ids=["lists", "single keys"])
def test_sequences_have_the_vectors_of_their_keys_in_order_then_zeros(
    max_norm: float | None, bags: list[list[int]]
) -> None:
    lookup = Lookup(feature=0, table="t", dim=DIM, column=0, max_norm=max_norm, sequence=True)
    assert lookup.width == 0

    OneByOne(lookup, {"t": DIM}, bags=bags, combiner="none").check(
        lambda rows: filled_up([[clipped(rows["t", k], max_norm) for k in bag] for bag in bags])
    )


def test_the_vectors_of_a_sequence_may_be_put_together() -> None:
    lookup, dims = composed_lookup(MultiHash(modulus=3, operation="multiply"), sequence=True)

    def vector(rows: Rows, key: int) -> np.ndarray:
        return rows["t_quotient", key // 3] * rows["t_remainder", key % 3]

    OneByOne(lookup, dims, combiner="none").check(
        lambda rows: filled_up([[vector(rows, key) for key in bag] for bag in BAGS])
    )


# Compositions -------------------------------------------------------------------------------------


def composed_lookup(composition: Any, **changes: Any) -> tuple[Lookup, dict[str, int]]:
    """A lookup of table t with the composition, and the dims of its physical tables."""
    composed = compose(TableSpec(name="t", dim=DIM), composition)
    lookup = Lookup(
        feature=0, table="t", dim=DIM, column=2,
        parts=composed.parts, operation=composed.operation, **changes,
    )  # fmt: skip
    return lookup, {table.name: table.dim for table in composed.tables}


@pytest.mark.parametrize("operation", ["add", "multiply", "concatenate"])
@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("combiner", ["mean", "max"])
def test_multi_hash_is_the_explicit_computation_on_two_tables(
    operation: Any, max_norm: float | None, combiner: Any
) -> None:
    modulus = 3
    lookup, dims = composed_lookup(
        MultiHash(modulus=modulus, operation=operation), max_norm=max_norm
    )

    def vector(rows: Rows, key: int) -> np.ndarray:
        parts = rows["t_quotient", key // modulus], rows["t_remainder", key % modulus]
        whole = {
            "add": lambda: parts[0] + parts[1],
            "multiply": lambda: parts[0] * parts[1],
            "concatenate": lambda: np.concatenate(parts),
        }[operation]()
        return clipped(whole, max_norm)

    def pooled_of(rows: Rows) -> np.ndarray:
        return np.array(
            [
                combined([vector(rows, key) for key in bag], [1.0] * len(bag), combiner)
                for bag in BAGS
            ]
        )

    Batched(lookup, dims, combiner=combiner).check(pooled_of)


def test_blocks_lie_side_by_side() -> None:
    lookup, dims = composed_lookup(DynamicDimension(min_counts=(2, 3, 9)))
    names = ("t", "t_block1", "t_block2", "t_block3")

    def pooled_of(rows: Rows) -> np.ndarray:
        vectors = [[np.concatenate([rows[n, key] for n in names]) for key in bag] for bag in BAGS]
        return np.array([combined(bag, [1.0] * len(bag), "sqrtn") for bag in vectors])

    Batched(lookup, dims, combiner="sqrtn").check(pooled_of)


def test_each_occurrence_is_counted_once_in_every_part() -> None:
    lookup, dims = composed_lookup(MultiHash(modulus=10))
    unique = Batched(lookup, dims, bags=[[11, 21], [11]]).prepared.unique

    # Quotients 1 and 2 of the first table, remainder 1 of the second.
    assert sorted(unique.counts.tolist()) == [1, 2, 3]
    assert unique.sizes.sum(axis=0).tolist() == [2, 1]


def test_parts_that_do_not_give_the_lookups_dim_are_refused() -> None:
    halves = (Part(table="a", dim=2), Part(table="b", dim=2))

    with pytest.raises(ValueError, match=r"table 't' has dim 5, its parts have \[2, 2\]"):
        Lookup(feature=0, table="t", dim=5, column=0, parts=halves, operation="concatenate")
    with pytest.raises(ValueError, match="operation None"):
        Lookup(feature=0, table="t", dim=2, column=0, parts=halves)


def test_lookups_that_share_a_physical_table_come_together() -> None:
    def lookup(*tables: str) -> Lookup:
        parts = tuple(Part(table=table, dim=2) for table in tables)
        operation: Any = "add" if parts else None
        return Lookup(feature=0, table="t", dim=2, column=0, parts=parts, operation=operation)

    lookups = [lookup("a", "b"), lookup("c", "d"), lookup("e", "f"), lookup("b", "c"), lookup()]

    assert sorted(lookups_by_tables(lookups)) == [[0, 1, 3], [2], [4]]
