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
from worker.data.segments import Segments
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
    """A batch that is ready to be pulled.

    Args:
        labels, dense, weights, segments, groups: those of the batch.
        unique: its distinct keys.
        bags: in the order of the model's lookups.
        weighing: uint8[u], the distinct keys that a sample of a weight above 0 has; None: all.
    """

    labels: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    unique: Deduplicated
    bags: tuple[Bag, ...]
    weights: npt.NDArray[np.float32] | None = None
    weighing: npt.NDArray[np.uint8] | None = None
    segments: Segments | None = None
    groups: npt.NDArray[np.int64] | None = None

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
        weights, weighing = batch.weights, None
        if weights is not None and not weights.all():
            weighing = self._weighing(batch, weights > 0, unique)
        return Prepared(
            batch.labels, batch.dense, unique, bags, weights, weighing, batch.segments, batch.groups
        )

    def give_back(self, prepared: Prepared) -> None:
        """Use the arrays of a batch again; nothing may read them any more, its bags included."""
        self._deduplicate.give_back(prepared.unique)

    def _weighing(
        self, batch: Batch, weighs: npt.NDArray[np.bool_], unique: Deduplicated
    ) -> npt.NDArray[np.uint8]:
        """Return which distinct keys a sample that weighs something has, uint8[u]."""
        # In the order in which the keys were listed.
        lookups = [self._lookups[i] for users in self._by_table for i, _ in users]
        of_keys = [of_occurrences(weighs, batch.sparse[each.feature].offsets) for each in lookups]
        found = np.zeros(unique.keys.size, np.uint8)
        if of_keys:
            found[unique.places[np.concatenate(of_keys)]] = 1
        return found

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


def of_occurrences(
    of_samples: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.bool_]:
    """Return for each occurrence of a lookup what is said of its sample, bool[nnz]."""
    return of_samples if offsets is None else np.repeat(of_samples, np.diff(offsets))
