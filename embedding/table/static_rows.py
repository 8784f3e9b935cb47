"""Static rows: what new rows of another table start with, see `spec.WarmStart`."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from embedding.spec.table import WarmStart
from embedding.table.key_maps import static_keys
from embedding.table.rows import Rows

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


class Table(Protocol):
    """What is needed of the table that holds the static rows."""

    def pull(
        self, keys: Int64Array, counts: None, values: Float32Array, admitted: UInt8Array, /
    ) -> None: ...


class Starts(NamedTuple):
    """Keys that will get a row, as numbers in a batch, int64[m], and their float32[m, dim]."""

    made: Int64Array
    vectors: Float32Array


class StaticRows:
    """Reads the static rows that keys share until they have rows of their own.

    Args:
        table: that holds them.
        warm_start: of the other table, whose keys are asked for.
        dim: width of both tables' vectors.
    """

    def __init__(self, table: Table, warm_start: WarmStart, dim: int) -> None:
        self._table = table
        self._rows_per_bucket = warm_start.rows_per_bucket
        self._dim = dim

    def fill(
        self, rows: Rows, keys: Int64Array, values: Float32Array, admitted: UInt8Array
    ) -> None:
        """Write the static row of each key that is admitted and has no row, in a pull."""
        new = np.flatnonzero((rows.find(keys) < 0) & (admitted != 0))
        values[new] = self._vectors(keys[new])

    def starts(self, rows: Rows, keys: Int64Array, has_gradient: UInt8Array) -> Starts:
        """Return what the rows start with that an apply will make.

        They are vectors from before the step, as a pull has shown them: a step is applied to the
        table of static rows after the other one.

        Args:
            has_gradient: uint8[n]; empty: 1 for each key.
        """
        missing = rows.find(keys) < 0
        made = np.flatnonzero(missing & (has_gradient != 0) if has_gradient.size else missing)
        return Starts(made, self._vectors(keys[made]))

    def _vectors(self, keys: Int64Array) -> Float32Array:
        vectors = np.empty((keys.size, self._dim), np.float32)
        static = static_keys(keys, self._rows_per_bucket)
        self._table.pull(static, None, vectors, np.empty(keys.size, np.uint8))
        return vectors
