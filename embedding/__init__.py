"""Tables of embeddings by key: rows, index, initial values, admission, eviction, optimizers."""

from embedding.counters import CounterEntries
from embedding.mixing import NUM_BUCKETS, buckets_of
from embedding.optimizers import OptimizerRule, rule_for, step_scalars
from embedding.spec import TableSpec
from embedding.variable import EmbeddingVariable, TableEntries

__all__ = [
    "NUM_BUCKETS",
    "CounterEntries",
    "EmbeddingVariable",
    "OptimizerRule",
    "TableEntries",
    "TableSpec",
    "buckets_of",
    "rule_for",
    "step_scalars",
]
