"""What a table is: dimension, initial values, optimizer, admission, eviction.

Each spec checks its own ranges, so that a spec that exists is a legal one.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from embedding.kernels.mixing import NUM_BUCKETS
from embedding.spec.admission import Admission, FrequencyAdmission
from embedding.spec.eviction import Eviction, needs_usage
from embedding.spec.initial_values import Initializer, Uniform
from embedding.spec.optimizers import Adagrad, Optimizer
from embedding.spec.ranges import require, require_finite

ValueDtype = Literal["float32", "float16", "bfloat16", "int8"]


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
        require(
            NUM_BUCKETS <= self.static_rows <= 2**40 and self.static_rows % NUM_BUCKETS == 0,
            f"static_rows must be a multiple of {NUM_BUCKETS}, from {NUM_BUCKETS} to 2^40,"
            f" got {self.static_rows}",
        )

    @property
    def rows_per_bucket(self) -> int:
        return self.static_rows // NUM_BUCKETS


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
        require(
            is_table_name(self.name),
            f"a table's name may hold letters, digits, '_', '.' and '-', got {self.name!r}",
        )
        require(1 <= self.dim <= 4096, f"dim must be in [1, 4096], got {self.dim}")
        require_finite("default_value", self.default_value)
        for field_name, kinds in (
            ("initializer", Initializer),
            ("optimizer", Optimizer),
            ("admission", Admission | None),
            ("eviction", Eviction | None),
        ):
            value = getattr(self, field_name)
            require(isinstance(value, kinds), f"{field_name} must be a spec, got {value!r}")
        dtypes = get_args(ValueDtype)
        require(
            self.value_dtype in dtypes,
            f"value_dtype must be one of {', '.join(dtypes)}, got {self.value_dtype!r}",
        )
        require(
            self.track_usage or not needs_usage(self.eviction),
            f"track_usage of table {self.name} can't be false: its eviction by steps_to_live,"
            " max_rows or max_bytes needs frequency and version of rows",
        )
        require(
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
