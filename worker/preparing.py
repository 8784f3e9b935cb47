"""From a batch of columns to what a pull and a model need: distinct keys and row positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding.pooling import coefficients
from ps.deduplicate import Deduplicated, Deduplicator
from worker.batch import Batch
from worker.spec import Lookup, SparseFeature


@dataclass(frozen=True, slots=True)
class Bag:
    """One lookup of a batch.

    Args:
        positions: int64[nnz], where each occurrence's row begins in the flat buffer of rows.
        offsets: int64[n + 1], or None where every sample has exactly one key.
        coefficients: float32[nnz], what each occurrence is multiplied by, or None for 1.
        maximum: whether a bag's vectors are pooled by their maximum and not summed.
    """

    positions: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64] | None
    coefficients: npt.NDArray[np.float32] | None
    maximum: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that is ready to be pulled; `bags` are in the order of the model's lookups."""

    labels: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    unique: Deduplicated
    bags: tuple[Bag, ...]

    @property
    def num_samples(self) -> int:
        return len(self.dense)


class Preparer:
    """Lists the keys of a batch table by table and removes duplicates.

    Args:
        tables: names of the tables, in the order of the store.
        sparse: the sparse features, in the order of a batch.
        lookups: the model's lookups.
        deduplicator: of one thread.
    """

    def __init__(
        self,
        *,
        tables: Sequence[str],
        sparse: Sequence[SparseFeature],
        lookups: Sequence[Lookup],
        deduplicator: Deduplicator,
    ) -> None:
        self._sparse = tuple(sparse)
        self._lookups = tuple(lookups)
        self._by_table = [
            [i for i, lookup in enumerate(self._lookups) if lookup.table == name] for name in tables
        ]
        self._deduplicate = deduplicator

    def __call__(self, batch: Batch) -> Prepared:
        """Prepare a batch; the result keeps views of its arrays."""
        parts: list[npt.NDArray[np.int64]] = []
        table_starts = np.zeros(len(self._by_table) + 1, np.int64)
        slices: dict[int, slice] = {}
        total = 0
        for number, lookups in enumerate(self._by_table):
            for i in lookups:
                keys = batch.sparse[self._lookups[i].feature].keys
                parts.append(keys)
                slices[i] = slice(total, total + keys.size)
                total += keys.size
            table_starts[number + 1] = total
        keys = np.concatenate(parts) if parts else np.empty(0, np.int64)
        unique = self._deduplicate(keys, table_starts)
        bags = tuple(
            self._bag(batch, lookup, unique.positions[slices[i]])
            for i, lookup in enumerate(self._lookups)
        )
        return Prepared(batch.labels, batch.dense, unique, bags)

    def _bag(self, batch: Batch, lookup: Lookup, positions: npt.NDArray[np.int64]) -> Bag:
        bags = batch.sparse[lookup.feature]
        combiner = self._sparse[lookup.feature].combiner
        coefs = coefficients(bags.offsets, bags.weights, combiner)
        return Bag(positions, bags.offsets, coefs, maximum=combiner == "max")
