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
        blocks: uint16[blocks], the shard of each dense block; as `buckets`.

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
        object.__setattr__(self, "buckets", buckets)
        object.__setattr__(self, "blocks", blocks)

    @staticmethod
    def even(num_shards: int, dense_size: int = 0) -> "Routing":
        """Return version 0: equal ranges of buckets and of blocks, in the order of the shards."""
        check_sizes(num_shards, dense_size)
        blocks = num_blocks(dense_size)
        ends = blocks * np.arange(num_shards + 1) // num_shards
        return Routing(
            version=0,
            num_shards=num_shards,
            dense_size=dense_size,
            buckets=(np.arange(NUM_BUCKETS) * num_shards // NUM_BUCKETS).astype(np.uint16),
            blocks=np.repeat(np.arange(num_shards, dtype=np.uint16), np.diff(ends)),
        )

    # What a shard has -------------------------------------------------------------------------

    def buckets_of(self, shard: int) -> npt.NDArray[np.int64]:
        """Return a shard's buckets, int64[n], ascending."""
        return np.flatnonzero(self.buckets == shard)

    def blocks_of(self, shard: int) -> npt.NDArray[np.int64]:
        """Return a shard's dense blocks, int64[n], ascending."""
        return np.flatnonzero(self.blocks == shard)

    # Ranges -----------------------------------------------------------------------------------

    @cached_property
    def in_ranges(self) -> bool:
        """Whether shards have consecutive buckets and blocks, in the order of the shards.

        Shards, messages, files and digests need that today: the parts of all shards, one after
        another, are the whole.
        """
        return not any(np.any(of[1:] < of[:-1]) for of in (self.buckets, self.blocks))

    def bucket_range(self, shard: int) -> tuple[int, int]:
        """Return a shard's buckets as [first, end).

        Raises:
            ValueError: the routing is not `in_ranges`; so the other two.
        """
        return self._ranges[0][shard]

    def block_range(self, shard: int) -> tuple[int, int]:
        """Return a shard's dense blocks as [first, end)."""
        return self._ranges[1][shard]

    def dense_range(self, shard: int) -> tuple[int, int]:
        """Return a shard's dense parameters as [first, end)."""
        return self._ranges[2][shard]

    @cached_property
    def _ranges(self) -> tuple[list[tuple[int, int]], ...]:
        """Those of buckets, blocks and parameters, by shard: a client asks with every batch."""
        if not self.in_ranges:
            raise ValueError(
                f"routing {self.version} gives shards other buckets or dense blocks than"
                " consecutive ones in the order of the shards"
            )
        shards = np.arange(self.num_shards + 1)
        of_buckets = np.searchsorted(self.buckets, shards).tolist()
        of_blocks = np.searchsorted(self.blocks, shards).tolist()
        of_dense = [min(block * BLOCK_SIZE, self.dense_size) for block in of_blocks]
        return tuple(list(pairwise(edges)) for edges in (of_buckets, of_blocks, of_dense))

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
