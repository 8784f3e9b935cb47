"""A counting Bloom filter of keys without a row: fixed memory, and counts that are never low.

Every bucket of the table has a block of counters of its own, so that what a filter says of a key
depends on the keys of its bucket alone, whichever shard holds it. A block has as many segments as
there are hashes, and a key one counter in each, so no two hashes of a key ever meet. The count of
a key is the least of its counters; adding saturates. Sums and maxima do not depend on their order.

Source: Fan et al. 2000 (counting filters); sizes as in DeepRec's CBFFilter.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from embedding.kernels.mixing import BUCKET_BITS, NUM_BUCKETS, mix64
from embedding.spec.admission import BloomAdmission
from embedding.table.freezing import CHANGED, FROZEN, LIVE, flags_of, freeze_flags
from embedding.table.frozen_blocks import FrozenBlocks, save_blocks, save_line
from embedding.table.reservation import reserve

Int64Array = npt.NDArray[np.int64]

MIN_COUNTERS = 64  # of a block: a cache line of the narrowest ones

_WRITTEN = np.uint8(LIVE | CHANGED)
_BUCKET_SHIFT = np.uint64(64 - BUCKET_BITS)
_32 = np.uint64(32)


class BloomArrays(NamedTuple):
    """What kernels take of a filter.

    Args:
        counters: uint8, 16, 32 or 64[4096, counters of a block]; without a filter uint8[0, 1].
        flags: uint8[4096] of the blocks, see `freezing`; 0 where a block holds nothing.
        hashes: counters of a key.
    """

    counters: npt.NDArray[Any]
    flags: npt.NDArray[np.uint8]
    hashes: int


NO_BLOOM = BloomArrays(np.zeros((0, 1), np.uint8), np.zeros(0, np.uint8), 1)


@dataclass(frozen=True, slots=True)
class BloomBlocks:
    """Blocks of a filter.

    Args:
        buckets: int64[n], ascending.
        counters: uint8, 16, 32 or 64[n, counters of a block].
    """

    buckets: Int64Array
    counters: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class BloomSize:
    """Counters of the block of a bucket, and hashes: counters of a key."""

    counters: int
    hashes: int

    @staticmethod
    def of(rule: BloomAdmission) -> "BloomSize":
        """Size every block for the keys that a bucket has, rarely more.

        ceil(|ln p| / (ln 2)^2 n) counters and ceil(|log2 p|) hashes, as DeepRec has them, for
        n = mean + 3 sqrt(mean) + 1 keys, with mean = max_elements / 4096; rounded up to equal
        segments.
        """
        p, mean = rule.false_positive_probability, rule.max_elements / NUM_BUCKETS
        keys = math.ceil(mean + 3 * math.sqrt(mean) + 1)
        hashes = math.ceil(-math.log2(p))
        counters = max(MIN_COUNTERS, math.ceil(-math.log(p) / math.log(2) ** 2 * keys))
        return BloomSize(math.ceil(counters / hashes) * hashes, hashes)


def reserved_bytes(rule: BloomAdmission) -> int:
    """Return how much address space a filter takes."""
    return NUM_BUCKETS * BloomSize.of(rule).counters * rule.counter_bits // 8


class BloomFilter:
    """Counts of keys by bucket.

    Raises:
        MemoryError: there is no address space for the counters.
    """

    def __init__(self, rule: BloomAdmission) -> None:
        size = BloomSize.of(rule)
        try:
            counters = reserve(NUM_BUCKETS, size.counters, f"uint{rule.counter_bits}")
        except MemoryError as error:
            raise MemoryError(
                f"a Bloom filter of max_elements {rule.max_elements}: {error}; or lower"
                " max_elements"
            ) from error
        self.arrays = BloomArrays(counters, flags_of(NUM_BUCKETS), size.hashes)
        self._limit = largest_count(rule.counter_bits)
        self._frozen: FrozenBlocks | None = None

    def add(self, keys: Int64Array, counts: Int64Array) -> None:
        """Add to the counts of keys."""
        self._before_change_of(keys)
        _add(self.arrays, keys, counts, self._limit)

    def raise_to(self, keys: Int64Array, counts: Int64Array) -> None:
        """Make the count of each key at least that."""
        self._before_change_of(keys)
        _raise(self.arrays, keys, counts, self._limit)

    def count(self, keys: Int64Array) -> Int64Array:
        """Return the count of each key, int64[n]: how often it was added, or more."""
        counts = np.empty(keys.size, np.int64)
        _count(self.arrays, keys, counts)
        return counts

    def export(self, buckets: tuple[int, int]) -> BloomBlocks:
        """Copy the blocks of buckets [first, end) that were ever written."""
        first, end = buckets
        found = first + np.flatnonzero(self.arrays.flags[first:end])
        return BloomBlocks(found, self.arrays.counters[found])

    def import_(self, blocks: BloomBlocks) -> None:
        """Overwrite blocks; counts beyond what these counters hold become the largest one.

        Raises:
            ValueError: the blocks have another size, or a bucket does not exist.
        """
        counters, buckets = self.arrays.counters, blocks.buckets
        expected = (buckets.size, counters.shape[1])
        if blocks.counters.shape != expected or blocks.counters.dtype.kind != "u":
            got = f"{blocks.counters.dtype}{list(blocks.counters.shape)}"
            raise ValueError(f"Bloom blocks must be unsigned{list(expected)}, got {got}")
        if buckets.size and not 0 <= buckets.min() <= buckets.max() < NUM_BUCKETS:
            raise ValueError(f"Bloom blocks are of buckets 0 to {NUM_BUCKETS - 1}, got {buckets}")
        limit = min(self._limit, int(np.iinfo(blocks.counters.dtype).max))
        clipped = np.minimum(blocks.counters, blocks.counters.dtype.type(limit))
        if (frozen := self._being_read()) is not None:
            save_blocks(
                counters, self.arrays.flags, buckets, frozen.places, frozen.saved, frozen.num_saved
            )
        counters[buckets] = clipped.astype(counters.dtype)
        self.arrays.flags[buckets] |= _WRITTEN

    def clear(self, buckets: Int64Array) -> None:
        """Forget all counts of some buckets; nothing of them may be frozen."""
        written = buckets[self.arrays.flags[buckets] != 0]
        self.arrays.counters[written] = 0
        self.arrays.flags[written] = 0

    def freeze(
        self, *, changed_only: bool, own: npt.NDArray[np.uint8] | None = None
    ) -> FrozenBlocks:
        """Freeze all blocks, or those that changed since the last time, see `Rows.freeze`."""
        if self._frozen is not None:
            self._frozen.close()
        flags = self.arrays.flags
        count = freeze_flags(flags, NUM_BUCKETS, changed_only=changed_only)
        if own is not None:
            flags[:NUM_BUCKETS][own == 0] &= np.uint8(0xFF ^ FROZEN)
            count = int(np.count_nonzero(flags & FROZEN))
        self._frozen = FrozenBlocks(self.arrays.counters, flags, count)
        return self._frozen

    def _before_change_of(self, keys: Int64Array) -> None:
        """Save what is frozen of the counters of keys, which are about to be changed."""
        if (frozen := self._being_read()) is not None:
            _save(self.arrays, keys, frozen.places, frozen.saved, frozen.num_saved)

    def _being_read(self) -> FrozenBlocks | None:
        """Return what is frozen and not read yet, if anything is."""
        frozen = self._frozen
        return frozen if frozen is not None and frozen.num_left > 0 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that were written, and of those that were saved."""
        saved = 0 if self._frozen is None else self._frozen.nbytes
        blocks = int(np.count_nonzero(self.arrays.flags))
        return blocks * self.arrays.counters[:1].nbytes + saved


def largest_count(counter_bits: int) -> int:
    """Return where counters of this width saturate; frequencies are int64."""
    return 2 ** min(counter_bits, 63) - 1


@njit(cache=True, nogil=True, inline="always")
def _place(mixed: np.uint64, number: int, segment: np.uint64) -> np.int64:
    """Return the counter that hash `number` gives to a key within a block."""
    draw = mix64(mixed + np.uint64(number)) >> _32
    return np.int64(np.uint64(number) * segment + ((draw * segment) >> _32))


@njit(cache=True, nogil=True, inline="always")
def bloom_count(counters: npt.NDArray[Any], hashes: int, key: np.int64) -> np.int64:
    """Return the count of a key."""
    mixed = mix64(np.uint64(key))
    bucket = mixed >> _BUCKET_SHIFT
    segment = np.uint64(counters.shape[1] // hashes)
    least = np.int64(counters[bucket, _place(mixed, 0, segment)])
    for number in range(1, hashes):
        least = min(least, np.int64(counters[bucket, _place(mixed, number, segment)]))
    return least


@njit(cache=True, nogil=True)
def _count(bloom: BloomArrays, keys: Int64Array, counts: Int64Array) -> None:
    counters, hashes = bloom.counters, bloom.hashes
    for i in range(keys.size):
        counts[i] = bloom_count(counters, hashes, keys[i])


@njit(cache=True, nogil=True)
def _save(
    bloom: BloomArrays,
    keys: Int64Array,
    places: npt.NDArray[np.int32],
    saved: npt.NDArray[Any],
    num_saved: Int64Array,
) -> None:
    """Save the lines of the counters of keys where they are frozen, see `FrozenBlocks`."""
    counters, flags, hashes = bloom.counters, bloom.flags, bloom.hashes
    segment = np.uint64(counters.shape[1] // hashes)
    for i in range(keys.size):
        mixed = mix64(np.uint64(keys[i]))
        bucket = np.int64(mixed >> _BUCKET_SHIFT)
        if flags[bucket] & FROZEN != 0:
            for number in range(hashes):
                place = _place(mixed, number, segment)
                save_line(counters, bucket, place, places, saved, num_saved)


@njit(cache=True, nogil=True)
def _add(bloom: BloomArrays, keys: Int64Array, counts: Int64Array, limit: np.int64) -> None:
    counters, flags, hashes = bloom.counters, bloom.flags, bloom.hashes
    segment = np.uint64(counters.shape[1] // hashes)
    for i in range(keys.size):
        mixed = mix64(np.uint64(keys[i]))
        bucket = mixed >> _BUCKET_SHIFT
        flags[bucket] |= _WRITTEN
        for number in range(hashes):
            place = _place(mixed, number, segment)
            value = np.int64(counters[bucket, place])
            counters[bucket, place] = value + counts[i] if counts[i] < limit - value else limit


@njit(cache=True, nogil=True)
def _raise(bloom: BloomArrays, keys: Int64Array, counts: Int64Array, limit: np.int64) -> None:
    counters, flags, hashes = bloom.counters, bloom.flags, bloom.hashes
    segment = np.uint64(counters.shape[1] // hashes)
    for i in range(keys.size):
        mixed = mix64(np.uint64(keys[i]))
        bucket = mixed >> _BUCKET_SHIFT
        flags[bucket] |= _WRITTEN
        for number in range(hashes):
            place = _place(mixed, number, segment)
            value = np.int64(counters[bucket, place])
            counters[bucket, place] = max(value, min(counts[i], limit))
