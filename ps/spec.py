"""What the shards of one job hold: tables and dense parameters, and who owns which part."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.json_form import optimizer_from_json, table_from_json, to_json
from embedding.spec.optimizers import Optimizer
from embedding.spec.table import TableSpec
from embedding.table.links import check_links

SparseMean = Literal["global", "contributors"]

# Parameters in a dense block. Fixed, so that a model is cut alike for any number of shards.
BLOCK_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """Tables and dense parameters of a job, the same for all of its shards.

    Args:
        tables: in the order in which messages list them.
        dense_size: number of dense parameters.
        dense_optimizer: optimizer of the dense parameters.
        num_shards: how many shards there are.
        dense_clip_norm: most of the norm of the whole dense gradient of a step; None: no limit.
        sparse_mean: what a key's sum of gradients is divided by: N, the samples of the step, or
            those of the contributions of positive weight that have the key.
    """

    tables: tuple[TableSpec, ...]
    dense_size: int
    dense_optimizer: Optimizer
    num_shards: int
    dense_clip_norm: float | None = None
    sparse_mean: SparseMean = "global"

    def __post_init__(self) -> None:
        names = [table.name for table in self.tables]
        if len(set(names)) != len(names):
            raise ValueError(f"table names must be unique, got {names}")
        check_links(self.tables)
        if self.dense_size < 0:
            raise ValueError(f"dense_size must be >= 0, got {self.dense_size}")
        if not 1 <= self.num_shards <= NUM_BUCKETS:
            raise ValueError(f"num_shards must be in [1, {NUM_BUCKETS}], got {self.num_shards}")
        limit = self.dense_clip_norm
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"dense_clip_norm must be > 0 and finite, got {limit}")
        if self.sparse_mean not in get_args(SparseMean):
            raise ValueError(
                f"sparse_mean must be one of {get_args(SparseMean)}, got {self.sparse_mean!r}"
            )

    @cached_property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The distinct optimizers, in the order in which a record lists their scalars."""
        used = [table.optimizer for table in self.tables] + [self.dense_optimizer]
        return tuple(dict.fromkeys(used))

    @property
    def num_blocks(self) -> int:
        """Dense blocks; the last one is padded with zeros."""
        return math.ceil(self.dense_size / BLOCK_SIZE)

    def blocks_of(self, shard: int) -> tuple[int, int]:
        """Return the range of dense blocks [first, last) that a shard owns."""
        return (
            self.num_blocks * shard // self.num_shards,
            self.num_blocks * (shard + 1) // self.num_shards,
        )

    def dense_range(self, shard: int) -> tuple[int, int]:
        """Return the range of dense parameters [first, last) that a shard owns."""
        first, last = self.blocks_of(shard)
        return min(first * BLOCK_SIZE, self.dense_size), min(last * BLOCK_SIZE, self.dense_size)

    def to_json(self) -> dict[str, Any]:
        return {
            "tables": [to_json(table) for table in self.tables],
            "dense_size": self.dense_size,
            "dense_optimizer": to_json(self.dense_optimizer),
            "num_shards": self.num_shards,
            "dense_clip_norm": self.dense_clip_norm,
            "sparse_mean": self.sparse_mean,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "StoreSpec":
        # Checkpoints of earlier versions do not have it, nor sparse_mean.
        limit = data.get("dense_clip_norm")
        return StoreSpec(
            tables=tuple(table_from_json(table) for table in data["tables"]),
            dense_size=int(data["dense_size"]),
            dense_optimizer=optimizer_from_json(data["dense_optimizer"]),
            num_shards=int(data["num_shards"]),
            dense_clip_norm=None if limit is None else float(limit),
            sparse_mean=data.get("sparse_mean", "global"),
        )


def even_routing(num_shards: int) -> npt.NDArray[np.uint16]:
    """Return the shard of each bucket, uint16[4096]: equal consecutive ranges of buckets."""
    return (np.arange(NUM_BUCKETS) * num_shards // NUM_BUCKETS).astype(np.uint16)


def bucket_range(shard: int, num_shards: int) -> tuple[int, int]:
    """Return the buckets [first, last) that `even_routing` gives to a shard."""
    first = -(-shard * NUM_BUCKETS // num_shards)
    last = -(-(shard + 1) * NUM_BUCKETS // num_shards)
    return first, last
