"""The index: which row a key has. Open addressing with linear probing, made for batches.

An entry is 16 bytes: the key and its row plus one; 0 there means that the entry is empty, so every
int64 is a legal key. The home slot of a key is given by the low bits of its mix, because its top
bits are the same for all keys of a bucket, and a shard holds whole buckets. Removal shifts later
entries back, so there are no tombstones and probes stay as short as the load makes them.

`entries` below is int64[capacity, 2] with a capacity that is a power of two. At least one entry
must be empty: probes end there.

What works on one key is inlined and takes arrays: at a call that is not, Numba counts a reference
to each array up and down, which costs more than the probe.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.mixing import BUCKET_BITS, mix64
from embedding.prefetch import prefetch

Int64Array = npt.NDArray[np.int64]

BLOCK = 128  # keys a batch kernel works on at once: their rows fit the first-level cache

_ONE = np.uint64(1)
_BUCKET_SHIFT = np.uint64(64 - BUCKET_BITS)


@njit(cache=True, nogil=True, inline="always")
def home_slot(key: np.int64, mask: np.uint64) -> np.uint64:
    """Return where the search for a key starts; mask is the capacity minus one."""
    return mix64(np.uint64(key)) & mask


@njit(cache=True, nogil=True, inline="always")
def mask_of(entries: Int64Array) -> np.uint64:
    """Return the mask of an index: its capacity minus one."""
    return np.uint64(entries.shape[0]) - _ONE


@njit(cache=True, nogil=True, inline="always")
def find_from(entries: Int64Array, key: np.int64, slot: np.uint64, mask: np.uint64) -> np.int64:
    """Return the row of a key whose home slot is known, or -1."""
    while entries[slot, 1] != 0:
        if entries[slot, 0] == key:
            return entries[slot, 1] - 1
        slot = (slot + _ONE) & mask
    return np.int64(-1)


@njit(cache=True, nogil=True, inline="always")
def find(entries: Int64Array, key: np.int64) -> np.int64:
    """Return the row of one key, or -1."""
    mask = mask_of(entries)
    return find_from(entries, key, home_slot(key, mask), mask)


@njit(cache=True, nogil=True, inline="always")
def insert(entries: Int64Array, key: np.int64, row: np.int64) -> None:
    """Add a key that is not in the index; the caller has made room."""
    mask = mask_of(entries)
    slot = home_slot(key, mask)
    while entries[slot, 1] != 0:
        slot = (slot + _ONE) & mask
    entries[slot, 0] = key
    entries[slot, 1] = row + 1


@njit(cache=True, nogil=True, inline="always")
def remove(entries: Int64Array, key: np.int64) -> np.int64:
    """Remove a key and return the row it had, or -1 where it is absent."""
    mask = mask_of(entries)
    hole = home_slot(key, mask)
    while entries[hole, 1] != 0 and entries[hole, 0] != key:
        hole = (hole + _ONE) & mask
    row = entries[hole, 1] - 1
    if row < 0:
        return row
    # Move back each later entry of the cluster that may stand in the hole: one whose home is not
    # between the hole and itself, cyclically.
    slot = (hole + _ONE) & mask
    while entries[slot, 1] != 0:
        home = home_slot(entries[slot, 0], mask)
        if (slot - home) & mask >= (slot - hole) & mask:
            entries[hole, 0] = entries[slot, 0]
            entries[hole, 1] = entries[slot, 1]
            hole = slot
        slot = (slot + _ONE) & mask
    entries[hole, 0] = 0
    entries[hole, 1] = 0
    return row


@njit(cache=True, nogil=True)
def spread_over_double(entries: Int64Array) -> None:
    """Turn the index in the first half of `entries`, whose second half is empty, into one of all.

    Growth in place: each entry is taken out and inserted anew, beginning after an empty slot.
    An entry never lands beyond its old slot (or that plus the old capacity), so what has not been
    moved yet is never met. One call per doubling now; the loop over `step` is what to cut into
    pieces should a doubling ever take too long at once.
    """
    old_capacity = entries.shape[0] // 2
    first = 0
    while entries[first, 1] != 0:
        first += 1
    for step in range(old_capacity):
        slot = (first + step) & (old_capacity - 1)
        if entries[slot, 1] != 0:
            key, row = entries[slot, 0], entries[slot, 1] - 1
            entries[slot, 0] = 0
            entries[slot, 1] = 0
            insert(entries, key, row)


@njit(cache=True, nogil=True)
def find_batch(entries: Int64Array, keys: Int64Array, rows: Int64Array) -> None:
    """Write the row of each key, or -1, to rows int64[n]."""
    mask = mask_of(entries)
    slots = np.empty(BLOCK, np.uint64)
    for start in range(0, keys.size, BLOCK):
        length = min(BLOCK, keys.size - start)
        prefetch_homes(entries, keys, start, length, slots)
        for i in range(length):
            rows[start + i] = find_from(entries, keys[start + i], slots[i], mask)


@njit(cache=True, nogil=True, inline="always")
def prefetch_homes(
    entries: Int64Array, keys: Int64Array, start: int, length: int, slots: npt.NDArray[np.uint64]
) -> None:
    """Write the home slots of a block of keys to `slots` and ask for their cache lines."""
    mask = mask_of(entries)
    for i in range(length):
        slots[i] = home_slot(keys[start + i], mask)
        prefetch(entries, slots[i], 0)


@njit(cache=True, nogil=True)
def collect(
    entries: Int64Array, first_bucket: int, end_bucket: int, keys: Int64Array, rows: Int64Array
) -> int:
    """Write the keys of buckets [first, end) and their rows, in no order; return how many."""
    count = 0
    for slot in range(entries.shape[0]):
        if entries[slot, 1] != 0:
            bucket = np.int64(mix64(np.uint64(entries[slot, 0])) >> _BUCKET_SHIFT)
            if first_bucket <= bucket < end_bucket:
                keys[count] = entries[slot, 0]
                rows[count] = entries[slot, 1] - 1
                count += 1
    return count
