"""The job of one point of a curve: its specs, its rows, and batches drawn in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.keys import EXPONENT, Int64Array, keys_of
from embedding.kernels.mixing import buckets_of
from embedding.spec.optimizers import Adagrad
from embedding.spec.table import TableSpec
from ps.shard.shard import Shard
from ps.spec import StoreSpec
from worker.data.batch import Bags, Batch
from worker.models import build_model, needed_lookups, num_parameters
from worker.spec import ModelSpec, SparseFeature

_SEED = 5
_FILL = 1 << 17  # keys of an apply that makes rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a job is made of.

    Args:
        rows: resident before the first step, over all tables and shards.
        tables: each with one feature.
        dim: of every table.
        keys: of a sample, over all features.
        shards, workers: processes.
        batch: samples of a local batch.
    """

    rows: int = 1_000_000
    tables: int = 26
    dim: int = 16
    keys: int = 26
    shards: int = 1
    workers: int = 1
    batch: int = 2048

    def __post_init__(self) -> None:
        if self.keys < self.tables:
            raise ValueError(f"{self.tables} tables need as many keys, got {self.keys}")

    @property
    def rows_of_table(self) -> int:
        return max(1, self.rows // self.tables)

    def bag_lengths(self) -> list[int]:
        """Return how many keys a sample has of each feature; they differ by 1 at most."""
        edges = [self.keys * table // self.tables for table in range(self.tables + 1)]
        return [stop - start for start, stop in pairwise(edges)]

    def sparse(self) -> tuple[SparseFeature, ...]:
        names = [f"t{table}" for table in range(self.tables)]
        return tuple(SparseFeature(name=name, column=name, table=name) for name in names)

    def model(self) -> ModelSpec:
        options = {"class": "bench.linear_model:LinearModel"}
        dims = {feature.table: self.dim for feature in self.sparse()}
        return ModelSpec(
            type="custom",
            options=options,
            optimizer=Adagrad(learning_rate=0.01, initial_accumulator=1e-4),
            num_dense=0,
            lookups=needed_lookups("custom", options, self.sparse(), dims),
            seed=_SEED,
        )

    def store(self) -> StoreSpec:
        model = self.model()
        optimizer = Adagrad(learning_rate=0.02, initial_accumulator=1e-8)
        return StoreSpec(
            tables=tuple(
                TableSpec(name=feature.table, dim=self.dim, optimizer=optimizer, seed=number)
                for number, feature in enumerate(self.sparse())
            ),
            dense_size=num_parameters(build_model(model)),
            dense_optimizer=model.optimizer,
            num_shards=self.shards,
        )


def fill(point: Point, shard: Shard) -> None:
    """Make the rows of a shard, by applies of one gradient each.

    In another order than that of their ranks, so that hot rows do not lie side by side.
    """
    own = shard.routing.buckets == shard.index
    for table in shard.tables:
        rng = np.random.default_rng(_SEED)
        ranks = rng.permutation(point.rows_of_table)
        for start in range(0, ranks.size, _FILL):
            keys = keys_of(ranks[start : start + _FILL])
            keys = keys[own[buckets_of(keys)]]
            table.apply(
                keys,
                np.ones(keys.size, np.int64),
                np.full((keys.size, point.dim), 1e-3, np.float32),
                None,
                step=0,
                scale=1.0,
                scalars=(0.02,),
            )


def batches(point: Point, *, worker: int, count: int) -> list[Batch]:
    """Draw batches whose keys have rows: bounded Zipf ranks in every table."""
    rng = np.random.default_rng((_SEED, worker))
    sums = np.cumsum(np.arange(1, point.rows_of_table + 1, dtype=np.float64) ** -EXPONENT)
    return [_batch(point, rng, sums) for _ in range(count)]


def _batch(point: Point, rng: np.random.Generator, sums: np.ndarray) -> Batch:
    return Batch(
        labels=(rng.random(point.batch) < 0.25).astype(np.float32),
        dense=np.empty((point.batch, 0), np.float32),
        sparse=tuple(_bags(point, rng, sums)),
    )


def _bags(point: Point, rng: np.random.Generator, sums: np.ndarray) -> Iterator[Bags]:
    for length in point.bag_lengths():
        drawn = np.searchsorted(sums, rng.random(point.batch * length) * sums[-1])
        ranks: Int64Array = np.minimum(drawn, sums.size - 1).astype(np.int64)
        offsets = None if length == 1 else np.arange(point.batch + 1, dtype=np.int64) * length
        yield Bags(keys_of(ranks), offsets)
