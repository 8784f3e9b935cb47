"""From a batch of columns to what a pull and a model need: distinct keys and row positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding.pooling import coefficients
from embedding.table.key_maps import map_keys
from ps.client.deduplicate import Deduplicated, Deduplicator
from runtime.free_list import FreeList
from worker.data.batch import Batch
from worker.spec import Lookup, SparseFeature


@dataclass(frozen=True, slots=True)
class Bag:
    """One lookup of a batch.

    Args:
        positions: for each part of the lookup int64[nnz], where each occurrence's row begins in
            the flat buffer of rows.
        offsets: int64[n + 1], or None where every sample has exactly one key.
        coefficients: float32[nnz], what each occurrence is multiplied by, or None for 1.
        maximum: whether a bag's vectors are pooled by their maximum and not summed.
        places: for each part int64[nnz], where in the batch's distinct keys each occurrence's key
            is; only where rows are still to be chosen by their admitted bits, see `choosing`.
    """

    positions: tuple[npt.NDArray[np.int64], ...]
    offsets: npt.NDArray[np.int64] | None
    coefficients: npt.NDArray[np.float32] | None
    maximum: bool = False
    places: tuple[npt.NDArray[np.int64], ...] = ()


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
        self._parts = [lookup.physical for lookup in self._lookups]
        # For each table the lookups that have it as a part, and the number of the part.
        self._by_table = [
            [
                (i, number)
                for i, lookup in enumerate(self._lookups)
                for number, part in enumerate(self._parts[i])
                if part.table == name
            ]
            for name in tables
        ]
        self._deduplicate = deduplicator
        self._keys = FreeList(np.int64)

    def __call__(self, batch: Batch) -> Prepared:
        """Prepare a batch; the result keeps views of its arrays."""
        parts: list[npt.NDArray[np.int64]] = []
        table_starts = np.zeros(len(self._by_table) + 1, np.int64)
        slices: dict[tuple[int, int], slice] = {}
        total = 0
        for table, users in enumerate(self._by_table):
            for i, number in users:
                of_feature = batch.sparse[self._lookups[i].feature]
                keys = map_keys(self._parts[i][number], of_feature.keys)
                parts.append(keys)
                slices[i, number] = slice(total, total + keys.size)
                total += keys.size
            table_starts[table + 1] = total
        keys = self._keys.take(total)
        if parts:
            np.concatenate(parts, out=keys)
        unique = self._deduplicate(keys, table_starts)
        self._keys.give(keys)
        bags = tuple(
            self._bag(batch, i, unique, [slices[i, n] for n in range(len(parts_of))])
            for i, parts_of in enumerate(self._parts)
        )
        return Prepared(batch.labels, batch.dense, unique, bags)

    def give_back(self, prepared: Prepared) -> None:
        """Use the arrays of a batch again; nothing may read them any more, its bags included."""
        self._deduplicate.give_back(prepared.unique)

    def _bag(self, batch: Batch, number: int, unique: Deduplicated, parts: Sequence[slice]) -> Bag:
        lookup = self._lookups[number]
        bags = batch.sparse[lookup.feature]
        combiner = self._sparse[lookup.feature].combiner
        select = lookup.operation == "select"
        return Bag(
            tuple(unique.positions[part] for part in parts),
            bags.offsets,
            coefficients(bags.offsets, bags.weights, combiner),
            maximum=combiner == "max",
            places=tuple(unique.places[part] for part in parts) if select else (),
        )
