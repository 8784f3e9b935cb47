"""Tables of embeddings by key: rows, index, initial values, admission, eviction, optimizers."""

from embedding.kernels.compile_cache import use_own_cache

use_own_cache()

from embedding.entries import (  # noqa: E402
    CounterEntries,
    TableEntries,
)
from embedding.kernels.mixing import NUM_BUCKETS, buckets_of  # noqa: E402
from embedding.optimizers.rule import OptimizerRule, rule_for, step_scalars  # noqa: E402
from embedding.spec.admission import BloomAdmission, CounterAdmission, ProbabilisticAdmission  # noqa: E402
from embedding.spec.composition import Adaptive, DynamicDimension, MultiHash, compose  # noqa: E402
from embedding.spec.eviction import Eviction  # noqa: E402
from embedding.spec.initial_values import (  # noqa: E402
    Constant,
    GlorotUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    Zeros,
)
from embedding.spec.optimizers import (  # noqa: E402
    Adagrad,
    AdagradDecay,
    AdagradDecayV2,
    Adam,
    AdamAsync,
    AdamW,
    Ftrl,
    RmsProp,
    RowwiseAdagrad,
    RowwiseAdam,
    Sgd,
)
from embedding.spec.schedule import Schedule  # noqa: E402
from embedding.spec.table import TableSpec  # noqa: E402
from embedding.spec.tiers import Tiers  # noqa: E402
from embedding.table.bloom import BloomBlocks  # noqa: E402
from embedding.table.eviction import rows_per_bucket  # noqa: E402
from embedding.table.key_maps import map_keys  # noqa: E402
from embedding.table.links import make_variables  # noqa: E402
from embedding.table.variable import EmbeddingVariable  # noqa: E402

__all__ = [
    "NUM_BUCKETS",
    "Adagrad",
    "AdagradDecay",
    "AdagradDecayV2",
    "Adam",
    "AdamAsync",
    "AdamW",
    "Adaptive",
    "BloomAdmission",
    "BloomBlocks",
    "Constant",
    "CounterAdmission",
    "CounterEntries",
    "DynamicDimension",
    "EmbeddingVariable",
    "Eviction",
    "Ftrl",
    "GlorotUniform",
    "MultiHash",
    "Normal",
    "OptimizerRule",
    "ProbabilisticAdmission",
    "RmsProp",
    "RowwiseAdagrad",
    "RowwiseAdam",
    "Schedule",
    "Sgd",
    "TableEntries",
    "TableSpec",
    "Tiers",
    "TruncatedNormal",
    "Uniform",
    "Zeros",
    "buckets_of",
    "compose",
    "make_variables",
    "map_keys",
    "rows_per_bucket",
    "rule_for",
    "step_scalars",
]
