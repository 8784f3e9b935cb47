"""The index: which row a key has. Open addressing with linear probing, made for batches.

An entry is 16 bytes: the key and its row plus one; 0 there means that the entry is empty, so every
int64 is a legal key. The home slot of a key is given by the bits of its mix that follow the
bucket's, because a shard holds whole buckets. Removal shifts later entries back, so there are no
tombstones and probes stay as short as the load makes them.

`entries` below is int64[capacity, 2] with a capacity that is a power of two. At least one entry
must be empty: probes end there.

**Growth in small pieces.** The capacity doubles in place, and the entries move to their new homes
from the last to the first, some at a time. Home slots are the *leading* bits, so a doubling takes
slot s to 2s or 2s + 1: what has moved lies above what has not. `split` says how far it went: a key
whose home in the smaller index is below it has not moved yet. Each key has one home at any time,
so a search is the same during a doubling as before and after it.

What works on one key is inlined and takes arrays: at a call that is not, Numba counts a reference
to each array up and down, which costs more than the probe.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.mixing import BUCKET_BITS, bucket_of, mix64
from embedding.prefetch import prefetch

Int64Array = npt.NDArray[np.int64]

BLOCK = 128  # keys a batch kernel works on at once: their rows fit the first-level cache

_ONE = np.uint64(1)
_BUCKET_BITS = np.uint64(BUCKET_BITS)
_PIECE = 4096  # slots that are emptied before their entries are inserted anew


class Geometry(NamedTuple):
    """Where home slots are; the same for all keys of a batch.

    Args:
        shift: what turns a mix without its bucket's bits into a slot.
        mask: the capacity minus one.
        split: home slots of half the capacity from here on have moved; 0: all have.
    """

    shift: np.uint64
    mask: np.uint64
    split: np.uint64


@njit(cache=True, nogil=True, inline="always")
def geometry_of(entries: Int64Array, split: np.int64) -> Geometry:
    """Return the geometry of an index that is doubled down to `split`."""
    shift = np.uint64(64)
    capacity = np.uint64(entries.shape[0])
    while capacity > _ONE:
        capacity >>= _ONE
        shift -= _ONE
    return Geometry(shift, np.uint64(entries.shape[0]) - _ONE, np.uint64(split))


@njit(cache=True, nogil=True, inline="always")
def home_slot(key: np.int64, geometry: Geometry) -> np.uint64:
    """Return where the search for a key starts."""
    slot = (mix64(np.uint64(key)) << _BUCKET_BITS) >> geometry.shift
    half = slot >> _ONE
    return half if half < geometry.split else slot


@njit(cache=True, nogil=True, inline="always")
def probe(entries: Int64Array, key: np.int64, slot: np.uint64, mask: np.uint64) -> np.uint64:
    """Return where a key is, or else the empty slot where it belongs, searching from a slot on."""
    while entries[slot, 1] != 0 and entries[slot, 0] != key:
        slot = (slot + _ONE) & mask
    return slot


@njit(cache=True, nogil=True, inline="always")
def find(entries: Int64Array, geometry: Geometry, key: np.int64) -> np.int64:
    """Return the row of one key, or -1."""
    return entries[probe(entries, key, home_slot(key, geometry), geometry.mask), 1] - 1


@njit(cache=True, nogil=True, inline="always")
def insert(entries: Int64Array, geometry: Geometry, key: np.int64, row: np.int64) -> None:
    """Add a key that is not in the index; the caller has made room."""
    slot = home_slot(key, geometry)
    while entries[slot, 1] != 0:
        slot = (slot + _ONE) & geometry.mask
    entries[slot, 0] = key
    entries[slot, 1] = row + 1


@njit(cache=True, nogil=True, inline="always")
def remove(entries: Int64Array, geometry: Geometry, key: np.int64) -> np.int64:
    """Remove a key and return the row it had, or -1 where it is absent."""
    mask = geometry.mask
    hole = probe(entries, key, home_slot(key, geometry), mask)
    row = entries[hole, 1] - 1
    if row < 0:
        return row
    # Move back each later entry of the cluster that may stand in the hole: one whose home is not
    # between the hole and itself, cyclically.
    slot = (hole + _ONE) & mask
    while entries[slot, 1] != 0:
        home = home_slot(entries[slot, 0], geometry)
        if (slot - home) & mask >= (slot - hole) & mask:
            entries[hole, 0] = entries[slot, 0]
            entries[hole, 1] = entries[slot, 1]
            hole = slot
        slot = (slot + _ONE) & mask
    entries[hole, 0] = 0
    entries[hole, 1] = 0
    return row


@njit(cache=True, nogil=True)
def begin_doubling(entries: Int64Array) -> int:
    """Make an index of twice the capacity of the one in the first half; the second is empty.

    Returns:
        the split of the doubled index, in which nothing has moved yet but what stood at the start
        because the end was full.
    """
    split = entries.shape[0] // 2
    _insert_anew(entries, geometry_of(entries, split), 0, 0)
    return split


@njit(cache=True, nogil=True)
def continue_doubling(entries: Int64Array, split: int, num_slots: int) -> int:
    """Move the entries of at least so many slots to their new homes; return the new split."""
    end = max(split - num_slots, 0)
    while split > end:
        first = max(split - _PIECE, end)
        _insert_anew(entries, geometry_of(entries, first), first, split)
        split = first
    return split


@njit(cache=True, nogil=True)
def _insert_anew(entries: Int64Array, geometry: Geometry, first: int, end: int) -> None:
    """Take out the entries of slots [first, end) and of the cluster at the end; insert them.

    Taking the rest of a cluster leaves every other entry of it within reach, and nothing whose
    home is in these slots stands anywhere else.
    """
    capacity = entries.shape[0]
    stop = end
    while stop - first < capacity and entries[stop & (capacity - 1), 1] != 0:
        stop += 1
    taken = np.empty((stop - first, 2), np.int64)
    count = 0
    for position in range(first, stop):
        slot = position & (capacity - 1)
        if entries[slot, 1] != 0:
            taken[count, 0] = entries[slot, 0]
            taken[count, 1] = entries[slot, 1]
            count += 1
            entries[slot, 0] = 0
            entries[slot, 1] = 0
    for i in range(count):
        insert(entries, geometry, taken[i, 0], taken[i, 1] - 1)


@njit(cache=True, nogil=True)
def find_batch(entries: Int64Array, split: int, keys: Int64Array, rows: Int64Array) -> None:
    """Write the row of each key, or -1, to rows int64[n]."""
    geometry = geometry_of(entries, split)
    slots = np.empty(BLOCK, np.uint64)
    for start in range(0, keys.size, BLOCK):
        length = min(BLOCK, keys.size - start)
        prefetch_homes(entries, geometry, keys, start, length, slots)
        for i in range(length):
            slot = probe(entries, keys[start + i], slots[i], geometry.mask)
            rows[start + i] = entries[slot, 1] - 1


@njit(cache=True, nogil=True, inline="always")
def prefetch_homes(
    entries: Int64Array,
    geometry: Geometry,
    keys: Int64Array,
    start: int,
    length: int,
    slots: npt.NDArray[np.uint64],
) -> None:
    """Write the home slots of a block of keys to `slots` and ask for their cache lines."""
    for i in range(length):
        slots[i] = home_slot(keys[start + i], geometry)
        prefetch(entries, slots[i], 0)


@njit(cache=True, nogil=True)
def collect(
    entries: Int64Array, first_bucket: int, end_bucket: int, keys: Int64Array, rows: Int64Array
) -> int:
    """Write the keys of buckets [first, end) and their rows, in no order; return how many."""
    count = 0
    for slot in range(entries.shape[0]):
        if entries[slot, 1] != 0:
            bucket = bucket_of(entries[slot, 0])
            if first_bucket <= bucket < end_bucket:
                keys[count] = entries[slot, 0]
                rows[count] = entries[slot, 1] - 1
                count += 1
    return count
