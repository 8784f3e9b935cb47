"""Once per batch: distinct keys of all tables, grouped by shard, and where each key's row will be.

The rows of a batch lie in one flat float32 buffer, shard after shard and, within a shard, table
after table: the order of the messages, so that replies are received in place and gradients sent
from where they were summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import BUCKET_BITS, mix64
from ps.routing import Routing
from runtime.free_list import FreeList


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """The distinct keys of one batch.

    Args:
        keys: int64[u], grouped by shard, then by table.
        counts: uint32[u], occurrences in the batch.
        sizes: int64[shards, tables], distinct keys.
        key_starts: int64[shards + 1], each shard's part of `keys`.
        value_starts: int64[shards + 1], each shard's part of the flat buffer, in elements.
        positions: int64[occurrences], element of the flat buffer where a key's row begins, in the
            order in which the keys were given.
        places: int64[occurrences], where in `keys` each key is, in the same order.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int64]
    key_starts: npt.NDArray[np.int64]
    value_starts: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


class Deduplicator:
    """Removes duplicates batch by batch, with scratch memory that is used again.

    Args:
        dims: embedding dimension of each table.
        routing: by which keys are grouped.

    Not for use by two threads at once, but any may give back.
    """

    def __init__(self, dims: Sequence[int], routing: Routing) -> None:
        self._dims = np.array(dims, np.int64)
        # A copy that can be written: Numba takes longer to recognise arrays that can't.
        self._shard_of = routing.buckets.copy()
        self._num_shards = routing.num_shards
        self._slots = np.zeros(1 << 10, np.int64)
        self._base = 0
        self._int64s = FreeList(np.int64)
        self._uint32s = FreeList(np.uint32)
        self._uint16s = FreeList(np.uint16)

    def __call__(
        self, keys: npt.NDArray[np.int64], table_starts: npt.NDArray[np.int64]
    ) -> Deduplicated:
        """Return the distinct keys of a batch, in arrays for `give_back`.

        Args:
            keys: int64[n], the occurrences of all tables, table after table.
            table_starts: int64[tables + 1], each table's part of `keys`.
        """
        self._make_room(int(np.diff(table_starts).max(initial=0)), keys.size)
        unique_keys = self._int64s.take(keys.size)
        unique_counts = self._uint32s.take(keys.size)
        unique_counts[:] = 0
        inverse = self._int64s.take(keys.size)
        unique_starts = np.zeros(table_starts.size, np.int64)
        _find_unique(
            keys, table_starts, self._slots, self._base,
            unique_keys, unique_counts, inverse, unique_starts,
        )  # fmt: skip
        self._base += int(unique_starts[-1])

        num_unique = int(unique_starts[-1])
        sizes = np.zeros((self._num_shards, self._dims.size), np.int64)
        key_starts = np.zeros(self._num_shards + 1, np.int64)
        value_starts = np.zeros(self._num_shards + 1, np.int64)
        positions = self._int64s.take(keys.size)
        if self._num_shards == 1:
            _keep_together(
                unique_starts, table_starts, self._dims, inverse,
                sizes, key_starts, value_starts, positions,
            )  # fmt: skip
            return Deduplicated(
                unique_keys[:num_unique], unique_counts[:num_unique],
                sizes, key_starts, value_starts, positions, inverse,
            )  # fmt: skip
        grouped_keys = self._int64s.take(num_unique)
        grouped_counts = self._uint32s.take(num_unique)
        places = self._int64s.take(keys.size)
        owner = self._uint16s.take(num_unique)
        value_of = self._int64s.take(num_unique)
        place_of = self._int64s.take(num_unique)
        _group_by_shard(
            unique_keys, unique_counts, unique_starts, self._shard_of, self._dims, inverse,
            grouped_keys, grouped_counts, sizes, key_starts, value_starts, positions, places,
            owner, value_of, place_of,
        )  # fmt: skip
        self._int64s.give(unique_keys, inverse, value_of, place_of)
        self._uint32s.give(unique_counts)
        self._uint16s.give(owner)
        return Deduplicated(
            grouped_keys, grouped_counts, sizes, key_starts, value_starts, positions, places
        )

    def give_back(self, unique: Deduplicated) -> None:
        """Use the arrays of a batch again; nothing may read them any more."""
        self._int64s.give(unique.keys, unique.positions, unique.places)
        self._uint32s.give(unique.counts)

    def _make_room(self, largest: int, occurrences: int) -> None:
        wanted = 1 << max(10, (2 * largest).bit_length())
        if self._slots.size < wanted or self._base > 2**62 - occurrences:
            self._slots = np.zeros(max(wanted, self._slots.size), np.int64)
            self._base = 0


@njit(cache=True, nogil=True)
def _find_unique(  # type: ignore[no-untyped-def]
    keys, table_starts, slots, base,
    unique_keys, unique_counts, inverse, unique_starts,
):  # fmt: skip
    """Number the distinct keys of each table in the order of their first appearance.

    slots: int64[power of two]; holds base + number + 1 of a key. Numbers only grow, so what an
    earlier table or batch left counts as empty and nothing is ever cleared.
    """
    mask = np.uint64(slots.size - 1)
    found = np.int64(0)
    for t in range(table_starts.size - 1):
        empty = base + found
        for i in range(table_starts[t], table_starts[t + 1]):
            key = keys[i]
            slot = np.int64(mix64(np.uint64(key)) & mask)
            while slots[slot] > empty and unique_keys[slots[slot] - 1 - base] != key:
                slot = np.int64(np.uint64(slot + 1) & mask)
            if slots[slot] <= empty:
                unique_keys[found] = key
                found += 1
                slots[slot] = base + found
            number = slots[slot] - 1 - base
            unique_counts[number] += np.uint32(1)
            inverse[i] = number
        unique_starts[t + 1] = found


@njit(cache=True, nogil=True)
def _group_by_shard(  # type: ignore[no-untyped-def]
    unique_keys, unique_counts, unique_starts, routing, dims, inverse,
    keys, counts, sizes, key_starts, value_starts, positions, places,
    owner, value_of, place_of,
):  # fmt: skip
    """Write what `Deduplicated` holds; the last three, of a value for each key, are scratch."""
    num_shards, num_tables = sizes.shape
    shift = np.uint64(64 - BUCKET_BITS)
    for t in range(num_tables):
        for u in range(unique_starts[t], unique_starts[t + 1]):
            owner[u] = routing[mix64(np.uint64(unique_keys[u])) >> shift]
            sizes[owner[u], t] += 1

    next_key = np.empty((num_shards, num_tables), np.int64)
    next_value = np.empty((num_shards, num_tables), np.int64)
    key = value = np.int64(0)
    for s in range(num_shards):
        for t in range(num_tables):
            next_key[s, t] = key
            next_value[s, t] = value
            key += sizes[s, t]
            value += sizes[s, t] * dims[t]
        key_starts[s + 1] = key
        value_starts[s + 1] = value

    for t in range(num_tables):
        for u in range(unique_starts[t], unique_starts[t + 1]):
            s = owner[u]
            place = next_key[s, t]
            next_key[s, t] = place + 1
            place_of[u] = place
            keys[place] = unique_keys[u]
            counts[place] = unique_counts[u]
            value_of[u] = next_value[s, t]
            next_value[s, t] += dims[t]
    for i in range(inverse.size):
        positions[i] = value_of[inverse[i]]
        places[i] = place_of[inverse[i]]


@njit(cache=True, nogil=True)
def _keep_together(  # type: ignore[no-untyped-def]
    unique_starts, table_starts, dims, inverse, sizes, key_starts, value_starts, positions
):
    """As `_group_by_shard` for one shard: keys stay where they are, numbers are places."""
    value = np.int64(0)
    for t in range(dims.size):
        sizes[0, t] = unique_starts[t + 1] - unique_starts[t]
        first = value - unique_starts[t] * dims[t]
        for i in range(table_starts[t], table_starts[t + 1]):
            positions[i] = first + inverse[i] * dims[t]
        value += sizes[0, t] * dims[t]
    key_starts[1], value_starts[1] = unique_starts[-1], value


@njit(cache=True, nogil=True)
def _copy_admitted(values, admitted, sizes, dims, out):  # type: ignore[no-untyped-def]
    source = np.int64(0)
    target = np.int64(0)
    key = np.int64(0)
    for t in range(sizes.size):
        dim = dims[t]
        for _ in range(sizes[t]):
            if admitted[key]:
                out[target : target + dim] = values[source : source + dim]
                target += dim
            source += dim
            key += 1
    return target


def keep_admitted(
    gradients: npt.NDArray[np.float32],
    admitted: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.int64],
    dims: npt.NDArray[np.int64],
    *,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the gradient rows of the admitted keys of one shard; a view where that is all.

    Args:
        gradients: float32, one row a key, table after table.
        admitted: uint8[keys].
        sizes, dims: int64[tables], keys and dimension.
        out: as large as `gradients`, where they are copied to; None: a new array.
    """
    if admitted.all():
        return gradients
    out = np.empty_like(gradients) if out is None else out
    return out[: _copy_admitted(gradients, admitted, sizes, dims, out)]
