"""Rows that come in any order, collected by groups of buckets until they make a part of a file.

So nothing is sorted, and who wants some buckets of the file reads the parts of their groups only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.lines import copy_row
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

MAX_GROUPS = 64
_LEAST_PART_BYTES = 2 << 20  # that a group is worth
_MOST_PART_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """A full buffer, or what a group has at the end.

    Args:
        numbers: int64[n] each; the first are the keys.
        floats: float32[n, width] each.
        buckets: (first, end) of the group.
    """

    numbers: list[Int64Array]
    floats: list[Float32Array]
    buckets: tuple[int, int]


class BucketGroups:
    """Buffers of some groups.

    Args:
        buckets: (first, end) of all keys that come.
        num_rows: how many about.
        num_numbers: int64 columns, the key among them.
        widths: of the float32 columns.
        max_bytes: of all buffers together.
        take: is given each full buffer, to be read before it returns.
        by_key: whether groups are of buckets; else of the first column itself, and `buckets` are
            the bounds of that.
    """

    def __init__(
        self,
        buckets: tuple[int, int],
        num_rows: int,
        *,
        num_numbers: int,
        widths: Sequence[int],
        max_bytes: int,
        take: Callable[[Group], None],
        by_key: bool = True,
    ) -> None:
        row_bytes = 8 * num_numbers + 4 * sum(widths)
        wanted = min(num_rows * row_bytes // _LEAST_PART_BYTES, MAX_GROUPS, buckets[1] - buckets[0])
        groups = max(1, wanted)
        # So that whoever is at x of n is in group x * groups // n.
        span = buckets[1] - buckets[0]
        self._edges = [buckets[0] - (-span * each // groups) for each in range(groups + 1)]
        at_most = min(max_bytes // groups, _MOST_PART_BYTES) // row_bytes
        self._capacity = max(1, min(at_most, num_rows))
        self._group_of: npt.NDArray[np.uint8] | None = None
        if by_key:
            self._group_of = np.zeros(NUM_BUCKETS, np.uint8)
            for group, (first, end) in enumerate(zip(self._edges, self._edges[1:], strict=False)):
                self._group_of[first:end] = group
        shape = groups, self._capacity
        self._numbers = [np.empty(shape, np.int64) for _ in range(num_numbers)]
        self._floats = [np.empty((*shape, width), np.float32) for width in widths]
        self._filled = np.zeros(groups, np.int64)
        self._take = take

    def add(self, numbers: Sequence[Int64Array], *floats: Float32Array) -> None:
        """Take rows, each with all of its columns.

        Args:
            numbers: int64[n] each; the first are the keys, or what else groups are of.
            floats: float32[n, width] each, one column after another in one array or several.
        """
        keys = numbers[0]
        if self._group_of is None:
            first, end = self._edges[0], self._edges[-1]
            of_all = len(self._edges) - 1
            groups = ((keys - first) * of_all // (end - first)).astype(np.uint8)
        else:
            groups = self._group_of[buckets_of(keys)]
        places = np.empty(keys.size, np.int64)
        start = 0
        while start < keys.size:
            end = _assign(groups, start, self._filled, self._capacity, places)
            for source, target in zip(numbers, self._numbers, strict=True):
                _scatter_numbers(source, start, end, places, target.reshape(-1))
            self._scatter(floats, start, end, places)
            start = end
            for group in np.flatnonzero(self._filled == self._capacity).tolist():
                self._hand_over(group)

    def finish(self) -> None:
        """Give what is left, group by group."""
        for group in np.flatnonzero(self._filled).tolist():
            self._hand_over(group)

    def _scatter(
        self,
        sources: Sequence[Float32Array],
        start: int,
        end: int,
        places: Int64Array,
    ) -> None:
        targets = iter(self._floats)
        for source in sources:
            first = 0
            while first < source.shape[1]:
                target = next(targets)
                width = target.shape[2]
                _scatter_floats(source, first, start, end, places, width, target.reshape(-1))
                first += width

    def _hand_over(self, group: int) -> None:
        count = int(self._filled[group])
        self._take(
            Group(
                [column[group, :count] for column in self._numbers],
                [column[group, :count] for column in self._floats],
                (self._edges[group], self._edges[group + 1]),
            )
        )
        self._filled[group] = 0


@njit(cache=True, nogil=True)
def _assign(
    groups: npt.NDArray[np.uint8],
    start: int,
    filled: Int64Array,
    capacity: int,
    places: Int64Array,
) -> int:
    """Give each row from `start` a place among those of all groups, one group after another.

    Returns:
        the end, or the first one that has no room.
    """
    for i in range(start, groups.size):
        group = groups[i]
        if filled[group] == capacity:
            return i
        places[i] = np.int64(group) * capacity + filled[group]
        filled[group] += 1
    return groups.size


@njit(cache=True, nogil=True)
def _scatter_numbers(
    source: Int64Array,
    start: int,
    end: int,
    places: Int64Array,
    target: Int64Array,
) -> None:
    for i in range(start, end):
        target[places[i]] = source[i]


@njit(cache=True, nogil=True)
def _scatter_floats(
    source: Float32Array,
    first: int,
    start: int,
    end: int,
    places: Int64Array,
    width: int,
    target: Float32Array,
) -> None:
    """Row places[i] of target = source[i, first : first + width], lines where it has whole ones."""
    stride, flat = source.shape[1], source.reshape(-1)
    for i in range(start, end):
        copy_row(flat, i * stride + first, width, target, places[i] * width)
