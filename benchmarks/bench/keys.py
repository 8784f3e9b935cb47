"""Keys to measure with: the i-th key of a table, and batches of numbers i."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ps.client.deduplicate import Deduplicated, Deduplicator
from ps.routing import Routing

Int64Array = npt.NDArray[np.int64]

EXPONENT = 1.1  # of the Zipf distribution
_ODD = np.int64(-7046029254386353131)  # a bijection of 64 bits that leaves no order in the keys


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured: rows of a table, its dimension, keys in a batch, repeats, seed.

    Rows have a frequency and a version where `track_usage` says so.
    """

    rows: int
    dim: int
    batch: int
    repeats: int
    seed: int
    track_usage: bool = False

    @property
    def row_bytes(self) -> int:
        """The bytes of a row's payload: key, vector, accumulator, and frequency and version."""
        return 8 + 16 * self.track_usage + 2 * 4 * self.dim

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def keys_of(numbers: Int64Array) -> Int64Array:
    """Return the key of each number; other numbers have other keys."""
    return numbers * _ODD


def in_order(first: int, count: int, batch: int) -> list[Int64Array]:
    """Return the numbers from `first` on, in batches; the last one may be shorter."""
    return [
        np.arange(start, min(start + batch, first + count))
        for start in range(first, first + count, batch)
    ]


def uniform(size: Size) -> list[Int64Array]:
    """Return every number below `size.rows` once, in random order, in whole batches."""
    numbers = size.rng().permutation(size.rows)
    whole = len(numbers) // size.batch * size.batch
    return np.split(numbers[:whole], whole // size.batch)


def zipf(size: Size, batches: int) -> list[Int64Array]:
    """Return batches drawn from numbers below `size.rows`: bounded Zipf, ranks permuted."""
    numbers = zipf_numbers(size.rows, batches * size.batch, size.rng())
    return np.split(numbers, batches)


def zipf_numbers(rows: int, count: int, rng: np.random.Generator) -> Int64Array:
    """Draw numbers below `rows`, P(rank k) = k^-1.1 over their sum, by inverting the sum."""
    sums = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -EXPONENT)
    ranks = np.searchsorted(sums, rng.random(count) * sums[-1])
    return rng.permutation(rows)[np.minimum(ranks, rows - 1)]


def deduplicator(dim: int, tables: int = 1) -> Deduplicator:
    """Return what removes duplicates on a worker, for one shard."""
    return Deduplicator([dim] * tables, Routing.even(1))


def deduplicated(numbers: list[Int64Array]) -> list[Deduplicated]:
    """Return each batch as a worker would send it, with numbers in place of keys."""
    deduplicate = deduplicator(1)
    return [deduplicate(batch, np.array([0, batch.size])) for batch in numbers]
