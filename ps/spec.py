"""What the shards of one job hold together: tables and dense parameters."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from embedding.optimizers.rule import rule_for
from embedding.spec.json_form import optimizer_from_json, table_from_json, to_json
from embedding.spec.optimizers import Optimizer
from embedding.spec.table import TableSpec
from embedding.table.links import check_links
from ps.routing import Routing, check_sizes, num_blocks

SparseMean = Literal["global", "contributors"]


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
        uneven: which shard has which part; None: each has as much as any other.
    """

    tables: tuple[TableSpec, ...]
    dense_size: int
    dense_optimizer: Optimizer
    num_shards: int
    dense_clip_norm: float | None = None
    sparse_mean: SparseMean = "global"
    uneven: Routing | None = None

    def __post_init__(self) -> None:
        names = [table.name for table in self.tables]
        if len(set(names)) != len(names):
            raise ValueError(f"table names must be unique, got {names}")
        check_links(self.tables)
        check_sizes(self.num_shards, self.dense_size)
        if self.uneven is not None:
            sizes = self.uneven.num_shards, self.uneven.dense_size
            if sizes != (self.num_shards, self.dense_size):
                raise ValueError(
                    f"uneven shares {sizes[1]} dense parameters out to {sizes[0]} shards, the"
                    f" store has {self.dense_size} and {self.num_shards}"
                )
        rule_for(self.dense_optimizer, sparse=False)  # refuses what is for rows only
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

    @cached_property
    def longest_life(self) -> int:
        """The ticks that the longest time to live of a table has; 0 where none has one."""
        rules = [table.eviction for table in self.tables if table.eviction is not None]
        return max((rule.steps_to_live or 0 for rule in rules), default=0)

    @property
    def num_blocks(self) -> int:
        """Dense blocks; the last one is padded with zeros."""
        return num_blocks(self.dense_size)

    @cached_property
    def routing(self) -> Routing:
        """Which shard has which part, as the job starts."""
        return self.uneven or Routing.even(self.num_shards, self.dense_size)

    def to_json(self) -> dict[str, Any]:
        """Return all but the routing: the files of a checkpoint say what each of them holds."""
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
        """Read what `to_json` gave; raises ValueError or KeyError for what it can't have given."""
        tables = tuple(table_from_json(table) for table in data["tables"])
        for name in ("dense_size", "num_shards"):
            if type(data[name]) is not int:
                raise ValueError(f"{name} must be a whole number, got {data[name]!r:.80}")
        # Checkpoints of earlier versions do not have it, nor sparse_mean.
        limit = data.get("dense_clip_norm")
        if limit is not None and type(limit) not in (int, float):
            raise ValueError(f"dense_clip_norm must be a number, got {limit!r:.80}")
        return StoreSpec(
            tables=tables,
            dense_size=data["dense_size"],
            dense_optimizer=optimizer_from_json(data["dense_optimizer"]),
            num_shards=data["num_shards"],
            dense_clip_norm=limit,
            sparse_mean=data.get("sparse_mean", "global"),
        )
