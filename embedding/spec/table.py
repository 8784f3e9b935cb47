"""What a table is: dimension, initial values, optimizer, admission, eviction. Plain frozen values.

Each spec checks its own ranges, so that a spec that exists is a legal one. `to_json` and
`table_from_json` are the form in which specs travel in checkpoints and messages.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.optimizers import OPTIMIZERS
from embedding.spec.optimizers import Adagrad as Adagrad
from embedding.spec.optimizers import AdamAsync as AdamAsync
from embedding.spec.optimizers import Optimizer as Optimizer
from embedding.spec.optimizers import Sgd as Sgd
from embedding.spec.ranges import require as _require
from embedding.spec.ranges import require_count as _count
from embedding.spec.ranges import require_finite as _finite
from embedding.spec.schedule import Schedule

Json = dict[str, Any]
ValueDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Initial values from the uniform distribution on [-scale, scale)."""

    type: Literal["uniform"] = "uniform"
    scale: float = 0.01

    def __post_init__(self) -> None:
        _require(self.scale >= 0, f"scale must be >= 0, got {self.scale}")
        _finite("scale", self.scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """Initial values from the normal distribution."""

    type: Literal["normal"] = "normal"
    mean: float = 0.0
    stddev: float = 0.01

    def __post_init__(self) -> None:
        _require(self.stddev >= 0, f"stddev must be >= 0, got {self.stddev}")
        _finite("stddev", self.stddev)
        _finite("mean", self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedNormal:
    """Initial values from the normal distribution cut at two standard deviations."""

    type: Literal["truncated_normal"] = "truncated_normal"
    mean: float = 0.0
    stddev: float = 0.01

    def __post_init__(self) -> None:
        _require(self.stddev >= 0, f"stddev must be >= 0, got {self.stddev}")
        _finite("stddev", self.stddev)
        _finite("mean", self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One initial value for all."""

    type: Literal["constant"] = "constant"
    value: float = 0.0

    def __post_init__(self) -> None:
        _finite("value", self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeros:
    """All values start at 0."""

    type: Literal["zeros"] = "zeros"


@dataclass(frozen=True, slots=True, kw_only=True)
class GlorotUniform:
    """Initial values from the uniform distribution on [-limit, limit), limit as Glorot's.

    limit = sqrt(6 / (fan_in + fan_out)) with fan_out = dim, as if the table were a matrix
    [fan_in, dim]. It has no vocabulary size, so `fan_in` is a number of its own; the default is
    the height of DeepRec's matrix of default values.

    Source: Glorot and Bengio 2010, equation 16.
    """

    type: Literal["glorot_uniform"] = "glorot_uniform"
    fan_in: int = 4096

    def __post_init__(self) -> None:
        _require(1 <= self.fan_in < 2**63, f"fan_in must be in [1, 2^63), got {self.fan_in}")

    def limit(self, dim: int) -> float:
        """Return half the width of the interval for rows of this width."""
        return math.sqrt(6 / (self.fan_in + dim))


Initializer = Uniform | GlorotUniform | Normal | TruncatedNormal | Constant | Zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterAdmission:
    """A key gets a row once its frequency, this batch included, reaches `min_count`."""

    type: Literal["counter"] = "counter"
    min_count: int = 1

    def __post_init__(self) -> None:
        _require(
            1 <= self.min_count < 2**31, f"min_count must be in [1, 2^31), got {self.min_count}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BloomAdmission:
    """A key gets a row once its count in a counting Bloom filter, this batch included, suffices.

    The rule of `CounterAdmission` in fixed memory; counts may be too high, never too low.

    Args:
        min_count: as of the counter.
        max_elements: distinct keys that the filter is made for, over the whole table.
        false_positive_probability: of a key that was never seen, once it holds so many.
        counter_bits: width of a counter, which saturates.

    Source: DeepRec's CBFFilter.
    """

    type: Literal["bloom"] = "bloom"
    min_count: int
    max_elements: int
    false_positive_probability: float = 0.01
    counter_bits: Literal[8, 16, 32, 64] = 8

    def __post_init__(self) -> None:
        bits, p = self.counter_bits, self.false_positive_probability
        _require(bits in (8, 16, 32, 64), f"counter_bits must be 8, 16, 32 or 64, got {bits}")
        most = min(2**bits - 1, 2**31 - 1)
        _require(
            1 <= self.min_count <= most,
            f"min_count must be in [1, {most}] with counter_bits {bits}, got {self.min_count}",
        )
        _require(
            1 <= self.max_elements <= 2**40,
            f"max_elements must be in [1, 2^40], got {self.max_elements}",
        )
        _require(1e-9 <= p < 1, f"false_positive_probability must be in [1e-9, 1), got {p}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilisticAdmission:
    """Every occurrence of a key without a row admits it with a probability; nothing is counted.

    Source: Monolith's probabilistic filter.
    """

    type: Literal["probabilistic"] = "probabilistic"
    probability: float

    def __post_init__(self) -> None:
        _require(
            0 < self.probability <= 1, f"probability must be in (0, 1], got {self.probability}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyAdmission:
    """A key gets a row once its frequency in another table, this batch included, suffices.

    Nothing is counted here. A key has the same bucket in every table, so both are on one shard.

    Args:
        table: the table that is asked.
        min_count: the frequency there that admits a key.
    """

    type: Literal["frequency_of"] = "frequency_of"
    table: str
    min_count: int

    def __post_init__(self) -> None:
        _require(
            1 <= self.min_count < 2**31, f"min_count must be in [1, 2^31), got {self.min_count}"
        )


Admission = CounterAdmission | BloomAdmission | ProbabilisticAdmission | FrequencyAdmission


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """A new row starts with the present vector of a static row that its key shares until then.

    Args:
        table: the table of static rows, of the same dim, without admission.
        static_rows: rows of that table, a multiple of the 4096 buckets, at most 2^40; see
            `key_maps.static_keys`.
    """

    table: str
    static_rows: int

    def __post_init__(self) -> None:
        _require(
            NUM_BUCKETS <= self.static_rows <= 2**40 and self.static_rows % NUM_BUCKETS == 0,
            f"static_rows must be a multiple of {NUM_BUCKETS}, from {NUM_BUCKETS} to 2^40,"
            f" got {self.static_rows}",
        )

    @property
    def rows_per_bucket(self) -> int:
        return self.static_rows // NUM_BUCKETS


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
        _require(
            any(getattr(self, rule) is not None for rule in rules),
            f"at least one of {', '.join(rules)} must be given",
        )
        for name in ("steps_to_live", "max_rows", "max_bytes", "every_steps"):
            count = getattr(self, name)
            if count is not None:
                _count(name, count)
        threshold = self.l2_weight_threshold
        if threshold is not None:
            _require(threshold > 0, f"l2_weight_threshold must be > 0, got {threshold}")
            _finite("l2_weight_threshold", threshold)
        _require(
            self.max_rows is None or self.max_rows >= _MIN_ROWS,
            f"max_rows must be >= {_MIN_ROWS}, {MIN_ROWS_PER_BUCKET} for each of {NUM_BUCKETS}"
            f" buckets, got {self.max_rows}",
        )
        _require(
            self.evict_first in ("least_frequent", "least_recent"),
            f"evict_first must be least_frequent or least_recent, got {self.evict_first!r}",
        )


def needs_usage(eviction: Eviction | None) -> bool:
    """Whether an eviction asks how often or when rows were updated."""
    if eviction is None:
        return False
    rules = (eviction.steps_to_live, eviction.max_rows, eviction.max_bytes)
    return any(rule is not None for rule in rules)


def is_table_name(name: str) -> bool:
    """Return whether a table may have this name, which files of checkpoints bear too."""
    legal = all(c.isascii() and (c.isalnum() or c in "_.-") for c in name)
    return bool(name) and legal and not name.startswith(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One embedding variable.

    Args:
        name: unique in the job; letters, digits, `_`, `.` and `-`.
        dim: width of the embedding vector.
        seed: seed of the initial values; the name is mixed in.
        default_value: what a pull returns for a key that is not admitted.
        value_dtype: what vectors are kept as (see `precision`); pulls, gradients, optimizers and
            their slots are float32 with all of them.
        track_usage: whether rows have a frequency and a version: 16 bytes of memory, and a cache
            miss for every update.
        warm_start: what new rows start with; None: their initial values.
    """

    name: str
    dim: int
    initializer: Initializer = field(default_factory=Uniform)
    optimizer: Optimizer = field(default_factory=Adagrad)
    admission: Admission | None = None
    eviction: Eviction | None = None
    default_value: float = 0.0
    value_dtype: ValueDtype = "float32"
    track_usage: bool = True
    seed: int = 0
    warm_start: WarmStart | None = None

    def __post_init__(self) -> None:
        _require(
            is_table_name(self.name),
            f"a table's name may hold letters, digits, '_', '.' and '-', got {self.name!r}",
        )
        _require(1 <= self.dim <= 4096, f"dim must be in [1, 4096], got {self.dim}")
        _finite("default_value", self.default_value)
        for field_name, kinds in (
            ("initializer", Initializer),
            ("optimizer", Optimizer),
            ("admission", Admission | None),
            ("eviction", Eviction | None),
        ):
            value = getattr(self, field_name)
            _require(isinstance(value, kinds), f"{field_name} must be a spec, got {value!r}")
        dtypes = get_args(ValueDtype)
        _require(
            self.value_dtype in dtypes,
            f"value_dtype must be one of {', '.join(dtypes)}, got {self.value_dtype!r}",
        )
        _require(
            self.track_usage or not needs_usage(self.eviction),
            f"track_usage of table {self.name} can't be false: its eviction by steps_to_live,"
            " max_rows or max_bytes needs frequency and version of rows",
        )
        _require(
            self.warm_start is None or not isinstance(self.admission, FrequencyAdmission),
            f"table {self.name} can't have both warm_start and an admission of type frequency_of",
        )

    def require_usage(self, what_for: str) -> None:
        """Raise ValueError where rows have no frequency and version, which something needs."""
        if not self.track_usage:
            raise ValueError(
                f"table {self.name} does not track usage, which is needed {what_for};"
                " set track_usage: true"
            )

    @property
    def base(self) -> str | None:
        """The table that this one reads, if any."""
        if self.warm_start is not None:
            return self.warm_start.table
        if isinstance(self.admission, FrequencyAdmission):
            return self.admission.table
        return None


def to_json(spec: Any) -> Json:
    """Return a spec as JSON-able values; `table_from_json` reads a table back."""
    return dataclasses.asdict(spec)


_INITIALIZERS: dict[str, type] = {
    "uniform": Uniform,
    "glorot_uniform": GlorotUniform,
    "normal": Normal,
    "truncated_normal": TruncatedNormal,
    "constant": Constant,
    "zeros": Zeros,
}

_ADMISSIONS: dict[str, type] = {
    "counter": CounterAdmission,
    "bloom": BloomAdmission,
    "probabilistic": ProbabilisticAdmission,
    "frequency_of": FrequencyAdmission,
}


def optimizer_from_json(data: Json) -> Optimizer:
    """Read an optimizer; raises ValueError where the type or a field is not known."""
    schedule = data.get("schedule")
    if schedule is not None:
        data = {**data, "schedule": _build(Schedule, schedule)}
    return _tagged(OPTIMIZERS, "optimizer", data)


def table_from_json(data: Json) -> TableSpec:
    """Read a table's spec; raises ValueError where a type or a field is not known."""
    data = dict(data)
    data["initializer"] = _tagged(_INITIALIZERS, "initializer", data["initializer"])
    data["optimizer"] = optimizer_from_json(data["optimizer"])
    if data.get("admission") is not None:
        data["admission"] = _tagged(_ADMISSIONS, "admission", data["admission"])
    if data.get("eviction") is not None:
        data["eviction"] = _build(Eviction, data["eviction"])
    if data.get("warm_start") is not None:
        data["warm_start"] = _build(WarmStart, data["warm_start"])
    return _build(TableSpec, data)


def _tagged(kinds: Mapping[str, type], what: str, data: Json) -> Any:
    kind = kinds.get(data.get("type", ""))
    if kind is None:
        raise ValueError(f"{what} type must be one of {sorted(kinds)}, got {data.get('type')!r}")
    return _build(kind, data)


def _build(kind: Any, data: Json) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}; known: {sorted(known)}")
    return kind(**data)
