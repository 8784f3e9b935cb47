"""Tables of embeddings by key: rows, index, initial values, admission, eviction, optimizers."""

from embedding.compile_cache import use_own_cache

use_own_cache()

from embedding.bloom import BloomBlocks  # noqa: E402
from embedding.counters import CounterEntries  # noqa: E402
from embedding.entries import TableEntries  # noqa: E402
from embedding.eviction import rows_per_bucket  # noqa: E402
from embedding.mixing import NUM_BUCKETS, buckets_of  # noqa: E402
from embedding.optimizers import OptimizerRule, rule_for, step_scalars  # noqa: E402
from embedding.spec import TableSpec  # noqa: E402
from embedding.variable import EmbeddingVariable  # noqa: E402

__all__ = [
    "NUM_BUCKETS",
    "BloomBlocks",
    "CounterEntries",
    "EmbeddingVariable",
    "OptimizerRule",
    "TableEntries",
    "TableSpec",
    "buckets_of",
    "rows_per_bucket",
    "rule_for",
    "step_scalars",
]
