"""What is in a table, for people: its highest rows and how its frequencies are distributed.

Everything takes rows part by part, so that a table of any size can be looked at, in memory or in
files, without a copy of it.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from embedding.entries import TableEntries
from embedding.spec.table import TableSpec

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

RankBy = Literal["frequency", "version", "norm"]

# Where the bins of a histogram start: 0, then the powers of two that an int64 reaches.
BIN_STARTS = np.concatenate([np.zeros(1, np.int64), np.int64(1) << np.arange(63)])
BIN_STARTS.flags.writeable = False

_VALUES_AT_ONCE = 1 << 20


def frequency_histogram(frequency: Int64Array) -> Int64Array:
    """Count frequencies by powers of two.

    Args:
        frequency: int64[n]; below 0 counts as 0.

    Returns:
        int64[64]: how many are 0, 1, 2 to 3, 4 to 7, ...; bin i starts at BIN_STARTS[i].
    """
    counts = np.zeros(BIN_STARTS.size, np.int64)
    for start in range(0, frequency.size, _VALUES_AT_ONCE):
        part = frequency[start : start + _VALUES_AT_ONCE]
        # Compared as integers: a float64 takes 2^53 - 1/2 for the next power.
        bins = np.searchsorted(BIN_STARTS[1:], part, side="right")
        counts += np.bincount(bins, minlength=counts.size)
    return counts


def norms(vectors: npt.NDArray[np.float32]) -> Float64Array:
    """Return the Euclidean norm of each row of float32[n, dim], computed in float64."""
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return np.sqrt(squares, out=squares)


class TopRows:
    """The n highest of the rows that are added, sorted by (value descending, key ascending).

    A norm that is not a number is above all others: such rows should be seen.

    Args:
        spec: of the table that the rows are of.
        n: how many rows are kept, >= 0.
        by: which value; the norm is the Euclidean one of the vector.

    Raises:
        ValueError: n or by is not one of these, or the table does not track what it asks for.
    """

    def __init__(self, spec: TableSpec, n: int, by: RankBy) -> None:
        if n < 0:
            raise ValueError(f"n must be >= 0, got {n}")
        if by not in get_args(RankBy):
            raise ValueError(f"by must be one of {', '.join(get_args(RankBy))}, got {by!r}")
        if by != "norm":
            spec.require_usage(f"to rank rows by {by}")
        self.entries = TableEntries.empty(spec)
        self._n = n
        self._by = by

    def add(self, entries: TableEntries) -> None:
        """Look at more rows; those that are kept are copied."""
        self.entries = self._highest(self.entries.joined(self._highest(entries)))

    def _highest(self, entries: TableEntries) -> TableEntries:
        values = self._values(entries)
        candidates = np.arange(values.size)
        if 0 < self._n < values.size:
            # Partitions and sorts put NaN last, comparisons are false: NaN stays a candidate.
            limit = np.partition(values, values.size - self._n)[values.size - self._n]
            candidates = np.flatnonzero(~(values < limit))
        # ~key falls as the key rises, without overflow; backwards it is the larger value first.
        order = np.lexsort((~entries.keys[candidates], values[candidates]))[::-1]
        return entries.take(candidates[order[: self._n]])

    def _values(self, entries: TableEntries) -> Int64Array | Float64Array:
        if self._by == "norm":
            return norms(entries.vectors)
        return entries.frequency if self._by == "frequency" else entries.version
