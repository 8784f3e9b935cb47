"""Which shard has which buckets of the tables, and which blocks of the dense parameters."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from embedding.kernels.mixing import NUM_BUCKETS

# Parameters in a dense block. Fixed, so that a model is cut alike for any number of shards.
BLOCK_SIZE = 1024


def num_blocks(dense_size: int) -> int:
    """Return how many blocks dense parameters have; the last one is padded with zeros."""
    return math.ceil(dense_size / BLOCK_SIZE)


@dataclass(frozen=True, eq=False)
class Routing:
    """Every bucket and every dense block has one shard; a shard may have none of them.

    Whoever slices a batch, a model or a checkpoint for the shards goes by one of these. Messages
    carry its version, by which a shard knows what was sliced by another one.

    Args:
        version: 0 for what a job starts with, raised with every change.
        num_shards: how many shards there are.
        dense_size: number of dense parameters.
        buckets: uint16[4096], the shard of each bucket; kept as a copy that nobody can write.
        blocks: uint16[blocks], the shard of each dense block; as `buckets`, but those of a shard
            lie side by side, so that its part of a dense vector is one slice.

    Raises:
        ValueError: these don't go together.
    """

    version: int
    num_shards: int
    dense_size: int
    buckets: npt.NDArray[np.uint16]
    blocks: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        if self.version < 0:
            raise ValueError(f"version must be >= 0, got {self.version}")
        check_sizes(self.num_shards, self.dense_size)
        buckets = _shards("buckets", self.buckets, NUM_BUCKETS, self.num_shards)
        blocks = _shards("blocks", self.blocks, num_blocks(self.dense_size), self.num_shards)
        heads = blocks[_heads(blocks)]
        if np.unique(heads).size < heads.size:
            raise ValueError("blocks of one shard must lie side by side")
        object.__setattr__(self, "buckets", buckets)
        object.__setattr__(self, "blocks", blocks)

    @staticmethod
    def even(num_shards: int, dense_size: int = 0) -> "Routing":
        """Return version 0: equal ranges of buckets and of blocks, in the order of the shards."""
        check_sizes(num_shards, dense_size)
        return Routing(
            version=0,
            num_shards=num_shards,
            dense_size=dense_size,
            buckets=(np.arange(NUM_BUCKETS) * num_shards // NUM_BUCKETS).astype(np.uint16),
            blocks=_even_blocks(num_shards, dense_size),
        )

    def spread_over(self, num_shards: int) -> "Routing":
        """Return the next version, with equally many buckets, or one more, on each of some shards.

        Of all such it moves the fewest buckets, and so the fewest bytes, as the mix of the keys
        gives buckets equal shares of the rows: shards that stay give only what they have too much.
        Each gives its last ones, and takers take what lies side by side. Shards keep their
        numbers; those beyond the last one are new, or go. Of dense blocks as many stay as can,
        where those of each shard lie side by side.
        """
        check_sizes(num_shards, self.dense_size)
        have = np.bincount(self.buckets, minlength=max(num_shards, self.num_shards))[:num_shards]
        share, rest = divmod(NUM_BUCKETS, num_shards)
        wanted = np.full(num_shards, share)
        # One more for those that have most: it stays where it is.
        wanted[np.argsort(-have, kind="stable")[:rest]] += 1
        buckets = self.buckets.copy()
        free = [np.flatnonzero(buckets >= num_shards)]
        for shard in np.flatnonzero(have > wanted).tolist():
            free.append(self.buckets_of(shard)[wanted[shard] :])
        takers = np.repeat(np.arange(num_shards), np.maximum(wanted - have, 0))
        buckets[np.sort(np.concatenate(free))] = takers
        return Routing(
            version=self.version + 1,
            num_shards=num_shards,
            dense_size=self.dense_size,
            buckets=buckets,
            blocks=self._blocks_over(num_shards),
        )

    def _blocks_over(self, num_shards: int) -> npt.NDArray[np.uint16]:
        """Share the blocks out anew, equally, so that as many as can be stay where they are."""
        size = len(self.blocks)
        ends = size * np.arange(num_shards + 1) // num_shards
        stay = _nearest(self.blocks, ends)
        others = iter(sorted(set(range(num_shards)) - set(stay.values())))
        order = [stay[part] if part in stay else next(others) for part in range(num_shards)]
        return np.repeat(np.array(order, np.uint16), np.diff(ends))

    # What a shard has -------------------------------------------------------------------------

    def buckets_of(self, shard: int) -> npt.NDArray[np.int64]:
        """Return a shard's buckets, int64[n], ascending."""
        return np.flatnonzero(self.buckets == shard)

    def blocks_of(self, shard: int) -> npt.NDArray[np.int64]:
        """Return a shard's dense blocks, int64[n], ascending."""
        return np.flatnonzero(self.blocks == shard)

    # Ranges -----------------------------------------------------------------------------------

    @cached_property
    def in_order(self) -> bool:
        """Whether shards have consecutive buckets and blocks, in the order of the shards.

        Then the files of all shards, one after another, have all rows in the order of buckets.
        """
        both = self.buckets, self.blocks
        return not any(np.any(shards[1:] < shards[:-1]) for shards in both)

    @cached_property
    def by_block(self) -> list[int]:
        """All shards in the order of their dense blocks; those that have none come anywhere."""
        return sorted(range(self.num_shards), key=self.block_range)

    def bucket_span(self, shard: int) -> tuple[int, int]:
        """Return [first, end) from a shard's first bucket to its last; (0, 0) where it has none.

        Others may have some of those in between.
        """
        own = self.buckets_of(shard)
        return (int(own[0]), int(own[-1]) + 1) if own.size else (0, 0)

    def bucket_runs(self, shard: int) -> list[tuple[int, int]]:
        """Return a shard's buckets as ranges [first, end), ascending, as few as there can be."""
        return runs_of(self.buckets == shard)

    def block_range(self, shard: int) -> tuple[int, int]:
        """Return a shard's dense blocks as [first, end)."""
        return self._ranges[0][shard]

    def dense_range(self, shard: int) -> tuple[int, int]:
        """Return a shard's dense parameters as [first, end)."""
        return self._ranges[1][shard]

    @cached_property
    def _ranges(self) -> tuple[list[tuple[int, int]], ...]:
        """Those of blocks and parameters, by shard: a client asks with every batch."""
        of_blocks = [(0, 0)] * self.num_shards
        edges = [*_heads(self.blocks).tolist(), len(self.blocks)]
        for first, end in pairwise(edges):
            of_blocks[self.blocks[first]] = first, end
        of_dense = [
            (min(first * BLOCK_SIZE, self.dense_size), min(end * BLOCK_SIZE, self.dense_size))
            for first, end in of_blocks
        ]
        return of_blocks, of_dense

    # As a value -------------------------------------------------------------------------------

    def _key(self) -> tuple[int, int, int, bytes, bytes]:
        return (
            self.version, self.num_shards, self.dense_size,
            self.buckets.tobytes(), self.blocks.tobytes(),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Routing) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[type["Routing"], tuple[object, ...]]:
        # Made anew where it arrives, since arrays can be written again once they were sent.
        fields = (self.version, self.num_shards, self.dense_size, self.buckets, self.blocks)
        return Routing, fields


def runs_of(chosen: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where chosen, bool[n], is true as ranges [first, end), ascending."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def ranges_without(whole: tuple[int, int], part: tuple[int, int]) -> list[tuple[int, int]]:
    """Return what a range [first, end) has beside another one: two ranges at most."""
    (first, end), (start, stop) = whole, part
    found = [(first, min(end, start)), (max(first, stop), end)] if start < stop else [whole]
    return [each for each in found if each[0] < each[1]]


def _heads(shards: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """Return where another shard's begin than lay before, int64[n]; the first one included."""
    return np.flatnonzero(np.diff(shards.astype(np.int64), prepend=-1))


def _nearest(blocks: npt.NDArray[np.uint16], ends: npt.NDArray[np.int64]) -> dict[int, int]:
    """Give parts of the blocks to shards that have most of them.

    Of all ways to do that the one which leaves most blocks to their shards. What a shard has and
    what a part has are ranges, so whatever excludes a pair of them lies beside it, and the best is
    found going once from the first block to the last one.

    Args:
        ends: part i is [ends[i], ends[i + 1]); there is a shard for each.

    Returns:
        The shard of some parts, each shard once; the others are for anyone.
    """
    cuts = np.union1d(_heads(blocks), ends)
    starts: dict[tuple[str, int], int] = {}  # the first pair of a shard, or of a part
    best: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)]  # blocks, the entry before, the pair
    for first, end in pairwise(cuts.tolist()):
        shard, part = int(blocks[first]), int(np.searchsorted(ends, first, side="right")) - 1
        if shard >= len(ends) - 1:
            continue
        number = len(best)
        before = min(
            starts.setdefault(("shard", shard), number), starts.setdefault(("part", part), number)
        )
        kept = best[before - 1][0] + end - first
        best.append((kept, before - 1, shard, part) if kept > best[-1][0] else best[-1])
    found: dict[int, int] = {}
    kept, before, shard, part = best[-1]
    while kept:
        found[part] = shard
        kept, before, shard, part = best[before]
    return found


def _even_blocks(num_shards: int, dense_size: int) -> npt.NDArray[np.uint16]:
    ends = num_blocks(dense_size) * np.arange(num_shards + 1) // num_shards
    return np.repeat(np.arange(num_shards, dtype=np.uint16), np.diff(ends))


def check_sizes(num_shards: int, dense_size: int) -> None:
    """Raise ValueError unless so many shards can share so many dense parameters out."""
    if dense_size < 0:
        raise ValueError(f"dense_size must be >= 0, got {dense_size}")
    if not 1 <= num_shards <= NUM_BUCKETS:
        raise ValueError(f"num_shards must be in [1, {NUM_BUCKETS}], got {num_shards}")


def _shards(
    name: str, shards: npt.NDArray[np.uint16], size: int, num_shards: int
) -> npt.NDArray[np.uint16]:
    """Return the shard of each bucket or block as a copy that can't be written."""
    if shards.shape != (size,) or shards.dtype != np.uint16:
        raise ValueError(f"{name} must be uint16[{size}], got {shards.dtype}{list(shards.shape)}")
    wrong = np.flatnonzero(shards >= num_shards)
    if wrong.size:
        raise ValueError(
            f"{name}[{wrong[0]}] is shard {shards[wrong[0]]}, of {num_shards} shards that"
            " are counted from 0"
        )
    kept = shards.copy()
    kept.flags.writeable = False
    return kept
