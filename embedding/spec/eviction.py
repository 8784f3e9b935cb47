"""When a row is removed."""

from dataclasses import dataclass
from typing import Literal

from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.ranges import require, require_finite
from embedding.spec.ranges import require_count as _count

# Below that many rows a bucket, its quota would cut off much that is within the whole table's.
MIN_ROWS_PER_BUCKET = 64
_MIN_ROWS = MIN_ROWS_PER_BUCKET * NUM_BUCKETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Which rows are removed, looked for every `every_steps` steps of the schedule clock.

    At least one of the rules must be given; a row goes that any of them removes.

    Args:
        steps_to_live: rows not updated for more than so many steps of the clock go, and counters
            of unadmitted keys.
        l2_weight_threshold: rows go of which half the squared sum of the vector is below it.
        max_rows: the rows that the whole table may keep, shared evenly among 4096 buckets.
        max_bytes: likewise, as the bytes of rows, their metadata and their part of the index.
        evict_first: which go first where a bucket has more than its quota; ties by key.

    Source: DeepRec's GlobalStepEvict and L2WeightEvict; the budgets are ours.
    """

    steps_to_live: int | None = None
    l2_weight_threshold: float | None = None
    max_rows: int | None = None
    max_bytes: int | None = None
    evict_first: Literal["least_frequent", "least_recent"] = "least_frequent"
    every_steps: int = 100

    def __post_init__(self) -> None:
        rules = ("steps_to_live", "l2_weight_threshold", "max_rows", "max_bytes")
        require(
            any(getattr(self, rule) is not None for rule in rules),
            f"at least one of {', '.join(rules)} must be given",
        )
        for name in ("steps_to_live", "max_rows", "max_bytes", "every_steps"):
            count = getattr(self, name)
            if count is not None:
                _count(name, count)
        threshold = self.l2_weight_threshold
        if threshold is not None:
            require(threshold > 0, f"l2_weight_threshold must be > 0, got {threshold}")
            require_finite("l2_weight_threshold", threshold)
        require(
            self.max_rows is None or self.max_rows >= _MIN_ROWS,
            f"max_rows must be >= {_MIN_ROWS}, {MIN_ROWS_PER_BUCKET} for each of {NUM_BUCKETS}"
            f" buckets, got {self.max_rows}",
        )
        require(
            self.evict_first in ("least_frequent", "least_recent"),
            f"evict_first must be least_frequent or least_recent, got {self.evict_first!r}",
        )


def needs_usage(eviction: Eviction | None) -> bool:
    """Whether an eviction asks how often or when rows were updated."""
    if eviction is None:
        return False
    rules = (eviction.steps_to_live, eviction.max_rows, eviction.max_bytes)
    return any(rule is not None for rule in rules)
