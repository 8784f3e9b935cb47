"""Rows as columns: how rows leave a table and come into one."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding.optimizers.rule import rule_for
from embedding.spec.table import TableSpec

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TableEntries:
    """Rows as columns.

    Args:
        keys: int64[n].
        frequency: int64[n].
        version: int64[n].
        vectors: float32[n, dim].
        slots: float32[n, sum of the slots' widths], see `OptimizerRule`.
    """

    keys: Int64Array
    frequency: Int64Array
    version: Int64Array
    vectors: Float32Array
    slots: Float32Array

    @staticmethod
    def empty(spec: TableSpec) -> "TableEntries":
        """Return no rows, with the columns of a table."""
        none, dim = np.empty(0, np.int64), spec.dim
        slots = rule_for(spec.optimizer, sparse=True).row_width(dim) - dim
        vectors = np.empty((0, dim), np.float32)
        return TableEntries(none, none, none, vectors, np.empty((0, slots), np.float32))

    def take(self, positions: Int64Array) -> "TableEntries":
        """Copy the rows at some positions, in that order."""
        return TableEntries(
            self.keys[positions],
            self.frequency[positions],
            self.version[positions],
            self.vectors[positions],
            self.slots[positions],
        )

    def joined(self, other: "TableEntries") -> "TableEntries":
        """Copy these rows and then the other ones."""
        return TableEntries(
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.frequency, other.frequency]),
            np.concatenate([self.version, other.version]),
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.slots, other.slots]),
        )


@dataclass(frozen=True, slots=True)
class CounterEntries:
    """Counters as columns, each int64[n]: key, frequency, version."""

    keys: Int64Array
    frequency: Int64Array
    version: Int64Array

    def take(self, positions: Int64Array) -> "CounterEntries":
        """Copy the counters at some positions, in that order."""
        return CounterEntries(
            self.keys[positions], self.frequency[positions], self.version[positions]
        )
